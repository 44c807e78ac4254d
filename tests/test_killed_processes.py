"""Every method that trains, as its stage, in two processes: either may be killed, and the next run gives the model of an undisturbed one.

Here a forkserver that has imported the libraries starts the processes, with the variables that the launcher would set; test_launcher_processes.py has
the launcher itself do it.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from launched_project import NODES, Project, command

from plumbline.pipeline.processes import LAUNCHED
from plumbline.pipeline.resuming import SEAL
from plumbline.pipeline.warm_process import IMPORTED

pytestmark = pytest.mark.slow

FORKS = multiprocessing.get_context("forkserver")
ALSO_IMPORTED = (
    "transformers.models.llama.modeling_llama", "trl.experimental.orpo", "trl.trainer.grpo_trainer", "trl.trainer.kto_trainer",
    "trl.trainer.rloo_trainer",
)  # fmt: skip
PATIENCE_SECONDS = 30.0
"""How long a process may take to end on SIGTERM, as with the launcher."""
Death = Callable[[], None]
"""Prepares the death of the process that calls it."""


# ---- how a process dies -------------------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_the_step_after(checkpoint: int) -> None:
    """Dies in the step that follows a checkpoint, when the other process has got so far, too, but cannot get to the next checkpoint."""
    from transformers import Trainer

    from plumbline.methods.online.ppo.trainer import PpoTrainer

    end_step, roll_out = Trainer._maybe_log_save_evaluate, PpoTrainer.roll_out

    def of_trainer(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if self.state.global_step == checkpoint + 1:
            die()
        return end_step(self, *arguments, **keywords)

    def of_ppo(self: Any, number: int) -> Any:
        gathered = roll_out(self, number)
        if number == checkpoint:  # counted from 0
            die()
        return gathered

    Trainer._maybe_log_save_evaluate, PpoTrainer.roll_out = of_trainer, of_ppo  # type: ignore[method-assign]


def die_while_it_writes(checkpoint: int) -> None:
    """Dies when half of the optimiser's state is in a checkpoint."""
    import torch

    write = torch.save

    def half(value: Any, path: Any, *arguments: Any, **keywords: Any) -> None:
        write(value, path, *arguments, **keywords)
        if Path(path).parent.name == f"checkpoint-{checkpoint}" and Path(path).name in ("optimizer.pt", "ppo.pt"):
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    torch.save = half


# ---- two processes ------------------------------------------------------------------------------------------------------


def be_stage(arguments: list[str], environment: dict[str, str], folder: Path, log: Path, death: Death | None) -> None:
    """Is one process of a stage: `arguments` as for `python -m`."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # SIGKILL would take along what is buffered
    if death:
        death()
    sys.argv[:] = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def end_together(processes: Sequence[BaseProcess]) -> None:
    """Waits until processes have ended. If one fails, the others get SIGTERM, as from the launcher."""
    while alive := [process for process in processes if process.exitcode is None]:
        wait([process.sentinel for process in alive])
        if any(process.exitcode for process in processes):
            for process in alive:
                process.terminate()
                process.join(PATIENCE_SECONDS)
                process.kill()


class Killable:
    """A project whose stages run in two forks."""

    def __init__(self, folder: Path) -> None:
        self.project = Project(folder)

    def run(self, name: str, rank: int = 0, death: Death | None = None) -> tuple[int | None, str]:
        """Runs a node in two processes, in one of which a death is prepared; returns that one's exit status, and what the first printed."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        both = [self.process(name, index, port, death if index == rank else None) for index in range(2)]
        for process in both:
            process.start()
        end_together(both)
        return both[rank].exitcode, self.log(0).read_text()

    def process(self, name: str, index: int, port: str, death: Death | None) -> BaseProcess:
        arguments, node = command(name)
        variables = {
            LAUNCHED: "1", "RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "DVC_STAGE": node,
        }  # fmt: skip
        stage = ([*arguments, "launcher=ddp_cpu"], {**os.environ, **variables}, self.project.folder, self.log(index), death)
        return FORKS.Process(target=be_stage, args=stage, daemon=True)

    def log(self, index: int) -> Path:
        return self.project.folder / f"process-{index}.log"

    def logs(self) -> str:
        return "\n".join(self.log(index).read_text()[-3000:] for index in range(2))

    def made(self, name: str) -> list[bytes]:
        """The weights and the curve that a node has written."""
        curve = self.project.folder / f"artifacts/curves/{NODES[name][0]}/{name}.csv"
        return [(self.project.made(name) / "model.safetensors").read_bytes(), curve.read_bytes()]


@pytest.fixture(scope="module")
def killable(tmp_path_factory: pytest.TempPathFactory) -> Killable:
    FORKS.set_forkserver_preload([*IMPORTED, *ALSO_IMPORTED])
    return Killable(tmp_path_factory.mktemp("killable"))


def resumes(said: str, step: int) -> bool:
    """Whether a process has said that it resumes from the checkpoint of a step."""
    return any(line.startswith("Training resumes from ") and line.endswith(f"/checkpoint-{step}") for line in said.splitlines())


@pytest.mark.parametrize("name", [*NODES])
def test_either_process_is_killed_and_the_resumed_model_is_that_of_an_undisturbed_run(name: str, killable: Killable) -> None:
    """The second dies in the step after a checkpoint. Then the first dies while it writes the next one, which nobody may read."""
    first, second = (1, 2) if name == "ppo" else (2, 4)
    assert killable.run(name, 1, partial(die_in_the_step_after, first))[0] == -signal.SIGKILL, killable.logs()
    status, said = killable.run(name, 0, partial(die_while_it_writes, second))
    assert status == -signal.SIGKILL, killable.logs()
    assert resumes(said, first)
    status, said = killable.run(name)
    assert status == 0, killable.logs()
    assert f"checkpoint-{second} cannot be used and is deleted: expected {SEAL}, which is written last, found none\n" in said
    assert resumes(said, first)
    resumed = killable.made(name)
    assert killable.run(name)[0] == 0, killable.logs()
    assert resumed == killable.made(name)
