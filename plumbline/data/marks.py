"""What a row says of its answers in fields beside them: that a demonstration is bad, or which answer of a pair has the higher score."""

from collections.abc import Iterator, Mapping
from typing import Any

from plumbline.data.faults import RowFault
from plumbline.data.fields import RawRow
from plumbline.data.preferences import label_of
from plumbline.data.schema import Source

VERDICTS = ("kto_tag", "label", "good", "is_good", "accepted", "is_accepted", "acceptable", "desirable", "correct", "is_correct")
"""Fields that say whether an answer is good (LLaMA-Factory's kto_tag, TRL's label), if their value is true or false."""

_SCORES = {"score", "rating", "reward"}
_QUALIFIERS = {"avg", "average", "mean", "overall", "total", "final", "human", "model"}


def verdict_of(field: str, value: Any) -> bool | None:
    """Whether a field beside an answer calls it good; None if it says nothing of the kind, such as a class 0, 1 or 2 in `label`."""
    name = str(value).strip().lower()
    if field not in VERDICTS or name not in (("true", "false", "1", "0") if field == "kto_tag" else ("true", "false")):
        return None
    return name in ("true", "1")


def refuse_bad_demonstration(row: RawRow, source: Source) -> None:
    """Raises a RowFault for a row with a verdict that its answer is bad."""
    states_values = bool(source.positive or source.negative) and not source.fields
    if states_values and "label" in row and not label_of(row["label"], source):
        raise RowFault("undesirable", f"label is {str(row['label'])[:40]!r}")
    if bad := next((field for field in row if verdict_of(field, row[field]) is False), None):
        raise RowFault("undesirable", f"{bad} is false")


def compare_scores(row: RawRow, source: Source) -> bool:
    """Whether the scores of a pair, if the row has some, are equal.

    Raises:
        RowFault: a score contradicts the order of the pair.
    """
    tied = False
    for name, chosen, rejected in _scores(row, source):
        if chosen < rejected:
            raise RowFault("against_scores", f"{name}: {chosen:g} for chosen, {rejected:g} for rejected")
        tied = tied or chosen == rejected
    return tied


def _scores(row: RawRow, source: Source) -> Iterator[tuple[str, float, float]]:
    """(field, chosen's score, rejected's score) for each pair of fields such as score_chosen and score_rejected, also in `metadata`."""
    first, second = source.fields.get("chosen", "chosen"), source.fields.get("rejected", "rejected")
    if source.fields and "chosen" not in source.fields:
        return
    for fields in (row, *(value for value in row.values() if isinstance(value, Mapping))):
        for name, value in fields.items():
            other = str(name).replace(first, second)
            scores = _number(value), _number(fields.get(other))
            if other != name and _is_score(str(name).replace(first, " ")) and scores[0] is not None and scores[1] is not None:
                yield str(name), scores[0], scores[1]
    margin = _number(row.get("margin"))
    if margin is not None and margin < 0:
        yield "margin", margin, 0.0


def _is_score(name: str) -> bool:
    words = set(name.lower().replace("_", " ").replace("-", " ").replace(".", " ").split())
    return bool(words & _SCORES) and words <= _SCORES | _QUALIFIERS


def _number(value: Any) -> float | None:
    """The number in a field, also as text; None if there is none."""
    try:
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
