"""Fields of a raw row: strings, lists, numbers and messages of any usual spelling, as TRL's conversational columns need them.

Whatever is missing or has the wrong type is raised as a `RowFault`, which the caller counts.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from plumbline.data.decoding import literal, text_parts
from plumbline.data.faults import RowFault
from plumbline.rows import Message

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


class Turn(dict[str, str]):
    """A message as read, with what its further keys say. It equals every message of the same role and content."""

    is_trained = True
    """False if it is marked as not to be trained on (weight: 0, train: false)."""
    reasoning = ""
    """What a key beside the content says was thought before it."""
    unused: tuple[str, ...] = ()
    """Keys with a value that nothing here uses."""


def message(value: Any) -> Turn:
    """A message of any usual spelling (role/content, from/value) as {"role", "content"}; RowFault if it is not one."""
    value = literal(value) if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise wrong_type("messages", "a message with role and content", value)
    role = value.get("role", value.get("from"))
    content = value.get("content", value.get("value"))
    if inexpressible := next((key for key in (*_TOOLS, *MEDIA) if value.get(key)), None):
        raise RowFault("wrong_type", f"a message with {inexpressible!r}, which the chat templates here cannot express")
    if role is None or content is None:
        missing = "role" if role is None else "content"
        raise RowFault("missing_field", f"a message without {missing}: {sorted(map(str, value))[:8]}")
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise RowFault("unknown_role", f"{str(role)[:40]!r}; known: {', '.join(ROLES)}")
    content = text_parts(content) if isinstance(content, str) else content
    if isinstance(content, list):  # OpenAI's parts
        content = "".join(_part_text(part) for part in content)
    if not isinstance(content, str):
        raise wrong_type("content", "a string", content)
    turn = Turn(role=ROLES[role.lower()], content=content)
    turn.is_trained = all(_is_trained(value[key], key) for key in _TRAINING if value.get(key) is not None)
    turn.is_trained = turn.is_trained and not any(value.get(key) for key in _PARTLY_TRAINED)
    turn.reasoning = "\n".join(str(value[key]) for key in _REASONING if value.get(key))
    turn.unused = tuple(str(key) for key in value if key not in _USED and value[key] not in (None, "", [], {}))
    return turn


def is_trained(turn: Message) -> bool:
    """Whether a turn may be trained on: all may but those that are marked otherwise."""
    return turn.is_trained if isinstance(turn, Turn) else True


def reasoning_beside(turn: Message) -> str:
    """The reasoning that a message has in a key of its own and not in its content; "" if there is none."""
    reasoning = turn.reasoning.strip() if isinstance(turn, Turn) else ""
    return "" if reasoning in turn["content"] else reasoning


_TRAINING = ("weight", "train", "training", "loss", "loss_mask")
"""Keys of a message whose 0 or false keeps it out of the loss, as OpenAI, axolotl, Mistral, ms-swift and XTuner spell it."""
_PARTLY_TRAINED = ("train_detail", "training_detail", "masked")
"""Keys whose value, if there is one, keeps a part of the message out of the loss (axolotl), or all of it (torchtune)."""
_REASONING = ("reasoning_content", "reasoning", "thinking", "thoughts")
_TOOLS = ("tool_calls", "function_call")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_USED = {"role", "from", "content", "value", *_TRAINING, *_PARTLY_TRAINED, *_REASONING}


def _is_trained(value: Any, key: str) -> bool:
    name = str(value).strip().lower()
    if name not in ("1", "1.0", "true", "0", "0.0", "false"):
        raise wrong_type(key, "0 or 1, or true or false", value)
    return name in ("1", "1.0", "true")


def _part_text(part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise RowFault("wrong_type", f"content: expected parts of type text, found {str(kind)[:40]}")


def is_messages(value: Any) -> bool:
    """Whether a value is meant as a message or a list of them."""
    return isinstance(value, list) or (isinstance(value, Mapping) and ("role" in value or "from" in value))


def messages(value: Any, key: str) -> list[Message]:
    """A conversation, or a single message; RowFault for any other value."""
    if isinstance(value, Mapping):
        return [message(value)]
    if not isinstance(value, list):
        raise wrong_type(repr(key), "a list of messages", value)
    return [message(item) for item in value]
