"""What all trainers of transformers and TRL share: their arguments, checkpoints, curves and the folders that they write."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from plumbline.pipeline import processes
from plumbline.pipeline.launcher import Launcher
from plumbline.pipeline.ranges import BELOW_ONE, COUNT, NOT_NEGATIVE, POSITIVE, outside

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

    from plumbline.methods.job import Job
    from plumbline.pipeline.tracking import Run


SCHEDULES = ("constant", "linear", "cosine")
"""How the learning rate may change over the steps."""

OPTIMISERS = ("adamw", "paged_adamw_8bit")
"""AdamW, and bitsandbytes' AdamW, whose moments take 8 bits and may leave the GPU (arXiv:2110.02861)."""


@dataclass
class Optimisation:
    """How a model is trained: the fields that all methods share, with their values in conf/method/<method>.yaml."""

    learning_rate: float = MISSING
    epochs: float = MISSING
    batch_size: int = MISSING  # rows in an optimiser step, of all processes together
    micro_batch_size: int = MISSING  # rows in a forward pass of each process; gradients accumulate up to batch_size
    schedule: str = MISSING  # constant | linear | cosine
    warmup_fraction: float = MISSING  # of all steps
    weight_decay: float = MISSING
    adam_beta2: float = MISSING  # of the second moment
    optimiser: str = MISSING  # adamw | paged_adamw_8bit
    max_grad_norm: float = MISSING
    max_steps: int = MISSING  # -1: as many as the epochs take
    checkpoint_every: int = MISSING  # steps between checkpoints
    bf16: bool = MISSING
    gradient_checkpointing: bool = MISSING

    may_stay_untrained: ClassVar[bool] = False
    """Whether no epochs at all are a way to say that the policy is kept as it is."""

    @property
    def untrained(self) -> bool:
        """Whether the values ask for no training at all."""
        return self.epochs == 0 and self.max_steps <= 0

    @property
    def most_rows(self) -> int | None:
        """The most rows that training reaches; None for all."""
        return self.max_steps * self.batch_size if self.max_steps > 0 else None

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        complaints = []
        if min(self.batch_size, self.micro_batch_size) < 1:
            complaints.append(
                f"batch_size, micro_batch_size: expected at least 1, found {self.batch_size} and {self.micro_batch_size}"
            )
        elif self.batch_size % self.micro_batch_size:
            below = max(size for size in range(1, self.micro_batch_size + 1) if self.batch_size % size == 0)
            above = self.micro_batch_size * (self.batch_size // self.micro_batch_size + 1)
            complaints.append(
                f"batch_size: expected a multiple of micro_batch_size {self.micro_batch_size}, found {self.batch_size}. Set micro_batch_size "
                f"to {below}, or batch_size to {above}"
            )
        if self.max_steps < 1 and self.max_steps != -1:
            complaints.append(f"max_steps: expected at least 1, or -1 for as many as the epochs take, found {self.max_steps}")
        if self.untrained and not self.may_stay_untrained:
            complaints.append(f"epochs: expected above 0 unless max_steps says how long, found {self.epochs}")
        if self.schedule not in SCHEDULES:
            complaints.append(f"schedule: expected one of {', '.join(SCHEDULES)}, found {self.schedule!r}")
        if self.optimiser not in OPTIMISERS:
            complaints.append(f"optimiser: expected one of {', '.join(OPTIMISERS)}, found {self.optimiser!r}")
        elif self.optimiser != "adamw" and find_spec("bitsandbytes") is None:
            complaints.append(
                f"optimiser: expected the library bitsandbytes for {self.optimiser}, found none. Install it (`pip install bitsandbytes`), or set "
                "optimiser to adamw"
            )
        return complaints + outside(
            self,
            learning_rate=POSITIVE,
            epochs=NOT_NEGATIVE,
            warmup_fraction=BELOW_ONE,
            weight_decay=NOT_NEGATIVE,
            adam_beta2=BELOW_ONE,
            max_grad_norm=NOT_NEGATIVE,
            checkpoint_every=COUNT,
        )

    def launcher_problems(self, launcher: Launcher) -> list[str]:
        """What does not fit several processes; empty if all does."""
        together = self.micro_batch_size * launcher.processes
        if min(self.batch_size, together) < 1 or self.batch_size % together == 0:
            return []
        above = together * math.ceil(self.batch_size / together)
        fitting = [size for size in range(1, self.micro_batch_size + 1) if self.batch_size % (size * launcher.processes) == 0]
        lower = f"Set micro_batch_size to {fitting[-1]}, or batch_size to {above}" if fitting else f"Set batch_size to {above}"
        return [
            f"batch_size: expected a multiple of micro_batch_size times the processes of the launcher, {self.micro_batch_size} · "
            f"{launcher.processes}, found {self.batch_size}. {lower}"
        ]


@dataclass
class Validated(Optimisation):
    """Training with validation on held-out rows."""

    evaluate_every: int = MISSING  # steps between validation losses
    keep: str = MISSING  # the weights to keep: last | best, by validation loss

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        complaints = super().problems() + outside(self, evaluate_every=COUNT)
        if self.keep not in ("last", "best"):
            complaints.append(f"keep: expected last or best, found {self.keep!r}")
        if self.keep == "best" and self.checkpoint_every % max(1, self.evaluate_every):
            complaints.append(
                f"checkpoint_every: expected a multiple of evaluate_every {self.evaluate_every} with keep: best, found {self.checkpoint_every}"
            )
        if self.keep == "best" and 0 < self.max_steps < self.evaluate_every:
            complaints.append(
                f"evaluate_every: expected at most max_steps {self.max_steps} with keep: best, found {self.evaluate_every}"
            )
        return complaints


@dataclass
class Lora:
    """Low-rank adaptation (LoRA, arXiv:2106.09685): the fields that trainers of policies and of rewards share."""

    lora_rank: int = MISSING  # 0: full training
    lora_alpha: int = MISSING  # the adapter is scaled by lora_alpha / lora_rank
    lora_output: str = MISSING  # merged: into the model's weights | adapter: the adapter is kept as well, in the model's adapter/

    def lora_problems(self) -> list[str]:
        """What is wrong with these values; empty if nothing is."""
        complaints = outside(self, lora_rank=NOT_NEGATIVE, lora_alpha=COUNT)
        if self.lora_output not in ("merged", "adapter"):
            complaints.append(f"lora_output: expected merged or adapter, found {self.lora_output!r}")
        return complaints


def trainer_arguments(config: Optimisation, checkpoints: Path, seed: int) -> dict[str, Any]:
    """The arguments of a trainer's config that `config` decides. Without validation (`Validated`), the last weights are kept.

    Raises:
        ValueError: the optimiser needs a GPU, and there is none.
    """
    import torch

    if config.optimiser != "adamw" and not torch.cuda.is_available():
        raise ValueError(f"optimiser: expected a GPU for {config.optimiser}, found none. Set optimiser to adamw")
    validation: dict[str, Any] = {"eval_strategy": "no"}
    if isinstance(config, Validated):
        validation = {
            "eval_strategy": "steps",
            "eval_steps": config.evaluate_every,
            "load_best_model_at_end": config.keep == "best",
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
        }
    return {
        "output_dir": str(checkpoints),
        "seed": seed,
        "data_seed": seed,
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.micro_batch_size,
        "per_device_eval_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": config.batch_size // (config.micro_batch_size * processes.count()),
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_fraction,  # transformers reads a number below 1 as a fraction of all steps
        "weight_decay": config.weight_decay,
        "adam_beta2": config.adam_beta2,
        **({} if config.optimiser == "adamw" else {"optim": config.optimiser}),
        "max_grad_norm": config.max_grad_norm,
        "bf16": config.bf16,
        "use_cpu": not torch.accelerator.is_available(),  # transformers refuses bf16 on a CPU that it was not told to use
        "activation_checkpointing": config.gradient_checkpointing,
        **validation,
        "save_strategy": "steps",
        "save_steps": config.checkpoint_every,
        "save_total_limit": 2,
        # No window of a logged mean may span a checkpoint, or a resumed run would log something else.
        "logging_steps": math.gcd(10, config.checkpoint_every),
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
    }


def takes_ids(trainer: Any) -> Any:
    """One of TRL's trainers, made to take rows that the one chat template has tokenised.

    TRL's own tokenising leaves out the end of a prompt that merges with the start of its completion, and adds what the template writes after
    the end of turn, so the model would learn other tokens than it samples.
    """
    return type(trainer.__name__, (trainer,), {"_prepare_dataset": lambda self, dataset, *_: dataset})


def train(trainer: "Trainer", checkpoints: Path, callbacks: "Sequence[TrainerCallback]" = ()) -> None:
    """Trains, starting from the last whole checkpoint if an interrupted attempt left one.

    callbacks: more of them, such as `watching(trainer, job)`, which shows completions in MLflow during training.

    Raises:
        FloatingPointError: the loss is NaN or infinite.
        ValueError: `keep: best` is set and there is no validation within the steps; or the process sees several GPUs.
    """
    if trainer.args.n_gpu > 1:
        raise ValueError(
            f"expected one GPU for each process, found {trainer.args.n_gpu}. Each would take micro_batch_size rows, so that a step would "
            "have more than batch_size: set CUDA_VISIBLE_DEVICES to one of them"
        )
    trainer.add_callback(_require_validation())
    trainer.add_callback(_stop_when_not_finite())
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))


def last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint in a folder that every process had written when the run was interrupted; None if there is none."""
    names = ["rng_state.pth"] if processes.count() == 1 else [f"rng_state_{number}.pth" for number in range(processes.count())]
    whole = [
        checkpoint
        for checkpoint in folder.glob("checkpoint-*")
        if all((checkpoint / name).is_file() for name in [*names, "trainer_state.json"])
    ]
    return str(max(whole, key=lambda checkpoint: int(checkpoint.name.rpartition("-")[2]))) if whole else None


def _require_validation() -> Any:
    """A callback that refuses `keep: best` if training ends before the first validation."""
    from transformers import TrainerCallback

    class RequireValidation(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if args.load_best_model_at_end and state.max_steps < args.eval_steps:
                raise ValueError(
                    f"evaluate_every: expected at most the number of steps, {state.max_steps}, with keep: best, found {args.eval_steps}. There "
                    "would be no validation to choose by: lower evaluate_every, or set keep to last"
                )

    return RequireValidation()


def _stop_when_not_finite() -> Any:
    """A callback that ends training at the first loss that is NaN or infinite."""
    from transformers import TrainerCallback

    class StopWhenNotFinite(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
            loss = (logs or {}).get("loss", 0.0)
            if not math.isfinite(float(loss)):
                raise FloatingPointError(
                    f"the loss is {loss} at step {state.global_step}. Lower learning_rate or max_grad_norm, or look for a broken row"
                )

    return StopWhenNotFinite()


def curve_rows(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """A trainer's log history as one row per step, without values that differ from run to run.

    These are times, rates, and TRL's count of tokens, which starts again when a run resumes. Values of None are left out as well.
    """
    rows: dict[int, dict[str, float]] = {}
    for record in history:
        step = int(record["step"])
        numbers = {
            name: float(value)
            for name, value in record.items()
            if name not in ("step", "epoch", "total_flos", "train_loss")
            and not name.endswith(("_runtime", "_per_second", "step_time", "num_tokens"))
            and value is not None
        }
        if numbers:
            rows.setdefault(step, {"step": step}).update(numbers)
    return [rows[step] for step in sorted(rows)]


def write_curve(path: Path, rows: Sequence[Mapping[str, float]], run: "Run | None" = None) -> None:
    """Writes a training curve as CSV (`step`, then a column per metric) and logs it step by step to `run`."""
    import pandas

    columns = ["step", *sorted({name for row in rows for name in row} - {"step"})]
    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows, columns=columns).to_csv(path, index=False, lineterminator="\n")
    if run:
        for row in rows:
            run.log_metrics({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))


def save_policy(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Writes a model folder that transformers, vLLM and others can load: weights, tokenizer, chat template, generation config.

    The generation config keeps the decoding that the model came with. A model trained from scratch has none: its whole distribution at
    temperature 1.
    """
    from transformers import GenerationConfig

    from plumbline.models.chat import end_of_turn_id
    from plumbline.models.decoding_values import own_decoding
    from plumbline.models.loading import rows_without_token

    end = end_of_turn_id(tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = end
    model.config.use_cache = True
    embeddings: Any = model.get_input_embeddings()
    model.generation_config = GenerationConfig(
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
        **own_decoding(model.generation_config).generation_values(),
        suppress_tokens=rows_without_token(tokenizer, embeddings.num_embeddings) or None,
    )
    output = model.get_output_embeddings()
    mask = output.bias if getattr(output, "bias_is_mask", False) else None
    if mask is not None:
        output.bias = None  # no part of the architecture: whoever loads the folder masks anew
    model.save_pretrained(folder)
    if mask is not None:
        output.bias = mask
    tokenizer.save_pretrained(folder)


def lora_config(config: Lora, head: str | None = None) -> "LoraConfig | None":
    """The adapter to train, on every linear layer except the output; None for full training.

    head: the name of a classifier's new layer, which is trained in full.
    """
    if not config.lora_rank:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="SEQ_CLS" if head else None,
        modules_to_save=[head] if head else None,
    )


def merged(model: Any, folder: Path, config: Lora) -> Any:
    """The trained model, with an adapter merged into its base, so that the folder loads on its own.

    It is merged in float32, so that the sum is rounded once, when the model is saved. With `lora_output: adapter` the adapter is written to
    `folder`/adapter as well, where serving engines and peft find it.
    """
    if not config.lora_rank:
        return model
    if config.lora_output == "adapter":
        adapter = model.peft_config["default"]
        adapter.target_modules = sorted(adapter.target_modules)  # peft has a set, which each process would write in another order
        model.save_pretrained(folder / "adapter")
    return model.float().merge_and_unload()


def whole_model(trainer: "Trainer", init: Path | None, load: Callable[[Path], Any] | None = None) -> Any:
    """The trained model, whole, in the first process; of several, the others leave the stage here.

    A sharded model is gathered by its trainer, on disk, and loaded anew: what follows is then the same for all models.

    Args:
        init: the folder of the base below an adapter.
        load: loads a model of this kind from its folder; None for a causal LM.
    """
    gathered = Path(str(trainer.args.output_dir)) / "whole"
    if processes.sharded():
        trainer.save_model(str(gathered))  # in which all processes take part
    processes.only_the_first_goes_on()
    if not processes.sharded():
        return trainer.model
    from peft import PeftModel

    from plumbline.models.loading import load_causal_lm

    load = load or load_causal_lm
    if not (gathered / "adapter_config.json").is_file():
        return load(gathered)
    assert init is not None
    return PeftModel.from_pretrained(load(init), str(gathered))


def save_trained(model: Any, tokenizer: "PreTrainedTokenizerBase", job: "Job", config: Lora) -> None:
    """Writes the trained model to `job.output` as a policy, with an adapter merged into its base, in the precision of `job.init`.

    It is done once: of several processes, all but the first leave the stage here.
    """
    from plumbline.models.loading import as_saved

    processes.only_the_first_goes_on()
    save_policy(as_saved(merged(model, job.output, config), job.init), tokenizer, job.output)
