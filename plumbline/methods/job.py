"""What a method gets besides its values: what it learns from, and where its results go."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plumbline.pipeline.engine import Server

if TYPE_CHECKING:
    from plumbline.pipeline.tracking import Run

HERE, SERVER = SAMPLERS = ("here", "server")
"""What draws a method's completions: the training process | the server of the engine."""


@dataclass(frozen=True)
class Job(ABC):
    """One training run."""

    init: Path
    """The policy that training starts from, and the reference of the methods that have one."""
    output: Path
    """The folder to write the trained policy to; it does not exist yet."""
    curve: Path
    """The CSV file to write the training curve to."""
    checkpoints: Path
    """A folder that survives a crash; its name identifies the computation."""
    run: "Run"
    """The run in MLflow."""
    seed: int

    @property
    @abstractmethod
    def watched(self) -> Path:
        """The file of rows on whose prompts MLflow shows the policy in training."""


@dataclass(frozen=True)
class OfflineJob(Job):
    """Learning from rows."""

    signal: Path
    """A folder of demonstrations, preferences or labelled completions; for `merge`, another policy."""

    @property
    def watched(self) -> Path:
        return self.signal / "validation.jsonl"


@dataclass(frozen=True)
class OnlineJob(Job):
    """Learning from a reward of completions that the policy samples during training."""

    reward: Path
    """The folder of the reward."""
    prompts: Path
    """The file of the prompts to sample from."""
    server: Server | None = None
    """What draws the completions of a method with `sampler: server`."""

    @property
    def watched(self) -> Path:
        return self.prompts
