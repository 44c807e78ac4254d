"""Which of a stage's processes this one is. A stage that trains may be launched in several, each of which runs the same program.

The first process alone locks, tracks, prints, writes and deletes. The others compute with it, and leave when nothing is left that takes them all.
`launcher.py` starts the processes; without it there is one, and nothing here imports a library.
"""

import ctypes
import os
import signal
import sys
from datetime import timedelta

LAUNCHED = "PLUMBLINE_LAUNCHED"
"""Set for launched processes. RANK and its like alone do not say so: batch systems set them for jobs of one process, too."""

PATIENCE = timedelta(hours=3)
"""How long processes wait for each other: the first may tokenise all rows meanwhile. A process that dies is noticed at once in any case."""


class OnlyTheFirst(BaseException):
    """Ends the work of a process that is not needed any more; `executing` catches it."""


def is_launched() -> bool:
    """Whether a launcher has started this process."""
    return LAUNCHED in os.environ


def count() -> int:
    """The number of processes that this stage runs in."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def count_here() -> int:
    """The number of them on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if is_launched() else 1


def index() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if is_launched() else 0


def is_first() -> bool:
    """Whether this is the process that locks, tracks and writes."""
    return index() == 0


def sharded() -> bool:
    """Whether each process holds a part of the model only."""
    return is_launched() and any(os.environ.get(f"ACCELERATE_USE_{engine}") == "true" for engine in ("FSDP", "DEEPSPEED"))


def begin() -> None:
    """Makes a launched process one of several: it ends with its launcher, shuts down cleanly on SIGTERM, and prints if it is the first."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that MLflow's run is closed: `fail`
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # open as long as the process lives


def join() -> None:
    """Connects a launched process with the others and chooses its GPU; before any model is loaded."""
    if is_launched():
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def fail() -> None:
    """Lets the first process say why it fails, if another fails before it: its launcher sends SIGTERM to the others of a failed one."""
    if is_launched() and is_first():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def wait_for_all() -> None:
    """Waits until all processes have come here."""
    if is_launched():
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def only_the_first_goes_on() -> None:
    """Ends the work of all processes but the first, when all have come here: what follows is done once.

    Raises:
        OnlyTheFirst: in the others.
    """
    if is_launched():
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if not is_first():
        raise OnlyTheFirst
