"""Policies kept during training: what optimisation did, step by step, can then be measured (stage `overoptimisation`).

A kept policy lies among the checkpoints until training is done, so that it survives a crash, and is then copied to `artifacts/steps/<entry>/<step>`.
Keeping changes nothing that is trained: the policy is copied before it is merged, rounded and written. The copy is in the machine's memory and takes
none of a GPU's. It is on the disk before a checkpoint of its step or of a later one is, so that none is missing where training goes on.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from plumbline.methods.job import Job
from plumbline.models.adapters import copied, merged
from plumbline.models.saving import save_policy
from plumbline.models.training_values import Lora
from plumbline.pipeline.launcher import Launcher
from plumbline.pipeline.records import flush, flush_all, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

FOLDER = "kept"
LISTING = "steps.json"
"""The file that lists the kept steps, so that the output exists if there are none."""


@dataclass
class Kept(Lora):
    """The field of methods whose policy can be kept during training."""

    keep_steps: list[int] = MISSING  # steps after which it is kept, and the last one with them; []: none

    def keeping_problems(self) -> list[str]:
        """What is wrong with these values; empty if nothing is."""
        if self.keep_steps == sorted({*self.keep_steps}) and all(step >= 1 for step in self.keep_steps):
            return []
        return [f"keep_steps: expected different numbers of steps from 1 up, in rising order, found {self.keep_steps}"]

    def sharding_problems(self, launcher: Launcher) -> list[str]:
        """What does not fit a launcher; empty if all does."""
        if not (self.keep_steps and launcher.shards):
            return []
        return [
            f"keep_steps: expected [] with a launcher that shards the weights, found {self.keep_steps}. Choose ddp, or keep no steps"
        ]


def require_within(keep_steps: Sequence[int], steps: int) -> None:
    """Refuses steps that training does not reach.

    Raises:
        ValueError: there is such a step.
    """
    if keep_steps and max(keep_steps) > steps:
        raise ValueError(
            f"keep_steps: expected steps up to the last one, {steps}, found {max(keep_steps)}. Lower it, or train longer"
        )


def keep(model: Any, tokenizer: "PreTrainedTokenizerBase", job: Job, config: Lora, step: int) -> None:
    """Writes a copy of the policy in training among the checkpoints of `job`, as the policy after `step` steps."""
    from plumbline.models.loading import as_saved

    folder, partial = job.checkpoints / FOLDER / str(step), job.checkpoints / FOLDER / f".{step}"
    for leftover in (folder, partial):  # of an attempt that was interrupted
        shutil.rmtree(leftover, ignore_errors=True)
    save_policy(as_saved(merged(copied(model), partial, config), job.init), tokenizer, partial)
    flush_all(partial)
    partial.rename(folder)
    flush(folder.parent)


def keeping(trainer: "Trainer", job: Job, config: Kept) -> "list[TrainerCallback]":
    """The callback that keeps the policy of one of transformers' trainers, in a list; empty if no step is to be kept."""
    from transformers import TrainerCallback

    if not config.keep_steps:
        return []

    class Keeping(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            require_within(config.keep_steps, state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (*config.keep_steps, state.max_steps) and state.is_world_process_zero:
                tokenizer: Any = trainer.processing_class
                keep(kwargs["model"], tokenizer, job, config, state.global_step)

    return [Keeping()]


def write_kept(checkpoints: Path, output: Path, keep_steps: Sequence[int]) -> None:
    """Copies the kept policies from among the checkpoints to an output folder, beside a list of their steps.

    Raises:
        FileNotFoundError: the policy of one of `keep_steps` is not there.
    """
    folders = {int(folder.name): folder for folder in (checkpoints / FOLDER).glob("[0-9]*")}
    if missing := sorted({*keep_steps} - {*folders}):
        raise FileNotFoundError(
            f"keep_steps: expected the policies after steps {', '.join(map(str, keep_steps))} in {checkpoints / FOLDER}, found none after "
            f"{', '.join(map(str, missing))}. They were deleted during training: delete {checkpoints}, and run again"
        )
    for step, folder in folders.items():
        shutil.copytree(folder, output / str(step))
    write_json(output / LISTING, {"steps": sorted(folders)})
