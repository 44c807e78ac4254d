"""Work that is done shard by shard: a shard is computed alone, appears whole or not at all, and is not computed again after a crash.

A shard's results are files in a folder of its own below the stage's checkpoints (checkpoints.py), which belong to one computation and no other.
It is computed in a folder of another name, and renamed when it is complete: a killed stage loses the shard that it was at. When all are there,
`as_table` and `as_lines` make the stage's outputs of them, and `counts` sums up what they counted.

Nothing here asks where a shard is computed. Whoever computes it, in whatever order, has to write the same files: what is drawn at random depends on
the seed and on the number of a row in the whole table (plumbline/models/uniforms.py), never on another shard.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from plumbline.pipeline.records import read_json, replacing_path, write_json
from plumbline.pipeline.shard_files import shard_name

Item = TypeVar("Item")

COUNTS = "counts.json"
"""What a shard counted, in its folder: names → numbers that may be summed."""


def by_shard(
    folder: Path, items: Iterable[Item], compute: Callable[[int, Item, Path], None], *, afresh: bool = False
) -> list[Path]:
    """Computes a shard from each item, except those that are there already, and returns the shards' folders in order.

    folder: below the stage's checkpoints.
    compute: gets a shard's number from 0, its item, and the folder to write to.
    afresh: computes every shard, also those that an interrupted run has left.
    """
    if afresh:
        shutil.rmtree(folder, ignore_errors=True)
    shards = []
    for number, item in enumerate(items):
        shard = folder / f"{number:06d}"
        if not shard.is_dir():
            partial = folder / f"{number:06d}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            compute(number, item, partial)
            os.replace(partial, shard)
        shards.append(shard)
    return shards


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
