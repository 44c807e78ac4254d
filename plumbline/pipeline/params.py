"""params.yaml as the stages read it, which has to be as DVC reads it: plain values under text keys, each with one meaning.

DVC reads YAML 1.2, and OmegaConf mostly YAML 1.1. `017` is 17 to one and 15 to the other, `no` a text and false, `12:30` a text and 750.
DVC decides by its own reading what runs again, so a value that the two read differently is refused.
"""

import datetime
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

PARAMS = Path("params.yaml")

Params = dict[str, Any]


def load_params(path: Path = PARAMS) -> Params:
    """Reads params.yaml: plain values only.

    Raises:
        ValueError: the file is not valid YAML or not a mapping, a key is not a text, DVC reads a value differently, or a value holds `${`:
            DVC could not see a change of what it refers to.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8, found another encoding at byte {error.start}: save the file as UTF-8"
        ) from error
    theirs = _as_dvc_reads(text, path)
    if not isinstance(theirs, dict):
        raise ValueError(f"{path}: expected a mapping of sections, found {type(theirs).__name__}")
    if faults := [*_unusable(theirs)] or [*_differences(theirs, _as_stages_read(text, path))]:
        raise ValueError("\n- ".join(f"{path}: {fault}" for fault in faults))
    return theirs


def _as_dvc_reads(text: str, path: Path) -> Any:
    """What `dvc.utils.serialize.parse_yaml` returns; importing that would set up DVC's logging."""
    try:
        return YAML(typ="safe").load(text) or {}
    except YAMLError as error:
        raise ValueError(f"{path}: {_reason(error)}") from error


def _as_stages_read(text: str, path: Path) -> Any:
    try:  # OmegaConf and not PyYAML, which reads 1e-4 as a string
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """A parser's complaint with the line, without the advice that it gives to programmers."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"expected YAML with plain values, found a fault{where}: {' '.join(str(problem).split())}"


def _unusable(value: Any, key: str = "") -> Iterator[str]:
    """What cannot stand in params.yaml, as DVC reads it, each with its key."""
    if type(value) is dict:
        for name, child in value.items():
            where = f"{key}.{name}" if key else str(name)
            if isinstance(name, str):
                yield from _unusable(child, where)
            else:
                quoted = _written(name if isinstance(name, datetime.date) else _written(name))
                yield f"{where}: expected a text as key, found {_described(name)}. To use it as a text, write {quoted}"
    elif type(value) is list:
        for index, child in enumerate(value):
            yield from _unusable(child, f"{key}.{index}")
    elif isinstance(value, datetime.date):
        yield f"{key}: expected a number or a text, found the date {value}. To use it as a text, write {_written(value)}"
    elif type(value) not in (str, int, float, bool, type(None)):
        yield f"{key}: expected a number, a text, true, false, null, a list or a mapping, found {type(value).__name__}"
    elif isinstance(value, str) and "${" in value:
        yield (
            f"{key}: expected a plain value, found {value!r}. DVC compares values as written and would miss a change of what this refers "
            "to: write the value itself"
        )


def _differences(theirs: Any, ours: Any, key: str = "") -> Iterator[str]:
    """What DVC and the stages read differently, each with its key."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        changed = iter([name for name in ours if name not in theirs])
        for name, child in theirs.items():
            where = f"{key}.{name}" if key else str(name)
            if name in ours:
                yield from _differences(child, ours[name], where)
            else:
                yield f"{where}: expected a key with one meaning, found {_both(name, next(changed, None))}. Write {_written(name)}"
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for index, pair in enumerate(zip(theirs, ours, strict=True)):
            yield from _differences(*pair, f"{key}.{index}")
    elif type(theirs) is not type(ours) or (theirs != ours and theirs == theirs):  # NaN differs from itself
        yield (
            f"{key}: expected a value with one meaning, found {_both(theirs, ours)}. Write {_written(theirs)} or {_written(ours)}, "
            "whichever you mean"
        )


def _both(theirs: Any, ours: Any) -> str:
    return f"one that DVC (YAML 1.2) reads as {_described(theirs)} and the stages (YAML 1.1) as {_described(ours)}"


def _described(value: Any) -> str:
    kinds: dict[type, str] = {str: "the text ", int: "the number ", float: "the number "}
    return kinds.get(type(value), "") + _written(value)


def _written(value: Any) -> str:
    """A value as both read it alike: JSON, which is YAML of either version."""
    return json.dumps(value, ensure_ascii=False, default=str)
