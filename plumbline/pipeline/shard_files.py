"""Completions between stages: a table in shards, each a Parquet file of whole prompts, which is written and read alone.

A table is a folder of files `000000.parquet`, `000001.parquet`, … Every file has the same columns (`COLUMNS`), so that pandas, Hugging Face
`datasets` or DuckDB read the folder as one table. What no column can hold (another key, a null, a value of another type) stands in the column
`more` as JSON text. So reading a row gives back exactly what was written, whatever the data bring along.

The same rows give the same bytes with the same version of pyarrow, which requirements.lock pins: nothing in a file depends on time, machine or
the number of threads.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.pipeline.records import chunked, replacing_path

if TYPE_CHECKING:
    import pyarrow

SUFFIX = ".parquet"
MORE = "more"
INT32, INT64 = 2**31, 2**63

Fits = Callable[[Any], bool]


def _is_messages(value: Any) -> bool:
    return type(value) is list and all(
        type(turn) is dict and len(turn) == 2 and type(turn.get("role")) is str and type(turn.get("content")) is str
        for turn in value
    )


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_integer(value: Any) -> bool:
    return type(value) is int and -INT64 <= value < INT64


COLUMNS: Mapping[str, tuple[str, Fits]] = {
    "id": ("text", _is_text),
    "index": ("integer", _is_integer),
    "prompt": ("messages", _is_messages),
    "completion": ("messages", _is_messages),
    "finished": ("truth", lambda value: type(value) is bool),
    "tokens": ("integer", _is_integer),
    "ids": ("ids", lambda value: type(value) is list and all(type(one) is int and 0 <= one < INT32 for one in value)),
    "policy": ("text", _is_text),
    "logp": ("number", lambda value: type(value) is float and math.isfinite(value)),
    "family": ("text", _is_text),
    "language": ("text", _is_text),
}
"""A column's name → its type, and whether a value fits it. Every column may be empty."""


def write_shard(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a shard; it appears under its name when it is complete.

    Raises:
        ValueError: a row holds what JSON has no form for, such as NaN.
    """
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([_cells(row) for row in rows], schema=_schema())
    with replacing_path(file) as temporary:
        parquet.write_table(table, temporary, version="2.6", compression="zstd", compression_level=3)


def read_shard(file: Path) -> list[dict[str, Any]]:
    """The rows of a shard, as they were written."""
    from pyarrow import parquet

    return [_row(cells) for cells in parquet.ParquetFile(file).read().to_pylist()]


def shard_name(number: int) -> str:
    """The file name of a table's shard; from the millionth on it is longer, so that names in order are first ordered by their length."""
    return f"{number:06d}{SUFFIX}"


def shard_paths(folder: Path) -> list[Path]:
    """The files of a table, in order.

    Raises:
        ValueError: the folder holds no table.
    """
    files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda file: (len(file.stem), file.stem))
    if not files:
        raise ValueError(
            f"expected a table at {folder}, a folder of {SUFFIX} files, found none there. `dvc repro` makes it; completions that an earlier "
            "version of Plumbline wrote as JSON Lines have to be made again"
        )
    return files


def read_shards(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """The rows of a table, one shard in memory at a time; raises as `shard_paths`."""
    return map(read_shard, shard_paths(folder))


def read_table(folder: Path) -> list[dict[str, Any]]:
    """All rows of a table; for small ones. Raises as `shard_paths`."""
    return [row for rows in read_shards(folder) for row in rows]


def read_groups(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """The rows of one prompt (`id`) after another, which stand together and in one shard; raises as `shard_paths`."""
    return (group for rows in read_shards(folder) for group in groups_of(rows))


def read_prompts(folder: Path, prompts: int) -> Iterator[list[list[dict[str, Any]]]]:
    """Shard by shard, the rows of each of the first `prompts` prompts (0: all); raises as `shard_paths`."""
    taken = 0
    for rows in read_shards(folder):
        groups = [*islice(groups_of(rows), prompts - taken if prompts else None)]
        taken += len(groups)
        yield groups
        if prompts and taken == prompts:
            return


def groups_of(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of one prompt (`id`) after another, which stand together."""
    return ([*group] for _, group in groupby(rows, key=lambda row: row["id"]))


def count_rows(folder: Path) -> int:
    """The number of rows of a table, which the files state without being read; raises as `shard_paths`."""
    from pyarrow import parquet

    return sum(parquet.read_metadata(file).num_rows for file in shard_paths(folder))


def write_table(folder: Path, rows: Iterable[dict[str, Any]], shard_prompts: int) -> None:
    """Writes rows as a table, `shard_prompts` prompts in each shard. The rows of a prompt (`id`) have to be adjacent.

    Without rows there is one empty shard, so that an empty table is not a missing one.
    """
    written = 0
    for written, shard in enumerate(chunked(groups_of(rows), shard_prompts), 1):
        write_shard(folder / shard_name(written - 1), [row for group in shard for row in group])
    if not written:
        write_shard(folder / shard_name(0), [])


def _schema() -> "pyarrow.Schema":
    import pyarrow

    turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    types = {
        "text": pyarrow.string(),
        "integer": pyarrow.int64(),
        "truth": pyarrow.bool_(),
        "number": pyarrow.float64(),
        "ids": pyarrow.list_(pyarrow.int32()),
        "messages": pyarrow.list_(turn),
    }
    return pyarrow.schema([(name, types[kind]) for name, (kind, _) in COLUMNS.items()] + [(MORE, pyarrow.string())])


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's values by column; what fits none of them as JSON text under `more`."""
    cells = {name: value for name, value in row.items() if name in COLUMNS and COLUMNS[name][1](value)}
    if len(cells) < len(row):
        others = {name: value for name, value in row.items() if name not in cells}
        cells[MORE] = json.dumps(others, ensure_ascii=False, allow_nan=False)
    return cells


def _row(cells: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: value for name, value in cells.items() if value is not None}
    return row | json.loads(row.pop(MORE)) if MORE in row else row
