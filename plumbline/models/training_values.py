"""How a model is trained: the schemas of the values that methods share, and what may be wrong with them."""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

from omegaconf import MISSING

from plumbline.pipeline.launcher import Launcher
from plumbline.pipeline.ranges import BELOW_ONE, COUNT, NOT_NEGATIVE, POSITIVE, outside

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
                f'optimiser: expected the library bitsandbytes for {self.optimiser}, found none. Install it (`pip install ".[gpu]"`), or set '
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
        rows_at_once = self.micro_batch_size * launcher.processes
        if min(self.batch_size, rows_at_once) < 1 or self.batch_size % rows_at_once == 0:
            return []
        above = rows_at_once * math.ceil(self.batch_size / rows_at_once)
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
