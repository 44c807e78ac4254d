"""CSV and TSV files: each bad record is one fault, with the number of the line on which it begins."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from unicodedata import normalize

from plumbline.data.faults import DataError, Fault
from plumbline.data.files import is_utf8, open_file, refuse_utf16, suffix_of, unknown_encoding

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


def read_csv(path: Path, name: str, encoding: str, line_mib: int) -> Iterator[tuple[int, dict[str, str] | Fault]]:
    """The rows of a CSV or TSV file as objects, by the line on which each begins.

    Raises:
        DataError: the header cannot be used, or the bytes are not in that encoding.
    """
    csv.field_size_limit(line_mib << 20)
    delimiter = "\t" if suffix_of(path) == ".tsv" else ","
    with open_file(path) as file:
        reader = csv.reader(_decoded(file, name, encoding), delimiter=delimiter, strict=True)
        try:
            header = next((row for row in reader if row), None)
            if header is None:
                return
            header = [normalize("NFC", column) for column in header]
            _check_header(header, f"{name}:{reader.line_num}", encoding)
            yield from _records(reader, header, encoding)
        except csv.Error as error:
            raise DataError(f"{name}:{reader.line_num}: expected a CSV header, found {error}. Correct its quotes.") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}:{reader.line_num + 1} or later: expected {encoding}, found other bytes ({error.reason}). Set "
                "`encoding` for this source (Korean files are often cp949), or convert the file to UTF-8."
            ) from error


def _decoded(file: BinaryIO, name: str, encoding: str) -> io.TextIOWrapper:
    """A file as text. Bytes that cannot be decoded become lone surrogates, so that one bad row is one fault at its own line."""
    refuse_utf16(file.read(2), name, encoding)
    file.seek(0)
    try:
        return io.TextIOWrapper(file, "utf-8-sig" if is_utf8(encoding) else encoding, errors="surrogateescape", newline="")
    except LookupError as error:
        raise unknown_encoding(name, encoding) from error


def _check_header(header: list[str], where: str, encoding: str) -> None:
    if fault := _undecodable(header, encoding):
        raise DataError(f"{where}: expected {encoding} in the header, found {fault.detail}.")
    if repeated := sorted({column for column in header if header.count(column) > 1}):
        raise DataError(f"{where}: expected each column once, found {repeated} twice. Rename a column.")


def _records(reader: Any, header: list[str], encoding: str) -> Iterator[tuple[int, dict[str, str] | Fault]]:
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # An unclosed quote swallows the lines after it; they are not counted as rows, so the fault says how many they are.
            swallowed = f" in lines {line} to {reader.line_num}, which count as one row" if reader.line_num > line else ""
            yield line, Fault("invalid_csv", f"{error}{swallowed}")
            continue
        if row and len(row) != len(header):
            yield line, Fault("ragged_row", f"{len(row)} cells; the header has {len(header)}")
        elif row:
            yield line, _undecodable(row, encoding) or dict(zip(header, row, strict=True))


def _undecodable(row: list[str], encoding: str) -> Fault | None:
    """The first byte of a row that is not in the encoding; None if all are."""
    for number, cell in enumerate(row, 1):
        if not cell.isascii() and (byte := _ESCAPED_BYTE.search(cell)):
            detail = (
                f"byte 0x{ord(byte[0]) - 0xDC00:02x} in cell {number}, which is not {encoding} (Korean files are often cp949)"
            )
            return Fault("invalid_utf8", detail)
    return None
