"""JSON as data sets really contain it: strict about keys and constants, with each bad element a fault of its own."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plumbline.data.faults import DataError, Fault
from plumbline.data.files import decode, open_file, read_lines

_WHOLE_FILE_MIB = 2048  # a JSON array is one value, so it is read whole
_SEPARATORS = re.compile(r"[\s,]*")
_ROW_FIELDS = {
    *("messages", "conversations", "conversation", "prompt", "instruction", "question", "query", "input", "output", "text"),
    *("chosen", "rejected", "completion", "completions", "response", "answer", "instances", "turns"),
}
"""Fields of a single row: an object that has one of them is a row, not a wrapper around a list of rows."""


class DuplicateKey(ValueError):
    """A JSON object that contains a key twice; most parsers silently keep the last."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: the text is not valid JSON, for which NaN and Infinity count too; DuplicateKey if an object has a key twice.
    """
    return _DECODER.decode(text if isinstance(text, str) else text.decode())


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKey(f"key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not valid JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)


def parse_line(line: bytes) -> dict[str, Any] | Fault:
    """One line of a JSON Lines file as an object, or why it cannot be one."""
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


def _not_an_object(value: Any) -> Fault:
    return Fault("not_an_object", f"{type(value).__name__}: {str(value)[:60]}")


def read_json(path: Path, name: str, encoding: str, line_mib: int) -> Iterator[tuple[int, bytes | dict[str, Any] | Fault]]:
    """The rows of a JSON file: an array, a single object, or JSON Lines, which the hub often calls .json."""
    text = _read_whole(path, name, encoding)
    if not text.strip():
        return
    try:
        value = parse_json(text)
    except DuplicateKey as error:
        if _is_json_lines(text):
            yield from read_lines(path, name, encoding, line_mib)
            return
        if not text.lstrip("\ufeff \t\r\n").startswith("["):
            raise DataError(f"{name}: expected each key once in an object, found {error}. Clean the file.") from error
        value = _elements(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{") and "\n" in text.strip():
            yield from read_lines(path, name, encoding, line_mib)
            return
        raise DataError(
            f"{name}: expected valid JSON, found {error}. Correct the file, or name it .jsonl if each line is a value."
        ) from error
    for number, row in enumerate(_rows_in(value, name), 1):
        yield number, row if isinstance(row, (dict, Fault)) else _not_an_object(row)


def _read_whole(path: Path, name: str, encoding: str) -> str:
    with open_file(path) as file:
        data = file.read((_WHOLE_FILE_MIB << 20) + 1)
    if len(data) > _WHOLE_FILE_MIB << 20:
        raise DataError(
            f"{name}: expected a JSON file of at most {_WHOLE_FILE_MIB} MiB, which is read whole, found a larger one. Convert it to "
            "JSON Lines (jq -c '.[]')."
        )
    return decode(data, name, encoding)


def _is_json_lines(text: str) -> bool:
    """Whether the first line of a text is an object by itself and others follow."""
    first, _, rest = text.strip().partition("\n")
    try:
        return first.startswith("{") and bool(rest) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _elements(text: str) -> list[Any]:
    """The elements of a valid JSON array one by one; those with a duplicate key become faults."""
    lenient, elements = json.JSONDecoder(parse_constant=_refuse_constant), []
    start = text.index("[") + 1
    while (start := _SEPARATORS.match(text, start).end()) < len(text) and text[start] != "]":  # type: ignore[union-attr]
        _, end = lenient.raw_decode(text, start)
        try:
            element = parse_json(text[start:end])
        except DuplicateKey as error:
            element = Fault("duplicate_key", str(error))
        elements.append(element)
        start = end
    return elements


def _rows_in(value: Any, name: str) -> list[Any]:
    """The rows that a parsed file contains, also below a key as in {"version": …, "data": [rows]}."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        lists = [key for key, inner in value.items() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
        return value[lists[0]] if len(lists) == 1 and not _ROW_FIELDS & set(value) else [value]
    raise DataError(f"{name}: expected a JSON array of objects, found {type(value).__name__}.")
