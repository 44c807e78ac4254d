"""Rows of data files one by one, with their row numbers: JSON Lines, JSON, CSV, Parquet, gzipped or not, and hub data sets.

What spoils one row (bad JSON, bad UTF-8, a ragged CSV line) comes out as a `Fault` in its place, to be counted; what spoils a
file (missing, truncated gzip, wrong encoding throughout) is a `DataError` that says what to do.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from stages.datasets.config import Source

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
_UNREADABLE = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip", ".7z", ".tar", ".tgz", ".arrow", ".xlsx")  # data, but not to us
_WHOLE_FILE_MIB = 2048  # a JSON array is one value: it is read whole
_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class DataError(ValueError):
    """Data that cannot be prepared: says what was expected, what was found, where, and the remedy."""


class Fault(NamedTuple):
    """Why a row cannot be used: a reason of stages/datasets/checks.py, and what was found."""

    reason: str
    found: str


class Item(NamedTuple):
    """A row as read: the file it is from, its number there from 1, and its content: undecoded JSON, a value or a fault."""

    file: str
    row: int
    content: bytes | dict[str, Any] | Fault


def find_files(source: Source, inputs: Path) -> list[Path]:
    """The files that a source names, in order; DataError for one that is missing, unreadable or outside `inputs`."""
    found: list[Path] = []
    for pattern in source.files:
        found += _matches(pattern, inputs)
    if not found:
        raise DataError(f"data source '{source.name or source.hub}': expected files, found none. List them under `files`.")
    if double := [path for path, count in Counter(path.resolve() for path in found).items() if count > 1]:
        raise DataError(
            f"data source '{source.name}': expected each file once, found '{double[0].name}' named twice by `files`: "
            f"{', '.join(source.files)}. Make its names and patterns distinct."
        )
    return found


def _matches(pattern: str, inputs: Path) -> list[Path]:
    root = inputs.resolve()
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise DataError(
            f"expected a path inside inputs ('{inputs}'), found '{pattern}'. DVC watches only that folder: move the file there, "
            "or set `inputs` in params.yaml to a folder that holds it."
        )
    if any(sign in pattern for sign in "*?["):
        matches = sorted(path for path in inputs.glob(pattern) if path.is_file())
        if not matches:
            raise DataError(f"expected files that match '{pattern}' in '{inputs}', found none. Correct `files` in the data conf.")
    else:
        path = inputs / pattern
        if path.is_symlink() and not path.exists():
            raise DataError(f"expected a file at '{path}', found a symbolic link to '{path.readlink()}', which does not exist.")
        if not path.exists():
            near = (
                ", ".join(sorted(item.name for item in path.parent.iterdir())[:8]) if path.parent.is_dir() else "no such folder"
            )
            raise DataError(
                f"expected a file at '{path}', found none (beside it: {near}). Set `inputs` in params.yaml or `files`."
            )
        matches = _data_files(path) if path.is_dir() else [path]
        if not matches:
            raise DataError(f"expected data files ({' '.join(SUFFIXES)}, or .gz of them) in the folder '{path}', found none.")
    for match in matches:
        if not match.resolve().is_relative_to(root):
            raise DataError(
                f"expected files inside inputs ('{inputs}'), found '{match}', a link to '{match.resolve()}'. Copy it in."
            )
        if not match.is_file():
            raise DataError(f"expected a regular file, found something else at '{match}'.")
    return matches


def _data_files(folder: Path) -> list[Path]:
    """The data files of a folder; DataError if some of it can only be read after a conversion: it would be missed in silence."""
    files = sorted(item for item in folder.rglob("*") if not item.name.startswith("."))
    for item in files:
        data_like = item.name.lower().endswith(_UNREADABLE) or {*SUFFIXES} & {end.lower() for end in item.suffixes[:-1]}
        if item.is_symlink() and not item.exists():
            raise DataError(f"expected files in the folder '{folder}', found '{item}', a link to nothing. Remove it.")
        if item.is_file() and data_like and not _suffix(item):
            raise DataError(
                f"expected data files ({' '.join(SUFFIXES)}, or .gz of them) in the folder '{folder}', found '{item}', which "
                "cannot be read as it is. Convert it, move it out, or name the files to read."
            )
    return [item for item in files if item.is_file() and _suffix(item)]


def _suffix(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def read_source(source: Source, inputs: Path, line_mib: int = 16) -> Iterator[Item]:
    """The rows of a source in order, at most `limit`."""
    if source.hub is not None:
        rows = _read_hub(source)
    else:
        files = find_files(source, inputs)
        rows = (
            item for path in files for item in read_file(path, path.relative_to(inputs).as_posix(), source.encoding, line_mib)
        )
    for count, item in enumerate(rows):
        if source.limit is not None and count >= source.limit:
            return
        yield item


def read_file(path: Path, name: str, encoding: str = "utf-8", line_mib: int = 16) -> Iterator[Item]:
    """The rows of one file, called `name` in provenance; DataError if it cannot be read at all."""
    suffix = _suffix(path)
    if suffix is None:
        raise DataError(f"{name}: expected a file ending in {' '.join(SUFFIXES)} (or .gz of these), found '{path.name}'.")
    count = 0
    try:
        for item in _readers(suffix)(path, name, encoding, line_mib):
            count += 1
            yield item
    except PermissionError as error:
        raise DataError(f"{name}: expected a readable file, found that reading is not permitted. chmod it.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{name}: expected a whole gzip file, found it broken after row {count} ({error}). Fetch it again."
        ) from error
    if count == 0:
        raise DataError(f"{name}: expected rows, found an empty file. Remove it from `files` or fetch it again.")


def _readers(suffix: str) -> Any:
    return {
        ".jsonl": _read_lines,
        ".ndjson": _read_lines,
        ".json": _read_json,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".parquet": _read_parquet,
        ".txt": _read_text,
    }[suffix]


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"  # by content: files named .gz may be plain, and the other way round
    return gzip.open(path, "rb") if zipped else path.open("rb")  # type: ignore[return-value]


def _refuse_utf16(start: bytes, name: str, encoding: str) -> None:
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8") and start[:2] in _BOMS:
        raise DataError(f"{name}: expected UTF-8, found a UTF-16 byte-order mark. Set `encoding: utf-16` for this source.")


def _read_lines(path: Path, name: str, encoding: str, line_mib: int) -> Iterator[Item]:
    limit = line_mib << 20
    with _open(path) as file:
        if encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
            file = io.BytesIO(_decode(file.read(), name, encoding).encode())
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            if number == 1:
                _refuse_utf16(line, name, encoding)
                line = line.removeprefix(b"\xef\xbb\xbf")
            if len(line) > limit:
                size = len(line)
                while line and not line.endswith(b"\n"):
                    line = file.readline(limit)
                    size += len(line)
                yield Item(name, number, Fault("line_too_long", f"{size >> 20} MiB; the limit is {line_mib} (policy.line_mib)"))
            elif line.strip():
                yield Item(name, number, line)


def _read_text(path: Path, name: str, encoding: str, line_mib: int) -> Iterator[Item]:
    for item in _read_lines(path, name, encoding, line_mib):
        if isinstance(item.content, bytes):
            try:
                yield item._replace(content={"text": item.content.decode().rstrip("\r\n")})
            except UnicodeDecodeError as error:
                yield item._replace(content=Fault("invalid_utf8", f"byte {error.start}: {error.reason}"))
        else:
            yield item


def _decode(data: bytes, name: str, encoding: str) -> str:
    _refuse_utf16(data[:2], name, encoding)
    try:
        return data.decode("utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}:{line}: expected {encoding}, found byte 0x{data[error.start]:02x} at position {error.start} "
            f"({error.reason}). Set `encoding` for this source (Korean files are often cp949), or convert the file to UTF-8."
        ) from error
    except LookupError as error:
        raise _unknown_encoding(name, encoding) from error


def _unknown_encoding(name: str, encoding: str) -> DataError:
    return DataError(f"{name}: expected the name of an encoding, found '{encoding}'. Use for example utf-8 or cp949.")


def _read_json(path: Path, name: str, encoding: str, line_mib: int) -> Iterator[Item]:
    with _open(path) as file:
        data = file.read((_WHOLE_FILE_MIB << 20) + 1)
    if len(data) > _WHOLE_FILE_MIB << 20:
        raise DataError(
            f"{name}: a JSON array over {_WHOLE_FILE_MIB} MiB is not read whole. Convert it to JSON Lines (jq -c '.[]')."
        )
    text = _decode(data, name, encoding)
    if not text.strip():
        return
    try:
        value = parse_json(text)
    except DuplicateKey as error:
        if _is_lines(text):
            yield from _read_lines(path, name, encoding, line_mib)
            return
        if not text.lstrip("\ufeff \t\r\n").startswith("["):
            raise DataError(f"{name}: expected each key once in an object, found {error}. Clean the file.") from error
        value = _elements(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{") and "\n" in text.strip():  # JSON Lines called .json, as often on the hub
            yield from _read_lines(path, name, encoding, line_mib)
            return
        raise DataError(
            f"{name}: expected JSON, found {error}. Correct the file, or name it .jsonl if each line is a value."
        ) from error
    for number, row in enumerate(_rows_of(value, name), 1):
        yield Item(name, number, row if isinstance(row, (dict, Fault)) else _not_an_object(row))


def _is_lines(text: str) -> bool:
    """Whether a text is JSON Lines: its first line is a value, and not the only one."""
    first, _, rest = text.strip().partition("\n")
    try:
        return first.startswith("{") and bool(rest) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _elements(text: str) -> list[Any]:
    """The elements of a valid JSON array one by one: those that hold a key twice are faults."""
    plain, elements = json.JSONDecoder(parse_constant=_no_constant), []
    place = text.index("[") + 1
    while (place := _SPACE.match(text, place).end()) < len(text) and text[place] != "]":  # type: ignore[union-attr]
        value, end = plain.raw_decode(text, place)
        try:
            value = parse_json(text[place:end])
        except DuplicateKey as error:
            value = Fault("duplicate_key", str(error))
        elements.append(value)
        place = end
    return elements


_SPACE = re.compile(r"[\s,]*")


def _not_an_object(value: Any) -> Fault:
    return Fault("not_an_object", f"{type(value).__name__}: {str(value)[:60]}")


def _rows_of(value: Any, name: str) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        lists = [key for key, inner in value.items() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
        if len(lists) == 1 and not _OF_A_ROW & set(value):
            return value[lists[0]]  # {"version": …, "data": [rows]}
        return [value]
    raise DataError(f"{name}: expected a JSON array of objects, found {type(value).__name__}.")


# Fields of a single row: an object that has one is no wrapper around rows.
_OF_A_ROW = {
    *("messages", "conversations", "conversation", "prompt", "instruction", "question", "query", "input", "output", "text"),
    *("chosen", "rejected", "completion", "completions", "response", "answer", "instances", "turns"),
}


class DuplicateKey(ValueError):
    """A JSON object that holds a key twice; parsers would silently keep the last."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKey(f"key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return value


def parse_json(text: str | bytes) -> Any:
    """JSON with each key once; ValueError otherwise, also for NaN, which is not JSON."""
    return _DECODER.decode(text if isinstance(text, str) else text.decode())


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)


def parse_line(line: bytes) -> dict[str, Any] | Fault:
    """One line of a JSON Lines file as an object, or why it is none."""
    try:
        value = parse_json(line)
    except UnicodeDecodeError as error:
        return Fault("invalid_utf8", f"byte {error.start}: {error.reason}")
    except DuplicateKey as error:
        return Fault("duplicate_key", str(error))
    except RecursionError:
        return Fault("invalid_json", "nested too deeply")
    except ValueError as error:
        return Fault("invalid_json", str(error))
    return value if isinstance(value, dict) else _not_an_object(value)


def _read_csv(path: Path, name: str, encoding: str, line_mib: int) -> Iterator[Item]:
    csv.field_size_limit(line_mib << 20)
    delimiter = "\t" if _suffix(path) == ".tsv" else ","
    with _open(path) as file:
        _refuse_utf16(file.read(2), name, encoding)
        file.seek(0)
        plain = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
        try:
            # Bytes that are no text become lone surrogates, so that one bad row is one fault, in its place.
            text = io.TextIOWrapper(file, "utf-8-sig" if plain else encoding, errors="surrogateescape", newline="")
        except LookupError as error:
            raise _unknown_encoding(name, encoding) from error
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next((row for row in reader if row), None)
            if header is None:
                return
            if fault := _undecodable(header, encoding):
                raise DataError(f"{name}:{reader.line_num}: expected {encoding} in the header, found {fault.found}.")
            if double := sorted({column for column in header if header.count(column) > 1}):
                raise DataError(f"{name}:{reader.line_num}: expected each column once, found {double} twice. Rename a column.")
            yield from _csv_rows(reader, header, name, encoding)
        except csv.Error as error:
            raise DataError(f"{name}:{reader.line_num}: expected a CSV header, found {error}. Correct its quotes.") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}:{reader.line_num + 1} or later: expected {encoding}, found bytes that are not ({error.reason}). Set "
                "`encoding` for this source (Korean files are often cp949), or convert the file to UTF-8."
            ) from error


def _csv_rows(reader: Any, header: list[str], name: str, encoding: str) -> Iterator[Item]:
    """Rows by the line on which each begins."""
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # An unclosed quote swallows what follows it: how much is told, for these lines are no rows of their own.
            swallowed = f" in lines {line} to {reader.line_num}, which count as one row" if reader.line_num > line else ""
            yield Item(name, line, Fault("invalid_csv", f"{error}{swallowed}"))
            continue
        if row and len(row) != len(header):
            yield Item(name, line, Fault("ragged_row", f"{len(row)} cells; the header has {len(header)}"))
        elif row:
            yield Item(name, line, _undecodable(row, encoding) or dict(zip(header, row, strict=True)))


def _undecodable(row: list[str], encoding: str) -> Fault | None:
    for number, cell in enumerate(row, 1):
        if not cell.isascii() and (bad := _ESCAPED.search(cell)):
            found = f"byte 0x{ord(bad[0]) - 0xDC00:02x} in cell {number}, which is not {encoding} (Korean files are often cp949)"
            return Fault("invalid_utf8", found)
    return None


_ESCAPED = re.compile("[\udc80-\udcff]")


def _read_parquet(path: Path, name: str, encoding: str, line_mib: int) -> Iterator[Item]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if double := sorted({column for column in columns if columns.count(column) > 1}):
                raise DataError(f"{name}: expected each column once, found {double} twice. Rename a column.")
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Item(name, number, row)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{name}: expected a Parquet file, found {(str(error) or type(error).__name__).splitlines()[0]} after row {number}."
        ) from error


def _read_hub(source: Source) -> Iterator[Item]:
    from datasets import load_dataset

    if Path(str(source.hub)).exists():
        raise DataError(
            f"hub data set '{source.hub}': expected a hub id, found a local path. List it under `files`, below `inputs`."
        )
    if source.revision is None:
        raise DataError(
            f"hub data set '{source.hub}': expected a pinned `revision` (a commit), found none. Set it in the data conf."
        )
    try:
        rows = load_dataset(source.hub, source.subset, split=source.split, revision=source.revision, streaming=True)
        for number, row in enumerate(rows, 1):
            yield Item(str(source.hub), number, row)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"hub data set '{source.hub}' ({source.subset or 'default'}, {source.split}, {source.revision}): expected rows, "
            f"found {reason}. Check id, subset, split and revision, the network, and that HF_HUB_OFFLINE is not set."
        ) from error
