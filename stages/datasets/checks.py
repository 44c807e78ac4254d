"""What a row must be to train or ask anything: the reasons for which rows are dropped, and the checks of content.

Checks of how a row is rendered and tokenised are in stages/datasets/rendering.py, duplicates and overlaps in their own modules.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from stages.datasets.config import FilesData
from stages.datasets.formats import Message, Record, RowFault
from stages.datasets.reading import DataError


class Reason(NamedTuple):
    """Why rows are dropped, and what a user can do about it."""

    what: str
    remedy: str


REASONS = {
    # reading
    "invalid_json": Reason("a line is not JSON", "correct or delete the line"),
    "invalid_utf8": Reason("a line is not UTF-8", "set `encoding` for the source, or convert the file"),
    "invalid_csv": Reason("a CSV record cannot be parsed", "correct its quotes"),
    "line_too_long": Reason("a line is over policy.line_mib", "raise policy.line_mib, or delete the line"),
    "duplicate_key": Reason("an object has a key twice", "delete one: parsers keep the last in silence"),
    "not_an_object": Reason("a row is not an object", "each row must be an object with named fields"),
    "ragged_row": Reason("a CSV row has more or fewer cells than the header", "quote cells that hold separators"),
    # format
    "missing_field": Reason(
        "a field of the format is missing or null", "name the right `format`, map `fields`, or clean the file"
    ),
    "wrong_type": Reason("a field is of another type", "name the right `format`, map `fields`, or clean the file"),
    "unknown_role": Reason("a role that no chat template here knows", "rename roles to system, user and assistant"),
    "no_prompt": Reason("there is nothing that is asked", "map a prompt in `fields`"),
    "prompts_differ": Reason("chosen and rejected answer different prompts", "such pairs cannot be compared: clean the file"),
    "no_preference": Reason("no verdict, or a tie", "such rows hold no preference; map `positive` and `negative` if they do"),
    "wrong_kind": Reason("the row holds another kind of data than the role needs", "list the source under another role"),
    "undesirable": Reason("labelled bad, so no demonstration", "list the source under `unpaired` to use it"),
    # content
    "empty_turn": Reason("a turn without text", "clean the file"),
    "role_order": Reason("turns that do not alternate as [system] user assistant … user", "clean the file"),
    "no_completion": Reason("the last turn is not the assistant's", "cut the conversation after an assistant turn"),
    "identical": Reason("chosen equals rejected", "such pairs train on nothing: clean the file"),
    "bad_text": Reason("NUL, control or broken characters", "clean the file; it was decoded wrongly, or cut"),
    "personal_data": Reason("e-mail address, phone or resident number", "set policy.personal_data to mask or report"),
    # rendering
    "special_token": Reason(
        "text that holds one of the tokenizer's special tokens", "remove it: it would act as a real turn mark"
    ),
    "template": Reason("the chat template refuses or drops a turn", "use a template that renders it, or remove such turns"),
    "end_of_turn": Reason("the end-of-turn token not exactly once at the end", "use a template that writes it once"),
    "no_loss": Reason("no token to train on", "clean the file"),
    "too_long": Reason("longer than the model's context", "raise context_tokens, or set policy.too_long to truncate"),
    # selection
    "duplicate": Reason("the same again", "none needed; policy.duplicates: report keeps them"),
    "near_duplicate": Reason("nearly the same again", "none needed; policy.near_duplicates: report keeps them"),
    "evaluation_overlap": Reason("holds a prompt that is evaluated", "none needed: removed from training"),
    "mixture": Reason("over its share of the mixture", "none needed; remove `weight` to keep all"),
}

# What no text needs: C0 and C1 controls but tab, newline and carriage return; lone surrogates; U+FFFD, left by a wrong decoding.
_BAD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\ud800-\udfff\ufffd\ufffe\uffff]")

COLUMNS = {
    "sft": ("prompt", "completion"),
    "preferences": ("prompt", "chosen", "rejected"),
    "unpaired": ("prompt", "completion"),
    "prompts": ("prompt",),
    "pretrain": (),
}


CHOICES = {
    "too_long": ("drop", "truncate", "fail"),
    "duplicates": ("drop", "report", "off"),
    "near_duplicates": ("drop", "report", "off"),
    "decontaminate": ("drop", "report", "off"),
    "personal_data": ("off", "report", "mask", "drop"),
}


def check_policy(data: FilesData) -> None:
    """Raises DataError for a policy that is none: a typo would silently be another policy."""
    policy = data.policy
    for name, choices in CHOICES.items():
        if getattr(policy, name) not in choices:
            raise DataError(
                f"policy.{name}: expected {', '.join(choices[:-1])} or {choices[-1]}, found '{getattr(policy, name)}'. "
                "Correct the data conf."
            )
    ranges = {
        "policy.near_duplicate_similarity": (policy.near_duplicate_similarity, 0.1, 1),
        "policy.ngram_overlap": (policy.ngram_overlap, 0.01, 1),
        "policy.ngram_words": (policy.ngram_words, 1, 100),
        "policy.line_mib": (policy.line_mib, 1, 1024),
        "policy.answer_tokens": (policy.answer_tokens, 0, float("inf")),
        "validation_fraction": (data.validation_fraction, 0, 1),
        "test_fraction": (data.test_fraction, 0, 1),
        "validation_fraction + test_fraction": (data.validation_fraction + data.test_fraction, 0, 0.99),
    } | {f"policy.limits.{reason}": (share, 0, 1) for reason, share in policy.limits.items()}
    if unknown := sorted(set(policy.limits) - set(REASONS) - {"default"}):
        raise DataError(f"policy.limits: expected reasons of {', '.join(REASONS)}, found {unknown}. Correct the data conf.")
    for name, (value, least, most) in ranges.items():
        if not least <= value <= most:
            raise DataError(f"{name}: expected a value from {least:g} to {most:g}, found {value:g}. Correct the data conf.")


def for_role(role: str, record: Record) -> dict[str, Any]:
    """A record as a row of a role; RowFault where it holds no such thing.

    Stated conversions: a conversation's last assistant turn is the completion; of a preference the chosen is a demonstration,
    of labelled completions the good ones; whatever has a prompt can be asked; whatever was said can be read in pretraining.
    """
    columns = record.columns
    if record.kind == "conversation" and role != "pretrain":
        columns = _split_last(columns["messages"], needs_reply=role != "prompts")
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
    raise RowFault("wrong_kind", f"{role} needs other data than {record.kind}")


def _split_last(turns: list[Message], *, needs_reply: bool) -> dict[str, Any]:
    if not needs_reply and turns and turns[-1]["role"] == "user":
        return {"prompt": turns}
    if not turns or turns[-1]["role"] != "assistant":
        raise RowFault("no_completion", f"the last turn is {turns[-1]['role'] + chr(39) + 's' if turns else 'missing'}")
    return {"prompt": turns[:-1], "completion": turns[-1:]}


def _to_read(record: Record) -> dict[str, Any]:
    if record.kind == "text":
        return {"text": record.columns["text"]}
    if record.kind == "conversation":
        return {"messages": record.columns["messages"]}
    reply = record.columns.get("completion") or record.columns.get("chosen") or []
    return {"messages": [*record.columns["prompt"], *reply]}


def check_content(role: str, row: dict[str, Any]) -> None:
    """Raises RowFault for a row whose content cannot be used."""
    for where, content in contents(row):
        if not isinstance(content, str):
            raise RowFault("wrong_type", f"{where}: expected a string, found {type(content).__name__}")
        if bad := _BAD.search(content):
            near = content[max(0, bad.start() - 10) : bad.start()].encode("utf-8", "replace").decode()
            raise RowFault("bad_text", f"U+{ord(bad[0]):04X} in {where} at character {bad.start()}, after {near!r}")
        if not content.strip():
            raise RowFault("empty_turn", where)
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
        raise RowFault("identical", row["chosen"][0]["content"][:60])


def check_order(turns: list[Message], where: str, last: tuple[str, ...]) -> None:
    """Raises RowFault unless turns are [system] user assistant user …, ending in a role of `last`."""
    roles = [turn["role"] for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    wanted = ["user", "assistant"] * (len(spoken) // 2 + 1)
    if spoken != wanted[: len(spoken)] or not spoken or spoken[-1] not in last:
        raise RowFault("role_order", f"{where}: {' '.join(roles[:12])}{' …' if len(roles) > 12 else ''}")


def contents(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every text of a row with its place, such as ("prompt[0]", …)."""
    if "text" in row:
        yield "text", row["text"]
    for column in ("messages", "prompt", "completion", "chosen", "rejected"):
        for place, turn in enumerate(row.get(column, ())):
            yield f"{column}[{place}]", turn["content"]
