"""The folder of feedback: lines are appended so that none is lost or torn, and read so that a broken one is named.

Several tabs, servers and exports may write at the same time. A line is on the disk before anybody is told that it was taken.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from plumbline.data.faults import Fault, RowFault
from plumbline.data.files import read_lines
from plumbline.data.json_files import parse_line
from plumbline.feedback.lines import Line

FOLDER = Path("data/feedback")
CHAT, MLFLOW = "chat.jsonl", "mlflow.jsonl"
"""The files that `make chat` and `make feedback` write; any other *.jsonl beside them is read too."""

_LINE_MIB = 16


class Entry(NamedTuple):
    """A line as read, with its place: what it says, or why it cannot be read."""

    file: str
    row: int
    content: Line | Fault


def append(path: Path, lines: Iterable[Line]) -> None:
    """Appends lines to a file, whole or not at all, and returns when they are on the disk. What a crash tore off there stays a line of its own.

    Raises:
        ValueError: a line holds a lone surrogate, which no file can hold.
        OSError: the folder or the file cannot be written.
    """
    text = "".join(f"{line.json()}\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a+b", buffering=0) as file:  # a buffer would be written again when the file is cut and when it is closed
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else f"\n{text}"
        try:
            _write_all(file, text.encode())
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(end)  # a disk that became full has taken a part
            raise
    if is_new:
        folder = os.open(path.parent, os.O_RDONLY)  # the file's name, too, has to outlive a power cut
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_all(file: FileIO, content: bytes) -> None:
    """Writes bytes to an unbuffered file; a disk with too little room takes a part, and raises OSError at the rest."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def read(folder: Path = FOLDER) -> Iterator[Entry]:
    """Every line of the folder's *.jsonl files that is not blank, in order of the files' names; nothing if there is no folder."""
    for path in sorted(folder.glob("*.jsonl")):
        for number, content in read_lines(path, path.name, "utf-8", _LINE_MIB):
            yield Entry(path.name, number, _line(content))


def current(entries: Iterable[Entry]) -> list[Entry]:
    """The entries without those lines that a later line of the same id replaces."""
    kept: dict[tuple[str, object], Entry] = {}
    for entry in entries:
        key: tuple[str, object] = ("id", entry.content.id) if isinstance(entry.content, Line) else (entry.file, entry.row)
        kept.pop(key, None)  # so that it stands where it was said last
        kept[key] = entry
    return [*kept.values()]


def _line(content: bytes | Fault) -> Line | Fault:
    row = parse_line(content) if isinstance(content, bytes) else content
    try:
        return row if isinstance(row, Fault) else Line.of(row)
    except RowFault as error:
        return error.fault
