"""The files of a source: which ones it names, and how they are opened, decoded and split into lines."""

import gzip
import io
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import BinaryIO
from unicodedata import normalize

from plumbline.data.faults import DataError, Fault
from plumbline.data.schema import Source

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
_PACKED = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip", ".7z", ".tar", ".tgz", ".arrow", ".xlsx")
"""Endings of data that cannot be read here without a conversion; .gz, unless one of SUFFIXES stands before it."""

_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


# ------------------------------------------------------------------------------------------------------------- finding


def find_files(source: Source, inputs: Path) -> list[Path]:
    """The files that a source names, in order.

    Raises:
        DataError: one of them is missing, unreadable, named twice or outside `inputs`.
    """
    paths = [path for pattern in source.files for path in _matches(pattern, inputs)]
    if repeated := [path for path, count in Counter(path.resolve() for path in paths).items() if count > 1]:
        raise DataError(
            f"data source '{source.name}': expected each file once, found '{repeated[0].name}' twice in `files`: "
            f"{', '.join(source.files)}. Use names and patterns that do not overlap."
        )
    return paths


def _matches(pattern: str, inputs: Path) -> list[Path]:
    """The files that one element of `files` stands for: a path, a folder or a glob."""
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise DataError(
            f"expected a path inside inputs ('{inputs}'), found '{pattern}'. DVC watches only that folder: move the file there, "
            "or set `inputs` in params.yaml to a folder that contains it."
        )
    if any(sign in pattern for sign in "*?["):
        paths = sorted({path for form in _forms(pattern) for path in inputs.glob(form) if path.is_file()})
        if not paths:
            raise DataError(f"expected files that match '{pattern}' in '{inputs}', found none. Correct `files` in the data conf.")
    else:
        forms = [inputs / form for form in _forms(pattern)]
        paths = _named_files(next((path for path in forms if path.exists()), forms[0]))
    for path in paths:
        if not path.resolve().is_relative_to(inputs.resolve()):
            raise DataError(
                f"expected files inside inputs ('{inputs}'), found '{path}', a link to '{path.resolve()}'. Copy the file there."
            )
        if not path.is_file():
            raise DataError(f"expected a regular file at '{path}', found something else.")
    return paths


def _forms(pattern: str) -> list[str]:
    """A pattern as it is, then with each folder and name composed or decomposed: macOS writes "é" as two characters, others as one."""
    parts = [dict.fromkeys((part, normalize("NFC", part), normalize("NFD", part))) for part in Path(pattern).parts]
    return [str(Path(*form)) for form in product(*parts)]


def _named_files(path: Path) -> list[Path]:
    """The file at a path, or the data files of the folder there."""
    if path.is_symlink() and not path.exists():
        raise DataError(f"expected a file at '{path}', found a symbolic link to '{path.readlink()}', which does not exist.")
    if not path.exists():
        folder = path.parent
        present = (
            f"contains {', '.join(sorted(item.name for item in folder.iterdir())[:8])}" if folder.is_dir() else "does not exist"
        )
        raise DataError(
            f"expected a file at '{path}', found none; the folder {present}. Set `inputs` in params.yaml, or `files` in the data conf."
        )
    paths = _data_files(path) if path.is_dir() else [path]
    if not paths:
        raise DataError(f"expected data files ({' '.join(SUFFIXES)}, or .gz of them) in the folder '{path}', found none.")
    return paths


def _data_files(folder: Path) -> list[Path]:
    """The data files of a folder; a DataError if some data can only be read after a conversion, so that none is silently missed."""
    items = sorted(item for item in folder.rglob("*") if not item.name.startswith("."))
    for item in items:
        looks_like_data = item.name.lower().endswith(_PACKED) or {*SUFFIXES} & {end.lower() for end in item.suffixes[:-1]}
        if item.is_symlink() and not item.exists():
            raise DataError(f"expected files in the folder '{folder}', found '{item}', a link to nothing. Remove it.")
        if item.is_file() and looks_like_data and not suffix_of(item):
            raise DataError(
                f"expected data files ({' '.join(SUFFIXES)}, or .gz of them) in the folder '{folder}', found '{item}', which "
                "cannot be read in that form. Convert it, move it out of the folder, or name the files to read."
            )
    return [item for item in items if item.is_file() and suffix_of(item)]


def suffix_of(path: Path) -> str | None:
    """The ending that decides how a file is read, without .gz; None for a file that cannot be read."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


# ------------------------------------------------------------------------------------------------- opening and decoding


def open_file(path: Path) -> BinaryIO:
    """Opens a file, gzipped or plain: recognised by its content, since a file named .gz may be plain and the reverse."""
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if gzipped else path.open("rb")  # type: ignore[return-value]


def is_utf8(encoding: str) -> bool:
    """Whether an encoding is UTF-8, under either of its usual names."""
    return encoding.lower().replace("_", "-") in ("utf-8", "utf8")


def refuse_utf16(start: bytes, name: str, encoding: str) -> None:
    """Raises a DataError if a file that should be UTF-8 starts with the byte-order mark of UTF-16."""
    if is_utf8(encoding) and start[:2] in _UTF16_BOMS:
        raise DataError(f"{name}: expected UTF-8, found a UTF-16 byte-order mark. Set `encoding: utf-16` for this source.")


def decode(data: bytes, name: str, encoding: str) -> str:
    """The text of a whole file; a DataError if it is not in that encoding."""
    refuse_utf16(data[:2], name, encoding)
    try:
        return data.decode("utf-8-sig" if is_utf8(encoding) else encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}:{line}: expected {encoding}, found byte 0x{data[error.start]:02x} at position {error.start} "
            f"({error.reason}). Set `encoding` for this source (Korean files are often cp949), or convert the file to UTF-8."
        ) from error
    except LookupError as error:
        raise unknown_encoding(name, encoding) from error


def unknown_encoding(name: str, encoding: str) -> DataError:
    """The error for an encoding that Python does not know."""
    return DataError(f"{name}: expected the name of an encoding, found '{encoding}'. Use for example utf-8 or cp949.")


def read_lines(path: Path, name: str, encoding: str, line_mib: int) -> Iterator[tuple[int, bytes | Fault]]:
    """The lines of a file as UTF-8 bytes with their numbers, without blank ones; a Fault for a line that is too long."""
    limit = line_mib << 20
    with open_file(path) as file:
        if not is_utf8(encoding):
            file = io.BytesIO(decode(file.read(), name, encoding).encode())
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            if number == 1:
                refuse_utf16(line, name, encoding)
                line = line.removeprefix(_BOM)
            if len(line) > limit:
                size = len(line)
                while line and not line.endswith(b"\n"):
                    line = file.readline(limit)
                    size += len(line)
                yield number, Fault("line_too_long", f"{size >> 20} MiB; the limit is {line_mib} (policy.line_mib)")
            elif line.strip():
                yield number, line


def read_text(path: Path, name: str, encoding: str, line_mib: int) -> Iterator[tuple[int, dict[str, str] | Fault]]:
    """Each line of a plain text file as a row with the field `text`."""
    for number, line in read_lines(path, name, encoding, line_mib):
        try:
            yield number, line if isinstance(line, Fault) else {"text": line.decode().rstrip("\r\n")}
        except UnicodeDecodeError as error:
            yield number, Fault("invalid_utf8", f"byte {error.start}: {error.reason}")
