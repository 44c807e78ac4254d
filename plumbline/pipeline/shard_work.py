"""Work that is done shard by shard: a shard is computed alone, appears whole or not at all, and is not computed again after a crash.

A shard's results are files in a folder of its own below the stage's checkpoints (checkpoints.py), which belong to one computation and no other.
It is computed in a folder of another name, and renamed when it is complete: a killed stage loses the shard that it was at. When all are there,
`as_table` and `as_lines` make the stage's outputs of them, and `counts` sums up what they counted.

The engine (engine.py) says where shards are computed: in the stage's process, in several of this machine, or on a Ray cluster. Whoever computes a
shard, in whatever order, has to write the same files: what is drawn at random depends on the seed and on the number of a row in the whole table
(plumbline/models/uniforms.py), never on another shard.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

from plumbline.pipeline.engine import Engine, engine_lacks, fitted
from plumbline.pipeline.records import read_json, replacing_path, write_json
from plumbline.pipeline.shard_files import shard_name
from plumbline.pipeline.shard_workers import Compute, Prepare, Task, WorkerPool, compute_shard, run_in_workers

COUNTS = "counts.json"
"""What a shard counted, in its folder: names → numbers that may be summed."""


def by_shard(
    folder: Path,
    items: Iterable[Any],
    prepare: Prepare,
    engine: Engine | None = None,
    *,
    afresh: bool = False,
    draws: bool = False,
) -> list[Path]:
    """Computes a shard from each item, except those that are there already, and returns the shards' folders in order.

    folder: below the stage's checkpoints.
    prepare: sets up whoever computes, such as by loading a model, and gives the function that computes shards. Each process enters it once, and
    none does if every shard is there. Workers get it pickled: it has to be a function of a module with its arguments (`functools.partial`).
    engine: where shards are computed; without one in this process.
    afresh: computes every shard, also those that an interrupted run has left.
    draws: whether shards are completions, which a server of the engine draws: whoever asks it needs no GPU.

    Raises:
        ValueError: this machine lacks what the engine needs.
        ProcessEnded: a shard ended several workers, one after the other.
        FileNotFoundError: workers write to another disk than this machine's.
        Exception: what computing a shard raised, wherever that was.
    """
    if afresh:
        shutil.rmtree(folder, ignore_errors=True)
    shards: list[Path] = []
    missing = _missing(folder, items, shards)
    first = next(missing, None)
    if first is None:
        return shards
    if engine is None or engine.shards == "here":
        with prepare() as compute:
            for task in chain([first], missing):
                compute_shard(compute, task)
        return shards
    from tqdm import tqdm

    engine = fitted(engine, draws=draws)
    if complaints := [*engine_lacks(engine)]:
        raise ValueError(f"engine.{complaints[0]}")
    total = len(items) if isinstance(items, Sized) else None
    shard_count = sum(1 for _ in folder.glob("[0-9]*[0-9]"))
    with (
        _pool(engine, prepare) as pool,
        tqdm(desc=f"{engine.workers} workers", unit="shard", initial=shard_count, total=total) as bar,
    ):
        for _ in run_in_workers(chain([first], missing), pool, engine.workers):
            bar.update()
    return shards


def only_here(compute: Compute) -> Prepare:
    """Sets up nothing: for shards that only the stage's own process computes."""
    return lambda: nullcontext(compute)


def _missing(folder: Path, items: Iterable[Any], shards: list[Path]) -> Iterator[Task]:
    """The shards that are to be computed; every shard's folder is added to `shards` on the way."""
    for number, item in enumerate(items):
        shard = folder / f"{number:06d}"
        shards.append(shard)
        if not shard.is_dir():
            yield Task(number, item, shard)


def _pool(engine: Engine, prepare: Prepare) -> WorkerPool[Any]:
    if engine.shards == "ray":
        from plumbline.pipeline.ray_workers import RayPool

        return RayPool(prepare, engine.gpus, engine.node_wait_seconds)
    from plumbline.pipeline.process_workers import LocalPool

    return LocalPool(prepare, engine.gpus)


def as_table(shards: Sequence[Path], file: str, folder: Path) -> None:
    """Makes a table (shard_files.py) of the Parquet file of that name in each shard.

    The files are linked, not moved: a crash before the stage has ended must not take them from the checkpoints.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(shards):
        target = folder / shard_name(number)
        try:
            os.link(shard / file, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(shard / file, target)


def as_lines(shards: Sequence[Path], file: str, path: Path) -> None:
    """Makes one file of lines of the file of that name in each shard; it appears when it is complete."""
    with replacing_path(path) as temporary, temporary.open("wb") as whole:
        for shard in shards:
            with (shard / file).open("rb") as part:
                shutil.copyfileobj(part, whole)


def write_counts(shard: Path, counted: Mapping[str, float]) -> None:
    """Writes what a shard counted; all shards of a stage count the same things."""
    write_json(shard / COUNTS, dict(counted))


def counts(shards: Iterable[Path]) -> dict[str, Any]:
    """What all shards counted, summed in their order; empty without shards."""
    total: dict[str, Any] = {}
    for shard in shards:
        for name, number in read_json(shard / COUNTS).items():
            total[name] = total.get(name, 0) + number
    return total
