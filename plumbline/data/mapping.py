"""A format of your own, without code: `fields` in conf/data/<name>.yaml maps our columns to the fields of your rows."""

from collections.abc import Mapping
from typing import Any
from unicodedata import normalize

from plumbline.data.decoding import decoded, literal, named
from plumbline.data.demonstrations import conversation
from plumbline.data.faults import RowFault
from plumbline.data.fields import RawRow, Record, text
from plumbline.data.filling import fill, is_template
from plumbline.data.preferences import by_votes, label_of, pair, ranked, scored
from plumbline.data.questions import completion_of, prompt_of
from plumbline.data.schema import Source

MAPPABLE = (
    *("prompt", "system", "completion", "chosen", "rejected", "first", "second", "preferred", "completions", "scores", "label"),
    *("messages", "text", "id", "family", "language", "answer", "tests", "expects", "instructions"),
)
_EXTRA = ("id", "family", "language", "answer", "tests", "expects", "instructions")


def mapped(row: RawRow, source: Source) -> Record:
    """A row by `source.fields`, our column -> your field.

    A field is a name, dotted into nested ones, or a template with {field}, in which {{ and }} stand for braces. A template loses the white
    space at its ends, which an empty field there leaves behind.
    """
    columns = decoded({column: _lookup(row, path, column) for column, path in source.fields.items()})
    extra = {key: columns[key] for key in _EXTRA if columns.get(key) is not None}
    prompt = []
    if "prompt" in columns:  # from here on, the system turn is part of the prompt
        prompt = prompt_of({"prompt": columns["prompt"], "system": columns.pop("system", None)}, "prompt")
    if "preferred" in columns:
        votes = [_lookup(row, path.strip(), "preferred") for path in source.fields["preferred"].split(",")]
        return by_votes(prompt, text(columns, "first"), text(columns, "second"), votes, source)._replace(extra=extra)
    if "chosen" in columns:
        return pair({**columns, "prompt": prompt}, source)._replace(extra=extra)
    if "completions" in columns:
        return (scored if "scores" in columns else ranked)({**columns, "prompt": prompt}, source)._replace(extra=extra)
    if "label" in columns:
        completion, label = completion_of(columns, "completion"), label_of(columns["label"], source)
        return Record("unpaired", {"prompt": prompt, "completion": completion, "label": label}, extra)
    if "completion" in columns:
        return Record("instruction", {"prompt": prompt, "completion": completion_of(columns, "completion")}, extra)
    if "messages" in columns:
        return conversation(columns, source)._replace(extra=extra)
    if "text" in columns:
        return Record("text", {"text": text(columns, "text")}, extra)
    return Record("prompt", {"prompt": prompt}, extra)


def _lookup(row: RawRow, path: str, column: str) -> Any:
    """The value of a field or template; RowFault if a field does not exist."""
    if (name := normalize("NFC", path)) in row:  # also a field whose name contains a dot or a brace
        return row[name]
    if is_template(path):
        return fill(path, lambda name: text({name: _lookup(row, name, column)}, name)).strip()
    if column == "preferred" and "," in path:
        return None  # several votes, looked up one by one
    value: Any = row
    for step in path.split("."):
        value = literal(value) if isinstance(value, str) else value
        if isinstance(value, list) and step.lstrip("-").isdigit() and -len(value) <= int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, Mapping) and (key := named(value, step)) is not None:
            value = value[key]
        else:
            raise RowFault("missing_field", f"{column}: no field {path!r}; the row has {sorted(map(str, row))[:8]}")
    return value
