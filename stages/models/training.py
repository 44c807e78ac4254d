"""What every trainer of transformers and TRL is given: seeds, the common arguments, checkpoints, curves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import MISSING

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from stages.pipeline.tracking import Run


@dataclass
class Optimisation:
    """How a model is trained: fields that all methods share, with values in conf/method/<method>.yaml."""

    learning_rate: float = MISSING
    epochs: float = MISSING
    batch_size: int = MISSING  # rows for each optimiser step
    micro_batch_size: int = MISSING  # rows for each forward pass; gradients accumulate up to batch_size
    schedule: str = MISSING  # constant | linear | cosine
    warmup_fraction: float = MISSING  # of all steps
    weight_decay: float = MISSING
    adam_beta2: float = MISSING  # of the second moment
    max_grad_norm: float = MISSING
    max_steps: int = MISSING  # -1: as many as the epochs take
    evaluate_every: int = MISSING  # steps between validation losses, and between checkpoints
    keep: str = MISSING  # last | best: the checkpoint with the lowest validation loss
    bf16: bool = MISSING
    gradient_checkpointing: bool = MISSING


@dataclass
class Lora:
    """Low-rank adaptation (LoRA, arXiv:2106.09685): the switch that trainers of policies and of rewards share."""

    lora_rank: int = MISSING  # 0: full training
    lora_alpha: int = MISSING  # scale of the adapter, times 1 / rank
    lora_output: str = MISSING  # merged | adapter: the adapter too, in the model's adapter/


class HasConfig(Protocol):
    """A TRL or transformers config class, made from keyword arguments."""

    def __call__(self, **arguments: Any) -> Any: ...


def make_deterministic(seed: int, threads: int) -> None:
    """Seeds every generator and fixes the thread count: same seed, threads and machine kind, same bytes."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # costs TRL's tiled loss four fifths of its time
    transformers.set_seed(seed)
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()  # of loading and saving; trainers keep theirs


def trainer_arguments(config: Optimisation, checkpoints: Path, seed: int) -> dict[str, Any]:
    """The arguments that a trainer's config takes from ours.

    Raises:
        ValueError: batch_size is no multiple of micro_batch_size, or `keep` is unknown.
    """
    if config.batch_size % config.micro_batch_size:
        below = max(size for size in range(1, config.micro_batch_size + 1) if config.batch_size % size == 0)
        raise ValueError(
            f"batch_size {config.batch_size} is no multiple of micro_batch_size {config.micro_batch_size}: "
            f"set micro_batch_size to {below}, or batch_size to {config.micro_batch_size * (config.batch_size // config.micro_batch_size + 1)}"
        )
    if config.keep not in ("last", "best"):
        raise ValueError(f"keep: expected last or best, found {config.keep!r}")
    return {
        "output_dir": str(checkpoints),
        "seed": seed,
        "data_seed": seed,
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.micro_batch_size,
        "per_device_eval_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": config.batch_size // config.micro_batch_size,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_fraction,  # below 1, transformers takes it as a share of all steps
        "weight_decay": config.weight_decay,
        "adam_beta2": config.adam_beta2,
        "max_grad_norm": config.max_grad_norm,
        "bf16": config.bf16,
        "activation_checkpointing": config.gradient_checkpointing,
        "eval_strategy": "steps",
        "eval_steps": config.evaluate_every,
        "save_strategy": "steps",
        "save_steps": config.evaluate_every,
        "save_total_limit": 2,
        "load_best_model_at_end": config.keep == "best",
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        # so that no window of a logged mean lies across a checkpoint, and a resumed run logs the same
        "logging_steps": math.gcd(10, config.evaluate_every),
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
    }


def train(trainer: "Trainer", checkpoints: Path) -> None:
    """Trains, from the last checkpoint if a killed attempt left one.

    Raises:
        FloatingPointError: the loss became NaN or infinite.
        ValueError: the best checkpoint is wanted, and no validation lies within the steps; or one process sees several GPUs.
    """
    from transformers.trainer_utils import get_last_checkpoint

    if trainer.args.n_gpu > 1:
        raise ValueError(
            f"one process sees {trainer.args.n_gpu} GPUs, and each would take micro_batch_size rows: set CUDA_VISIBLE_DEVICES to one of them"
        )
    trainer.add_callback(_require_validation())
    trainer.add_callback(_stop_when_not_finite())
    trainer.add_callback(_same_order_when_resumed(checkpoints))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)))


def _same_order_when_resumed(checkpoints: Path) -> Any:
    """Grouping by length draws an epoch's order from the global generator, which a checkpoint holds as it is later, in mid-epoch."""
    import torch
    from transformers import TrainerCallback

    class SameOrderWhenResumed(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            file = checkpoints / f"order_of_epoch_{int(state.epoch or 0)}.pt"
            if file.exists():
                torch.set_rng_state(torch.load(file, weights_only=True))
                return
            partial = file.with_suffix(".partial")
            partial.parent.mkdir(parents=True, exist_ok=True)
            torch.save(torch.get_rng_state(), partial)
            partial.replace(file)

    return SameOrderWhenResumed()


def _require_validation() -> Any:
    from transformers import TrainerCallback

    class RequireValidation(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if args.load_best_model_at_end and state.max_steps < args.eval_steps:
                raise ValueError(
                    f"keep: best needs a validation to choose by, and evaluate_every {args.eval_steps} lies behind the last of "
                    f"{state.max_steps} steps: lower evaluate_every, or keep: last"
                )

    return RequireValidation()


def _stop_when_not_finite() -> Any:
    from transformers import TrainerCallback

    class StopWhenNotFinite(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
            loss = (logs or {}).get("loss", 0.0)
            if not math.isfinite(float(loss)):
                raise FloatingPointError(
                    f"the loss is {loss} at step {state.global_step}: lower learning_rate or max_grad_norm, or look for a broken row"
                )

    return StopWhenNotFinite()


def curve_rows(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """A trainer's log history as one row for each step, without what differs from run to run: times, rates, TRL's count of tokens
    (which starts again where a run resumes), and what is None.
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


def write_curve(path: Path, rows: Sequence[Mapping[str, float]], run: "Run") -> None:
    """Writes a training curve as CSV (`step`, then a column for each metric) and logs it step by step."""
    import pandas

    columns = ["step", *sorted({name for row in rows for name in row} - {"step"})]
    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows, columns=columns).to_csv(path, index=False, lineterminator="\n")
    for row in rows:
        run.log_metrics({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))


def save_policy(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Writes a model folder that transformers, vLLM and others load: safetensors, tokenizer, chat template, generation config."""
    from transformers import GenerationConfig

    from stages.models.chat import end_of_turn_id

    end = end_of_turn_id(tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = end
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        eos_token_id=end, pad_token_id=tokenizer.pad_token_id, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def lora_config(config: Lora, head: str | None = None) -> "LoraConfig | None":
    """The adapter that a trainer is to train: on every linear layer but the output; None for full training.

    head: of a classifier, the layer that is new and so trained in full.

    Raises:
        ValueError: `lora_output` is unknown.
    """
    if config.lora_output not in ("merged", "adapter"):
        raise ValueError(f"lora_output: expected merged or adapter, found {config.lora_output!r}")
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
    """The model that was trained, an adapter merged into its base, for whatever loads the folder to need no other.

    With `lora_output: adapter` it is kept as well, in `folder`/adapter, where serving engines and peft find it.
    """
    if not config.lora_rank:
        return model
    if config.lora_output == "adapter":
        model.save_pretrained(folder / "adapter")
    return model.merge_and_unload()


def save_trained(model: Any, tokenizer: "PreTrainedTokenizerBase", folder: Path, config: Lora) -> None:
    """Writes what was trained as a policy's folder, an adapter merged into its base."""
    save_policy(merged(model, folder, config), tokenizer, folder)
