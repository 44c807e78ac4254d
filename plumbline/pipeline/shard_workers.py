"""Workers: processes, here or on other machines, each of which computes one shard after the other.

The stage's process gives out the shards, notes which are done, and starts another worker if one dies. A shard's number, its item and the path of its
folder go to a worker; the item is what the shard is computed from, such as a file, or in `sample` the rows of all its prompts. Nothing but an error
comes back: the results are in the shard's folder, which all machines have to see under the same path.

A shard is computed in a folder of its own for each attempt. If two workers come to complete one shard, because one of them only seemed dead, the
second finds it there.
"""

import errno
import importlib
import os
import pickle
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, suppress
from io import BytesIO
from operator import attrgetter
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import uuid4

from plumbline.pipeline.processes import WORKER_CORES, ProcessEnded
from plumbline.pipeline.records import flush_all

Compute = Callable[[int, Any, Path], None]
"""Computes a shard from its number and its item, and writes its files to the folder."""

Prepare = Callable[[], AbstractContextManager[Compute]]
"""Sets up whoever computes shards.

The stage's process leaves it when no more are to be computed. A worker never does, because it is killed: nothing that has to be kept may
wait for that.
"""

PARTIAL = ".partial"
"""How the names of folders end in which shards are being computed. Those of attempts that were killed stay until the stage has succeeded."""

ATTEMPT = ".attempt"
"""A file in such a folder, from the beginning of the attempt to its end."""

MOST_DEATHS = 3
"""Workers that a shard may end before the stage gives up."""

SEEN_SECONDS = 10.0
"""How long the folder of a shard that a worker has computed may take to be seen by the stage's process."""


class Task(NamedTuple):
    """A shard to be computed: its number, what it is computed from, and its folder."""

    number: int
    item: Any
    shard: Path


def compute_shard(compute: Compute, task: Task) -> None:
    """Computes a shard, unless it has appeared meanwhile.

    Raises:
        FileNotFoundError: the files of this attempt were deleted before it had ended.
    """
    if task.shard.is_dir():
        return
    partial = task.shard.with_name(f"{task.shard.name}.{uuid4().hex[:8]}{PARTIAL}")
    partial.mkdir(parents=True)
    attempt = partial / ATTEMPT
    attempt.touch()
    compute(task.number, task.item, partial)
    try:
        attempt.unlink()
    except FileNotFoundError as error:  # what is written after a deletion makes the folder again, without the files before it
        raise FileNotFoundError(
            f"expected the files of shard {task.number} in {partial} until it is complete, found that they were deleted meanwhile. Leave "
            ".checkpoints alone while a stage runs, and run again"
        ) from error
    flush_all(partial)
    try:
        os.replace(partial, task.shard)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(partial)  # another worker was faster


def lost_attempts(checkpoints: Path) -> int:
    """How many attempts to compute a shard came to nothing, in this run of a stage and in those before it; all lie below its checkpoints."""
    return sum(1 for _ in checkpoints.rglob(f"[0-9]*{PARTIAL}"))


# ---- in the stage's process ---------------------------------------------------------------------------------------------


def stage_threads() -> int:
    """The stage's threads; each worker has as many, and as many cores."""
    return int(os.environ.get("OMP_NUM_THREADS", "1"))  # set by `executing`


def for_workers() -> dict[str, str]:
    """Environment variables of all workers; the stage's process alone shows progress."""
    return {"TQDM_DISABLE": "1", WORKER_CORES: str(stage_threads())}


class WorkerDied(Exception):
    """A worker ended without an error of its own, such as by SIGKILL; the message says how."""


class Worker(Protocol):
    """A process that computes one shard at a time."""

    def submit(self, task: bytes) -> None:
        """Has a shard computed; returns at once."""

    def result(self) -> None:
        """Waits until the shard is computed.

        Raises:
            WorkerDied: the worker ended first.
            Exception: what computing the shard raised.
        """

    def kill(self) -> None:
        """Ends the worker, whatever it is doing."""


AnyWorker = TypeVar("AnyWorker", bound=Worker)


class WorkerPool(Protocol[AnyWorker]):
    """Starts workers, and knows which have something to say; left when none are needed any more."""

    def __enter__(self) -> "WorkerPool[AnyWorker]": ...

    def __exit__(self, *_: object) -> None: ...

    def start(self) -> AnyWorker:
        """Starts a worker, which sets itself up before its first shard."""

    def ready(self, busy: Collection[AnyWorker]) -> list[AnyWorker]:
        """Waits until one of the workers has computed its shard, has failed, or has died; returns all that have."""


def run_in_workers(tasks: Iterator[Task], pool: WorkerPool[Any], most: int) -> Iterator[Task]:
    """Has shards computed by at most so many workers, and gives each task when its shard is there.

    A task is taken when a worker is free for it, so that no more than `most` are held.

    Raises:
        ProcessEnded: a shard ended MOST_DEATHS workers.
        FileNotFoundError: a worker has computed a shard that is not to be seen here.
        Exception: what computing a shard raised.
    """
    from tqdm import tqdm

    deaths: Counter[int] = Counter()
    lost: list[Task] = []
    busy: dict[Any, Task] = {}
    idle: list[Any] = []
    try:
        while True:
            while len(busy) < most and (task := lost.pop() if lost else next(tasks, None)):
                worker = idle.pop() if idle else pool.start()
                busy[worker] = task
                worker.submit(pickled(task))
            while idle:  # no shard is left for them, and another worker may need their room
                idle.pop().kill()
            if not busy:
                return
            for worker in pool.ready(busy):
                task = busy[worker]
                try:
                    worker.result()  # of a worker whose shard raised an error, `finally` takes care
                except WorkerDied as death:
                    del busy[worker]
                    worker.kill()
                    deaths[task.number] += 1
                    if deaths[task.number] == MOST_DEATHS:
                        raise _gave_up(task, death) from death
                    tqdm.write(f"shard {task.number}: its worker died {death}; another computes it again", file=sys.stderr)
                    lost.append(task)
                else:
                    del busy[worker]
                    idle.append(worker)
                    _require_seen(task)
                    yield task
    finally:
        for worker in (*busy, *idle):
            worker.kill()


def _require_seen(task: Task) -> None:
    """Requires a shard that a worker has computed: a worker on another disk would compute every shard in vain."""
    deadline = time.monotonic() + SEEN_SECONDS
    while not task.shard.is_dir():
        if time.monotonic() > deadline:
            raise FileNotFoundError(
                f"expected shard {task.number} in {task.shard}, found none although a worker has computed it: the worker's machine has another "
                "disk under this path. All machines need the project's folder on one file system that they share (docs/scale.md)"
            )
        time.sleep(0.1)
        with suppress(FileNotFoundError):
            os.listdir(task.shard.parent)  # an NFS client remembers for a while that a folder was not there, unless it lists


def _gave_up(task: Task, death: WorkerDied) -> ProcessEnded:
    return ProcessEnded(
        f"expected shard {task.number} to be computed, found that {MOST_DEATHS} workers died of it, the last {death}. SIGKILL often means too little "
        "memory: lower `workers` in the file of conf/engine, or the stage's batch size or shard_prompts. Run again: the shards that are there stay"
    )


# ---- what goes from one process to another ------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    """Names functions and classes of a stage by its module: it runs as `__main__`, which is another module in a worker."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type | FunctionType) and value.__module__ == "__main__":
            spec = sys.modules["__main__"].__spec__
            if spec is not None:
                return _named, (spec.name, value.__qualname__)
        return NotImplemented


def _named(module: str, name: str) -> Any:
    return attrgetter(name)(importlib.import_module(module))


def pickled(value: Any) -> bytes:
    """A task or a `Prepare` as bytes, which `pickle.loads` reads in any process that finds the project's modules."""
    stream = BytesIO()
    _Pickler(stream).dump(value)
    return stream.getvalue()


class ShardRunner:
    """A worker's side: it computes shards by the function that `prepare` sets up, once, before the first."""

    def __init__(self, prepare: bytes) -> None:
        self.prepare = prepare
        self.setting: AbstractContextManager[Compute] | None = None
        self.compute: Compute | None = None

    def run(self, task: bytes) -> bytes:
        """Computes a shard; returns the error as bytes, which are empty without one."""
        try:
            if self.compute is None:
                self.setting = pickle.loads(self.prepare)()
                self.compute = self.setting.__enter__()
            compute_shard(self.compute, pickle.loads(task))
        except Exception as error:  # noqa: BLE001  the stage's process raises it
            return _error(error)
        return b""


def _error(error: Exception) -> bytes:
    """An error with the text of its traceback, which does not leave the process otherwise."""
    note = f"In a worker:\n{''.join(traceback.format_exception(error))}"
    error.add_note(note)
    try:
        pickle.loads(data := pickled(error))
    except Exception:  # noqa: BLE001  an error of any class may be one that cannot be pickled
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note(note)
        return pickled(plain)
    return data


def reraise(error: bytes) -> None:
    """Raises the error that `ShardRunner.run` returned, if there is one."""
    if error:
        raise pickle.loads(error)
