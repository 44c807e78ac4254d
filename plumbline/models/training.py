"""A training: the arguments of transformers' and TRL's trainers, the run itself, and the checkpoint that it goes on from."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.models.training_values import Optimisation, Validated
from plumbline.pipeline import processes
from plumbline.pipeline.records import read_json
from plumbline.pipeline.resuming import damage, last_checkpoint, seal

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

CHECKPOINTS = 2
"""How many are kept, the best among them where that is wanted."""


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
        "save_total_limit": None,  # `seal_checkpoints` deletes the old ones
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
    trainer.add_callback(seal_checkpoints())
    for callback in callbacks:
        trainer.add_callback(callback)
    last = last_checkpoint(checkpoints, partial(_complaint, keeps_best=trainer.args.load_best_model_at_end))
    trainer.train(resume_from_checkpoint=str(last) if last else None)


def _complaint(checkpoint: Path, *, keeps_best: bool) -> str:
    """Why a trainer cannot resume from a checkpoint, as `damage`: also if a process has left no random state, or without the best one so far."""
    if wrong := damage(checkpoint):
        return wrong
    count = processes.count()
    for name in ["rng_state.pth"] if count == 1 else [f"rng_state_{number}.pth" for number in range(count)]:
        if not (checkpoint / name).is_file():
            return f"expected a file {name}, found none"
    best = read_json(checkpoint / "trainer_state.json")["best_model_checkpoint"] if keeps_best else None
    if best and (wrong := damage(checkpoint.parent / Path(best).name)):
        return f"its best checkpoint so far is {Path(best).name}: {wrong}"
    return ""


def seal_checkpoints() -> Any:
    """A callback that completes a checkpoint when all processes have written it, and then deletes all but the last two and the best.

    The trainer would delete (`save_total_limit`) before the new checkpoint is complete: a process killed in between would leave only the one before,
    without the best one that it needs.
    """
    from transformers import TrainerCallback
    from transformers.trainer_utils import rotate_checkpoints

    class SealCheckpoints(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            processes.wait_for_all()
            if processes.is_first():
                seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
                rotate_checkpoints(args.output_dir, CHECKPOINTS, state.best_model_checkpoint)

    return SealCheckpoints()


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
