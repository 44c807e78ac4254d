"""Files of records, JSON and JSON Lines, written whole or not at all.

A file appears under its name only when it is complete and on the disk (temporary file, `flush`, then `os.replace`): a crash or a power cut leaves
the old one, and the cache, which may share the file by reflink or hardlink, is never written through.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, TypeVar

Item = TypeVar("Item")


@contextmanager
def replacing(path: str | Path) -> Iterator[TextIO]:
    """Opens a text file for writing that takes `path`'s place when the block ends without an error."""
    with replacing_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        yield file


@contextmanager
def replacing_path(path: str | Path) -> Iterator[Path]:
    """A path to write a file to, which takes `path`'s place when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Has a file, or the names in a folder, written to the disk: after a power cut, a renamed file may be there that is still empty."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(folder: Path) -> None:
    """Has everything in a folder written to the disk, before it is renamed or declared complete."""
    for path in (*folder.rglob("*"), folder):
        flush(path)


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Reads one JSON object a line.

    Raises:
        ValueError: a line is not a JSON object; the message names file and line.
    """
    return [*stream_jsonl(path)]


def stream_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """As `read_jsonl`, one row after another."""
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: expected a JSON object, found {line[:80]!r} ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
            yield row


def read_rows(path: str | Path, columns: Sequence[str], reader: str) -> list[dict[str, Any]]:
    """Reads rows that all have these columns, and at least one.

    Raises:
        ValueError: a row lacks one, so that the file is of another kind than the reader (a method's name) learns from; or there is no row.
    """
    return [*stream_rows(path, columns, reader)]


def stream_rows(path: str | Path, columns: Sequence[str], reader: str) -> Iterator[dict[str, Any]]:
    """As `read_rows`, one row after another."""
    row = None
    for row in stream_jsonl(path):
        if missing := [column for column in columns if column not in row]:
            raise ValueError(
                f"{reader}: expected rows of {', '.join(columns)} in {path}, found one of {', '.join(row)} without {', '.join(missing)}: "
                "name a signal of that kind"
            )
        yield row
    if row is None:
        raise ValueError(
            f"{reader}: expected rows of {', '.join(columns)} in {path}, found none: it needs some to train on, some to validate"
        )


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes one JSON object a line, keys in the order given, and returns how many."""
    count = 0
    with replacing(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def chunked(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` consecutive items; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def read_json(path: str | Path) -> Any:
    """Reads a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file, indented, keys in the order given; NaN and infinities are refused (JSON has none)."""
    with replacing(path) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
