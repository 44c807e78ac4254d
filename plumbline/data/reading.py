"""The rows of a source one by one, with their numbers: JSON Lines, JSON, CSV, Parquet and text, gzipped or not, and hub data sets.

What spoils one row (invalid JSON, invalid UTF-8, a ragged CSV line) becomes a `Fault` at that row, to be counted. What spoils a file
(missing, truncated gzip, the wrong encoding throughout) is a `DataError` that says what to do.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

from plumbline.data.csv_files import read_csv
from plumbline.data.decoding import decoded
from plumbline.data.faults import DataError, Fault, RowFault
from plumbline.data.files import SUFFIXES, find_files, read_lines, read_text, suffix_of
from plumbline.data.json_files import parse_line, read_json
from plumbline.data.schema import Source


class Item(NamedTuple):
    """A row as read: its file, its number there from 1, and its content: JSON that is not parsed yet, an object or a fault."""

    file: str
    row: int
    content: bytes | dict[str, Any] | Fault


def parsed(item: Item) -> dict[str, Any] | Fault:
    """The content of an item as an object, its columns named and decoded as the data conf and the formats expect them."""
    content = parse_line(item.content) if isinstance(item.content, bytes) else item.content
    try:
        return content if isinstance(content, Fault) else decoded(content)
    except RowFault as error:
        return error.fault


def read_source(source: Source, inputs: Path, line_mib: int = 16) -> Iterator[Item]:
    """The rows of a source in order, from the row after `skip`, at most `limit` of them."""
    if source.hub is not None:
        items = _read_hub(source)
    else:
        paths = find_files(source, inputs)
        items = (
            item
            for path in paths
            for item in read_file(path, normalize("NFC", path.relative_to(inputs).as_posix()), source.encoding, line_mib)
        )
    end = None if source.limit is None else source.skip + source.limit
    yield from islice(items, source.skip, end)


def read_file(path: Path, name: str, encoding: str = "utf-8", line_mib: int = 16) -> Iterator[Item]:
    """The rows of one file, called `name` in provenance; a DataError if the file as a whole cannot be read."""
    suffix = suffix_of(path)
    if suffix is None:
        raise DataError(f"{name}: expected a file ending in {' '.join(SUFFIXES)} (or .gz of these), found '{path.name}'.")
    count = 0
    try:
        for number, content in _READERS[suffix](path, name, encoding, line_mib):
            count += 1
            yield Item(name, number, content)
    except PermissionError as error:
        raise DataError(f"{name}: expected a readable file, found one without read permission. Change it with chmod.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{name}: expected a complete gzip file, found it broken after row {count} ({error}). Fetch it again."
        ) from error
    if count == 0:
        raise DataError(f"{name}: expected rows, found an empty file. Remove it from `files`, or fetch it again.")


def _read_parquet(path: Path, name: str, encoding: str, line_mib: int) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if repeated := sorted({column for column in columns if columns.count(column) > 1}):
                raise DataError(f"{name}: expected each column once, found {repeated} twice. Rename a column.")
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{name}: expected a Parquet file, found {(str(error) or type(error).__name__).splitlines()[0]} after row {number}."
        ) from error


_READERS: dict[str, Callable[[Path, str, str, int], Iterator[tuple[int, Any]]]] = {
    ".jsonl": read_lines,
    ".ndjson": read_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": _read_parquet,
    ".txt": read_text,
}


def _read_hub(source: Source) -> Iterator[Item]:
    from datasets import load_dataset

    if Path(str(source.hub)).exists():
        raise DataError(
            f"hub data set '{source.hub}': expected a hub id, found a local path. List it under `files`, below `inputs`."
        )
    try:
        rows = load_dataset(
            source.hub, source.subset, data_dir=source.folder, split=source.split, revision=source.revision, streaming=True
        )
        for number, row in enumerate(rows, 1):
            yield Item(f"{source.hub}@{source.revision}", number, row)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"hub data set '{source.hub}' ({source.subset or 'default'}, {source.folder or 'all folders'}, {source.split}, "
            f"{source.revision}): expected rows, found {reason}. Check id, subset, folder, split and revision, the network, and that "
            "HF_HUB_OFFLINE is not set."
        ) from error
