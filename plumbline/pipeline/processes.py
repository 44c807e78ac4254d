"""The processes of a stage: which of them this one is, and how many cores it may use. Nothing here imports a library as long as there is one.

A stage that trains may be launched in several (`launcher.py`), each of which runs the same program. The first process alone locks, tracks, prints,
writes and deletes. The others compute with it, and leave when nothing is left that takes them all. A stage may also have workers
(`shard_workers.py`), which are none of these: they run no stage, and compute what they are told.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

LAUNCHED = "PLUMBLINE_LAUNCHED"
"""Set for launched processes. RANK and its like alone do not say so: batch systems set them for jobs of one process, too."""

WORKER_CORES = "PLUMBLINE_WORKER_CORES"
"""Set for each worker: the cores that are its share of the machine."""

Found = TypeVar("Found")

PATIENCE = timedelta(hours=3)
"""How long processes wait for each other: the first may tokenise all rows meanwhile. A process that dies is noticed at once in any case."""


class ProcessEnded(RuntimeError):
    """A process or a worker of a stage has ended without an error of its own, such as by SIGKILL."""


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
    signal_when_parent_ends(signal.SIGKILL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that MLflow's run is closed: `fail`
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # open as long as the process lives


def signal_when_parent_ends(number: int) -> None:
    """Has the kernel send this process a signal when the thread ends that has started it; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


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


def as_first_finds(find: Callable[[], Found]) -> Found:
    """What `find` returns in the first process, which alone calls it; the others wait for that."""
    if not is_launched():
        return find()
    from accelerate.utils import broadcast_object_list

    found = [find() if is_first() else None]
    broadcast_object_list(found)
    return found[0]  # type: ignore[return-value]


def only_the_first_goes_on() -> None:
    """Ends the work of all processes but the first, when all have come here: what follows is done once.

    The others exit, or raise if they have not joined each other.

    Raises:
        OnlyTheFirst: in the others.
    """
    if is_launched():
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            if not is_first():
                # freed while the stack unwinds, DDP's reducer would wait for a thread of Gloo that in turn waits for the GIL
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
    if not is_first():
        raise OnlyTheFirst


# ---- cores --------------------------------------------------------------------------------------------------------------


def cores() -> int:
    """The number of processor cores that this process may use; a worker's share of them in a worker."""
    if share := os.environ.get(WORKER_CORES):
        return int(share)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def oversubscription(kind: str, count: int, threads: int) -> str:
    """A note on processes that have more threads together than this machine has cores; empty if there is nothing to note.

    kind: the key that says how many there are: processes of a launcher, workers of an engine.
    """
    if count == 1 or count * threads <= cores():
        return ""
    return (
        f"{count} {kind} of {threads} threads each share the {cores()} cores of this machine, which is slower than fewer: set {kind} to "
        f"{max(1, cores() // threads)}, or threads to {max(1, cores() // count)}"
    )
