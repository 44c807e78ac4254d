"""A row as its author meant it: column names in one Unicode form, and lists and objects that came as text as what they are.

A CSV file contains nothing but text, and columns of Parquet and JSON Lines files often contain JSON or Python literals as text. A model
would be trained on the brackets and quotes of a conversation.
"""

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any
from unicodedata import normalize

from plumbline.data.faults import RowFault
from plumbline.data.json_files import parse_json

LISTS = frozenset(
    {"messages", "conversations", "conversation", "history", "completions", "responses", "ranked", "ranking", "scores"}
    | {"turns", "instances", "tests", "test_list", "instructions", "instruction_id_list", "kwargs"}
)
"""Columns that are never plain text, so that a text there is read as the list that it spells."""

_OPENING = re.compile(r"""\s*(?:array\()?["']?\s*[\[({]""")
_KEY = r"""\\*["'](?:{})\\*["']\s*:"""
_SPEAKER_KEY = re.compile(_KEY.format("role|from"))
_CONTENT_KEY = re.compile(_KEY.format("content|value"))
_PARTS = re.compile(r"""\s*\[\s*\{\s*["']type["']\s*:""")


def decoded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its column names in NFC, as the data conf has them, and with the values of texts that spell messages or lists.

    Raises:
        RowFault: two names differ only in their Unicode form, or a text spells messages in neither JSON nor Python.
    """
    columns = {normalize("NFC", str(name)): value for name, value in row.items()}
    if len(columns) != len(row):
        raise RowFault("duplicate_key", f"two of the columns {sorted(map(str, row))[:8]} differ only in their Unicode form")
    return {name: _decoded_column(name, value) if isinstance(value, str) else value for name, value in columns.items()}


def named(columns: Mapping[str, Any], name: str) -> str | None:
    """The key that is this name in whatever Unicode form; None if there is none."""
    if name in columns:
        return name
    wanted = normalize("NFC", name)
    return next((key for key in columns if normalize("NFC", str(key)) == wanted), None)


def _decoded_column(name: str, text: str) -> Any:
    if not _OPENING.match(text):
        return text
    spells_messages = bool(_SPEAKER_KEY.search(text) and _CONTENT_KEY.search(text))
    if not spells_messages and name not in LISTS:
        return text
    value = literal(text)
    if isinstance(value, str) and spells_messages:
        raise RowFault("transcript", f"{name}: messages as text, neither JSON nor a Python literal: {text[:60]!r}")
    return value if name in LISTS or _has_message(value) else text


def _has_message(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return any(isinstance(item, Mapping) and {"role", "from"} & set(item) and {"content", "value"} & set(item) for item in items)


def literal(text: str) -> Any:
    """The value of a text that is JSON or a Python literal, however often it was encoded; the text itself if it is neither."""
    try:
        value = parse_json(text)
    except (ValueError, RecursionError):
        try:
            with warnings.catch_warnings(action="ignore"):  # of escapes such as "\d", which Python reads as they stand
                value = json.loads(json.dumps(ast.literal_eval(text.strip())))  # tuples become lists
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return text
    return literal(value) if isinstance(value, str) and _OPENING.match(value) and value != text else value


def text_parts(content: str) -> Any:
    """The parts that the text of a message spells, [{"type": "text", "text": …}]; the text itself if it spells none."""
    parts = literal(content) if _PARTS.match(content) else None
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) and "type" in part for part in parts):
        return content
    return parts if any(part["type"] == "text" and "text" in part for part in parts) else content
