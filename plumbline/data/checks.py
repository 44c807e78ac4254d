"""What a row must contain to be trained on or asked: the columns of its role, and sound turns.

How a row is rendered and tokenised is checked in rendering.py.
"""

import re

from plumbline.data.faults import RowFault
from plumbline.data.fields import Record, Turn, is_trained, reasoning_beside
from plumbline.data.texts import MESSAGE_COLUMNS, contents
from plumbline.data.transcripts import refuse_marks
from plumbline.rows import PREFERENCES, Message, Row, text_of

# What no text needs: C0 and C1 controls but tab, newline and carriage return; lone surrogates; U+FFFD, left by a wrong decoding.
_BAD_CHARACTER = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\ud800-\udfff\ufffd\ufffe\uffff]")

COLUMNS = {
    "sft": ("prompt", "completion"),
    "preferences": PREFERENCES,
    "unpaired": ("prompt", "completion"),
    "prompts": ("prompt",),
    "pretrain": (),
}
"""The columns of messages of each role: its prompt, then its answers."""


def for_role(role: str, record: Record) -> Row:
    """A record as a row of a role; RowFault if it contains another kind of data.

    A conversation's last assistant turn that is not marked as untrained is its completion. A chosen answer and a completion labelled good
    are demonstrations. Whatever has a prompt can be asked, and everything can be read in pretraining.
    """
    row = _in_columns(role, record)
    if role != "prompts":
        _refuse_untrainable(role, row)
    return row


def _in_columns(role: str, record: Record) -> Row:
    columns = record.columns
    if record.kind == "conversation" and role != "pretrain":
        columns = _split_last_turn(columns["messages"], needs_reply=role != "prompts")
    if role == "pretrain":
        return _to_read(record)
    if role == "prompts" and "prompt" in columns:
        return {"prompt": columns["prompt"]}
    if role == "sft" and record.kind == "preference":
        return {"prompt": columns["prompt"], "completion": columns["chosen"]}
    if role == "sft" and record.kind == "unpaired" and not columns["label"]:
        raise RowFault("undesirable", "label is false")
    if role == "sft" and "completion" in columns:
        return {"prompt": columns["prompt"], "completion": columns["completion"]}
    if (role, record.kind) in (("preferences", "preference"), ("unpaired", "unpaired")):
        return dict(columns)
    raise RowFault("wrong_kind", f"{role} cannot use a row of kind {record.kind}")


def _split_last_turn(turns: list[Message], *, needs_reply: bool) -> Row:
    if not needs_reply and turns and turns[-1]["role"] == "user":
        return {"prompt": turns}
    if needs_reply and turns and turns[-1]["role"] == "assistant":
        trained = [index for index, turn in enumerate(turns) if turn["role"] == "assistant" and is_trained(turn)]
        turns = turns[: trained[-1] + 1] if trained else turns
    if not turns or turns[-1]["role"] != "assistant":
        raise RowFault("no_completion", f"the last turn is the {turns[-1]['role']}'s" if turns else "there are no turns")
    return {"prompt": turns[:-1], "completion": turns[-1:]}


def _refuse_untrainable(role: str, row: Row) -> None:
    """Raises a RowFault if an answer that would be trained on is marked as not to be, or lacks the reasoning that led to it."""
    answers = [turn for column in COLUMNS[role][1:] for turn in row[column]]
    if "messages" in row:
        answers = [turn for turn in row["messages"] if turn["role"] == "assistant"]
    for turn in answers:
        if not is_trained(turn):
            raise RowFault("untrained", turn["content"][:60])
    for turn in answers if role != "pretrain" else answers[-1:]:
        if reasoning := reasoning_beside(turn):
            raise RowFault("reasoning", reasoning[:60])


def unused_keys(row: Row) -> list[str]:
    """The keys of a row's messages that nothing uses, once for each message."""
    turns = [turn for column in MESSAGE_COLUMNS for turn in row.get(column, ())]
    return [key for turn in turns if isinstance(turn, Turn) for key in turn.unused]


def _to_read(record: Record) -> Row:
    if record.kind == "text":
        return {"text": record.columns["text"]}
    if record.kind == "conversation":
        return {"messages": record.columns["messages"]}
    reply = record.columns.get("completion") or record.columns.get("chosen") or []
    return {"messages": [*record.columns["prompt"], *reply]}


def check_content(role: str, row: Row) -> None:
    """Raises RowFault for a row whose content cannot be used."""
    for where, content in contents(row):
        if not isinstance(content, str):
            raise RowFault("wrong_type", f"{where}: expected a string, found {type(content).__name__}")
        if bad := _BAD_CHARACTER.search(content):
            before = content[max(0, bad.start() - 10) : bad.start()].encode("utf-8", "replace").decode()
            raise RowFault("bad_text", f"U+{ord(bad[0]):04X} in {where} at character {bad.start()}, after {before!r}")
        if not content.strip():
            raise RowFault("empty_turn", where)
    for column in MESSAGE_COLUMNS:
        for index, turn in enumerate(row.get(column, ())):
            refuse_marks(turn, f"{column}[{index}]")
    if "messages" in row:
        check_order(row["messages"], "messages", last=("user", "assistant"))
    for column in COLUMNS[role][1:]:
        turns = row[column]
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            raise RowFault("no_completion", f"{column}: expected one assistant turn, found {[turn['role'] for turn in turns]}")
    if "prompt" in row:
        if not row["prompt"]:
            raise RowFault("no_prompt", "the prompt has no turns")
        check_order(row["prompt"], "prompt", last=("user",))
    if role == "preferences" and row["chosen"] == row["rejected"]:
        raise RowFault("identical", text_of(row["chosen"])[:60])


def check_order(turns: list[Message], where: str, last: tuple[str, ...]) -> None:
    """Raises RowFault unless turns are [system] user assistant user …, ending in a role of `last`."""
    roles = [turn["role"] for turn in turns]
    dialogue = roles[1:] if roles[:1] == ["system"] else roles
    alternating = ["user", "assistant"] * (len(dialogue) // 2 + 1)
    if dialogue != alternating[: len(dialogue)] or not dialogue or dialogue[-1] not in last:
        raise RowFault("role_order", f"{where}: {' '.join(roles[:12])}{' …' if len(roles) > 12 else ''}")
