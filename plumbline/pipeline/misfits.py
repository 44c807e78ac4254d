"""What does not fit a dataclass in values from YAML: unknown keys, and values of another type, all at once and each with its key.

OmegaConf converts what it can (8 to true, 5 to a text), stops at the first value that it cannot, and does not look into lists of lists.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", types.NoneType: "null"}
CONTAINERS = {list: "a list", dict: "a mapping"}


def misfits(values: Mapping[str, Any], schema: type, where: str) -> Iterator[str]:
    """`<where>.<key>: expected …, found …` for each value that does not fit its field; `<where>: unknown key …` for one without a field.

    where: what leads to the values: `params.yaml: align.dpo`, or a file.
    """
    fields = hints(schema)
    for key, value in values.items():
        if key in fields:
            yield from _misfits(value, fields[key], f"{where}{': ' if where.endswith('.yaml') else '.'}{key}")
        else:
            yield f"{where}: unknown key {key!r}.{suggestion(str(key), [*fields])} Known: {', '.join(fields)}"


def suggestion(word: str, options: Sequence[str]) -> str:
    """The option that was probably meant, as a question; empty if none is near."""
    close = difflib.get_close_matches(word, options, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


@cache
def hints(schema: type) -> dict[str, Any]:
    """The type of each field of a dataclass."""
    types_by_name = typing.get_type_hints(schema)
    return {field.name: types_by_name[field.name] for field in dataclasses.fields(schema)}


def _misfits(value: Any, hint: Any, where: str) -> Iterator[str]:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if (
        hint is Any or value == "???" or (isinstance(value, str) and "${" in value)
    ):  # resolved, or asked for, once the config is composed
        return
    schema = next(filter(dataclasses.is_dataclass, options), None)
    if schema and isinstance(value, dict):
        yield from misfits(value, typing.cast("type", schema), where)
    elif len(options) == 1 and isinstance(value, typing.get_origin(hint) or ()):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _misfits(item, typing.get_args(hint)[-1], f"{where}.{key}")
    elif not any(_fits(value, option) for option in options):
        yield f"{where}: expected {' or '.join(map(_described, options))}, found {_shown(value)}"


def _fits(value: Any, kind: Any) -> bool:
    """Whether OmegaConf can make a value of that kind without changing what it says; a number may stand in quotes."""
    if kind is str:
        return isinstance(value, (str, int, float))
    if kind in (int, float) and isinstance(value, str):
        try:
            return kind(value) is not None
        except ValueError:
            return False
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is kind


def _described(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return f"a mapping of {', '.join(hints(typing.cast('type', kind)))}"
    return WORDS.get(kind) or CONTAINERS[typing.get_origin(kind)]


def _shown(value: Any) -> str:
    return {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else repr(value)
