"""One line of data/feedback/*.jsonl: what somebody said of one or two answers to a conversation, and how these answers came about.

The schema is described in data/feedback/README.md. A line that does not keep to it raises a `RowFault`, which its reader counts.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from plumbline.data.faults import RowFault
from plumbline.data.fields import listing, messages, required, text
from plumbline.models.decoding_values import Decoding
from plumbline.rows import Message, Row

VOTE, THUMB, CORRECTION = "vote", "thumb", "correction"
A, B, TIE, BOTH_BAD = "A", "B", "tie", "both_bad"
UP, DOWN = "up", "down"

VERDICTS = {VOTE: (A, B, TIE, BOTH_BAD), THUMB: (UP, DOWN)}
"""What can be said: which of two answers is better, or whether one is good. A correction says it in words of its own."""


def require_whole_characters(text: str) -> None:
    """Refuses a text with a lone surrogate, half of a character such as an emoji: a browser and JSON can hold one, UTF-8 and tokenizers cannot.

    Raises:
        ValueError: there is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"expected whole characters, found half of one (U+{ord(text[error.start]):04X}): type it anew") from None


@dataclass(frozen=True)
class Answer:
    """An answer, and all that is needed to make it again."""

    text: str
    policy: str | None = None
    """The policy's name in artifacts/policy; None if it is not known, as with answers that MLflow recorded."""
    weights: str | None = None
    """The first 16 digits of the digest of the policy's folder."""
    finished: bool = True
    """Whether the end of turn was reached; False for an answer that was cut off."""
    seed: int | None = None
    max_new_tokens: int | None = None
    decoding: Mapping[str, float] | None = None

    @classmethod
    def of(cls, value: Any) -> "Answer":
        """The answer in an element of `answers`; RowFault if the element is not an answer."""
        if not isinstance(value, Mapping):
            raise RowFault("wrong_type", f"'answers': expected objects with `text`, found {type(value).__name__}")
        text(value, "text")
        if unknown := sorted(map(str, set(value) - set(cls.__dataclass_fields__))):
            raise RowFault("wrong_type", f"'answers': expected keys among {', '.join(cls.__dataclass_fields__)}, found {unknown}")
        if not isinstance(value.get("finished", True), bool):
            raise RowFault("wrong_type", f"'finished': expected true or false, found {value['finished']!r}")
        if set(value.get("decoding") or {}) - set(Decoding._fields):
            raise RowFault("wrong_type", f"'decoding': expected keys among {', '.join(Decoding._fields)}")
        return cls(**value)


@dataclass(frozen=True)
class Line:
    """What somebody said: a vote between two answers, a thumb on one of them, or a better answer than it."""

    id: str
    """What it is about. A later line with the same id replaces an earlier one: people change their minds."""
    kind: str
    time: str
    """UTC, as ISO 8601 writes it."""
    messages: list[Message]
    """The conversation up to the question."""
    answers: list[Answer]
    """One answer, or two: A and B, as they stood side by side."""
    verdict: str
    """Of a vote or thumb one of VERDICTS, of a correction the better answer."""
    about: int = 0
    """Which of the answers a thumb or a correction is about."""
    source: str = "chat"
    """Where it was said: `chat` or `mlflow`."""

    @classmethod
    def of(cls, row: Row) -> "Line":
        """The line in an object of a file; RowFault if the object is not a line."""
        if unknown := sorted(map(str, set(row) - set(cls.__dataclass_fields__))):
            raise RowFault("wrong_type", f"expected keys among {', '.join(cls.__dataclass_fields__)}, found {unknown}")
        kind = text(row, "kind")
        if kind not in (*VERDICTS, CORRECTION):
            raise RowFault("wrong_type", f"'kind': expected {', '.join(VERDICTS)} or {CORRECTION}, found {kind[:40]!r}")
        answers = [Answer.of(value) for value in listing(row, "answers")]
        expected = (2,) if kind == VOTE else (1, 2)
        if len(answers) not in expected:
            raise RowFault(
                "wrong_type", f"'answers': expected {' or '.join(map(str, expected))} for a {kind}, found {len(answers)}"
            )
        verdict = text(row, "verdict")
        if kind in VERDICTS and verdict not in VERDICTS[kind]:
            raise RowFault("wrong_type", f"'verdict': expected {', '.join(VERDICTS[kind])} for a {kind}, found {verdict[:40]!r}")
        about = row.get("about", 0)
        if type(about) is not int or not 0 <= about < len(answers):
            raise RowFault("wrong_type", f"'about': expected a position in `answers`, which are {len(answers)}, found {about!r}")
        turns = messages(required(row, "messages"), "messages")
        return cls(text(row, "id"), kind, text(row, "time"), turns, answers, verdict, about, str(row.get("source", "chat")))

    def json(self) -> str:
        """The line as a file holds it, without its end.

        Raises:
            ValueError: it holds a lone surrogate.
        """
        text = json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)
        require_whole_characters(text)
        return text
