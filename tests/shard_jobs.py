"""Work by shards for tests of workers, which have to import it; it notes who computes what."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plumbline.pipeline.processes import cores
from plumbline.pipeline.shard_work import write_counts
from plumbline.pipeline.shard_workers import Compute


def note(file: Path, *words: object) -> None:
    """Adds a line to a file, which several processes may do at once."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{' '.join(map(str, words))}\n".encode())
    os.close(descriptor)


def notes(file: Path, first: str) -> list[list[str]]:
    """What follows `first` in the lines that begin with it."""
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [line[1:] for line in lines if line[0] == first]


@contextmanager
def doubling(
    file: Path,
    seconds: float = 0.0,
    deadly: int | None = None,
    deaths: int = 0,
    wrong: int | None = None,
    endless: int | None = None,
) -> Iterator[Compute]:
    """Doubles items.

    file: of the notes: `setup <process>`, `cores <their number>`, `begin <shard> <process> <its parent>`, `end <shard>`.
    seconds: that each shard takes. deadly: a shard that kills its worker, so many times. wrong: a shard that raises an error. endless:
    the first shard of those that have no end.
    """
    note(file, "setup", os.getpid())
    note(file, "cores", cores())

    def compute(number: int, item: Any, shard: Path) -> None:
        note(file, "begin", number, os.getpid(), os.getppid())
        (shard / "half").write_text("half")
        time.sleep(seconds if endless is None or number < endless else 3600)
        if number == deadly and len([line for line in notes(file, "begin") if line[0] == str(number)]) <= deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == wrong:
            raise ValueError(f"expected an item that can be doubled, found {item}")
        (shard / "item").write_text(f"{item} {2 * item}\n")
        write_counts(shard, {"items": 1, "sum": 2 * item})
        note(file, "end", number)

    yield compute


@contextmanager
def elsewhere(folder: Path, file: Path) -> Iterator[Compute]:
    """As `doubling`, by a worker for which relative paths lie below `folder`, as on a machine with another disk."""
    os.chdir(folder)
    with doubling(file) as compute:
        yield compute
