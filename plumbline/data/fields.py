"""Fields of a raw row: strings, lists, numbers and messages of any usual spelling, as TRL's conversational columns need them.

Whatever is missing or has the wrong type is raised as a `RowFault`, which the caller counts.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from plumbline.data.faults import RowFault
from plumbline.rows import Message, assistant

RawRow = Mapping[str, Any]
"""A row as a data file contains it, in the field names of its format."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
}
"""The roles of messages in public data -> the role in a chat template."""

Kind = Literal["conversation", "instruction", "preference", "unpaired", "prompt", "text"]


class Record(NamedTuple):
    """What a row contains: its kind, the columns of that kind, and further columns to keep."""

    kind: Kind
    columns: dict[str, Any]
    extra: Mapping[str, Any] = MappingProxyType({})


def wrong_type(where: str, expected: str, value: Any) -> RowFault:
    """The fault of a value that is not of the expected type."""
    return RowFault("wrong_type", f"{where}: expected {expected}, found {type(value).__name__} {str(value)[:40]}")


def required(row: RawRow, key: str) -> Any:
    """The value of a field; RowFault if the field is missing or null."""
    value = row.get(key)
    if value is None:
        state = "null" if key in row else "missing"
        raise RowFault("missing_field", f"{key!r} is {state}; the row has {sorted(map(str, row))[:8]}")
    return value


def text(row: RawRow, key: str) -> str:
    """A string field; RowFault if it is missing, null or of another type."""
    value = required(row, key)
    if not isinstance(value, str):
        raise wrong_type(repr(key), "a string", value)
    return value


def listing(row: RawRow, key: str) -> Sequence[Any]:
    """A list field; RowFault if it is missing, null or of another type."""
    value = required(row, key)
    if not isinstance(value, list):
        raise wrong_type(repr(key), "a list", value)
    return value


def number(value: Any, key: str) -> float:
    """A finite number, which a CSV file has as text; RowFault for any other value."""
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float, str)) and math.isfinite(float(value)):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise wrong_type(repr(key), "a number", value)


def message(value: Any) -> Message:
    """A message of any usual spelling (role/content, from/value) as {"role", "content"}; RowFault if it is not one."""
    if not isinstance(value, Mapping):
        raise wrong_type("messages", "a message with role and content", value)
    role = value.get("role", value.get("from"))
    content = value.get("content", value.get("value"))
    if role is None or content is None:
        missing = "role" if role is None else "content"
        raise RowFault("missing_field", f"a message without {missing}: {sorted(map(str, value))[:8]}")
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise RowFault("unknown_role", f"{str(role)[:40]!r}; known: {', '.join(ROLES)}")
    if value.get("tool_calls") or value.get("function_call"):
        raise RowFault("wrong_type", "a message that calls a tool, which the chat templates here cannot express")
    if isinstance(content, list):  # OpenAI's parts
        content = "".join(_part_text(part) for part in content)
    if not isinstance(content, str):
        raise wrong_type("content", "a string", content)
    return {"role": ROLES[role.lower()], "content": content}


def _part_text(part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise RowFault("wrong_type", f"content: expected parts of type text, found {str(kind)[:40]}")


def messages(value: Any, key: str) -> list[Message]:
    """A conversation, or a single message; RowFault for any other value."""
    if isinstance(value, Mapping):
        return [message(value)]
    if not isinstance(value, list):
        raise wrong_type(repr(key), "a list of messages", value)
    return [message(item) for item in value]


def user(content: str) -> list[Message]:
    """A prompt of one user turn."""
    return [{"role": "user", "content": content}]


def system_turn(row: RawRow) -> list[Message]:
    """The system turn that a row has in a field of its own; empty if there is none or it is blank."""
    key = next((key for key in ("system", "system_prompt") if row.get(key) is not None), None)
    content = text(row, key) if key else ""
    return [{"role": "system", "content": content}] if content.strip() else []


def prompt_of(row: RawRow, key: str) -> list[Message]:
    """The prompt in a field, a string or messages, after the row's system turn."""
    value = row.get(key)
    if key == "turns" and isinstance(value, list) and value and isinstance(value[0], str):
        return [*system_turn(row), *user(value[0])]  # MT-Bench: the first turn is the question
    return [*system_turn(row), *(messages(value, key) if isinstance(value, (list, Mapping)) else user(text(row, key)))]


def completion_of(row: RawRow, key: str) -> list[Message]:
    """The completion in a field, a string or messages."""
    value = row.get(key)
    return messages(value, key) if isinstance(value, (list, Mapping)) else assistant(text(row, key))
