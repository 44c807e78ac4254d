"""Prompt and completion of a raw row, read the same way in every format and role: the question, what stands beside it, the answer."""

from collections.abc import Mapping
from typing import Any

from plumbline.data.faults import RowFault
from plumbline.data.fields import MEDIA, RawRow, is_messages, messages, text, wrong_type
from plumbline.data.transcripts import answer_turns, turns_in
from plumbline.rows import Message, assistant

QUESTIONS = ("conversations", "prompt", "instruction", "question", "query", "turns", "goal", "input", "Q")
"""The fields that may contain the question, in the order in which they are looked for."""

_BESIDE = ("input", "context")
"""Fields that follow the question after a blank line, as Alpaca's and Dolly's do."""

_SYSTEM = ("system", "system_prompt", "system_message")


def question_field(row: RawRow) -> str | None:
    """The field that contains the question; None if there is none."""
    return next((key for key in QUESTIONS if row.get(key) is not None), None)


def prompt_of(row: RawRow, key: str | None = None, question: str | None = None) -> list[Message]:
    """The whole prompt: the system turn, earlier turns, the question in field `key`, and what stands beside it.

    key: the field of the question; by default the first of QUESTIONS that the row has.
    question: the question's text, for a format that composes it from several fields.

    Raises:
        RowFault: the question is missing, or a part of the prompt cannot be read.
    """
    key = key or question_field(row) or "prompt"
    if key in ("question", "query", "input") and row.get("instruction") is not None:
        key = "instruction"
    turns = question_of(row, key) if question is None else user(question)
    # A question beside an instruction is what the instruction is about; a prompt may have been composed of the other fields.
    for name in (*_BESIDE, "question", "query") if key == "instruction" else _BESIDE:
        if name != key and row.get(name) is not None:
            turns = _with_text(turns, text(row, name), once=key != "instruction")
    return [*system_turn(row), *_history(row), *turns]


def question_of(row: RawRow, key: str) -> list[Message]:
    """The question in a field, a string or messages."""
    value = row.get(key)
    if key == "turns" and isinstance(value, list) and value and isinstance(value[0], str):
        return user(value[0])  # MT-Bench: the first turn is the question
    return messages(value, key) if is_messages(value) else user(text(row, key))


def _with_text(turns: list[Message], beside: str, *, once: bool) -> list[Message]:
    """Turns whose last one is followed by a text, unless it is blank or, with `once`, the turns contain it already."""
    if not beside.strip() or (once and any(beside.strip() in turn["content"] for turn in turns)):
        return turns
    if not turns or turns[-1]["role"] != "user":
        raise RowFault("role_order", f"a text beside a prompt that does not end in the user's turn: {beside[:40]!r}")
    return [*turns[:-1], *user(f"{turns[-1]['content']}\n\n{beside}")]


def _history(row: RawRow) -> list[Message]:
    """The earlier turns in `history`: pairs of a question and its answer (LLaMA-Factory), messages, or a transcript."""
    history: Any = row.get("history")
    if history is None or history in ("", []):
        return []
    if isinstance(history, str):
        turns = turns_in(history)
        if turns is None:
            raise wrong_type("history", "pairs of strings, messages or a transcript", history)
        return turns
    if isinstance(history, list) and all(isinstance(turn, Mapping) for turn in history):
        return messages(history, "history")
    earlier: list[Message] = []
    for pair in history if isinstance(history, list) else [history]:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(turn, str) for turn in pair)):
            raise wrong_type("history", "pairs of strings", pair)
        earlier += [*user(pair[0]), *assistant(pair[1])]
    return earlier


def completion_of(row: RawRow, key: str) -> list[Message]:
    """The completion in a field, a string or messages; a string that is a whole transcript becomes its turns."""
    value = row.get(key)
    if is_messages(value):
        return messages(value, key)
    return answer_turns(text(row, key)) or assistant(text(row, key))


def user(content: str) -> list[Message]:
    """A prompt of one user turn."""
    return [{"role": "user", "content": content}]


def system_turn(row: RawRow) -> list[Message]:
    """The system turn that a row has in a field of its own; empty if there is none or it is blank.

    Raises:
        RowFault: it is not a string, or the row has pictures or sounds, which a text alone would refer to in vain.
    """
    if medium := next((key for key in MEDIA if row.get(key)), None):
        raise RowFault("wrong_type", f"a row with {medium!r}, which the chat templates here cannot express")
    key = next((key for key in _SYSTEM if row.get(key) is not None), None)
    content = text(row, key) if key else ""
    return [{"role": "system", "content": content}] if content.strip() else []
