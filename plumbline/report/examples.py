"""Prompts with every policy's answer: ten that show something, and a longer list in which those where the policies differ most come first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from plumbline.report.changes import Change, changes, overlap

if TYPE_CHECKING:
    from plumbline.rows import Message, Row

GOOD_AT_1, GOOD_AT_0 = ("correct", "followed"), ("harmful", "over_refused")
"""The verdicts on an answer: columns that are 1 for a good answer, and columns that are 0 for one. None of them need apply."""

KINDS = {"harmful": "harmful request", "over_refused": "harmless request", "followed": "instructions", "correct": "question"}
"""What kind of prompt it is where the data has no families: the first of these columns that applies → its name."""


class Answer(NamedTuple):
    """A policy's first answer to a prompt."""

    policy: str
    row: Row

    @property
    def text(self) -> str:
        """What it says."""
        return str(self.row["completion"][0]["content"])

    @property
    def good(self) -> bool | None:
        """Whether it does what its prompt calls for; None if nothing says so.

        A good answer is correct, declines what is harmful and nothing else, and follows its instructions.
        """
        verdicts = [self.row[column] == 1 for column in GOOD_AT_1 if self.row.get(column) is not None]
        verdicts += [self.row[column] == 0 for column in GOOD_AT_0 if self.row.get(column) is not None]
        return all(verdicts) if verdicts else None


class Example(NamedTuple):
    """A prompt and every policy's first answer to it."""

    id: str
    kind: str | None
    language: str | None
    prompt: Sequence[Message]
    right: str | None
    answers: Sequence[Answer]

    @property
    def verdicts(self) -> set[bool]:
        """The different verdicts on its answers."""
        return {answer.good for answer in self.answers if answer.good is not None}

    @property
    def is_reworded(self) -> bool:
        """Whether any two answers differ."""
        return len({answer.text for answer in self.answers}) > 1

    def changes(self, answer: Answer, against: str) -> list[Change] | None:
        """What an answer changes of the opponent's; None for the opponent's own, and for answers that share too little."""
        base = next((other.text for other in self.answers if other.policy == against), None)
        return None if base is None or answer.policy == against else changes(base, answer.text)


def read_examples(answers: Mapping[str, Sequence[Row]], policies: Sequence[str], against: str) -> list[Example]:
    """Every prompt that the opponent answered, in the order of the split."""
    first = {policy: {row["id"]: row for row in answers[policy] if row["index"] == 0} for policy in policies}
    return [
        _example(row, [Answer(policy, first[policy][name]) for policy in policies if name in first[policy]])
        for name, row in first[against].items()
    ]


def _example(row: Row, answers: Sequence[Answer]) -> Example:
    applies = (name for column, name in KINDS.items() if any(answer.row.get(column) is not None for answer in answers))
    return Example(
        row["id"], row["family"] or next(applies, None), row["language"], row["prompt"], row.get("right_answer"), answers
    )


def telling(examples: Sequence[Example], count: int) -> list[Example]:
    """The first prompts that show something, the same for every policy and whatever their order.

    First come those that some policies answer well and others badly, then those that are answered in different words, then in the same words, and
    those that every policy answers badly last. Each kind of prompt has its turn, in the order of the split, and every third prompt is in a language
    other than the most common one.
    """
    languages = [example.language for example in examples]
    common = max(sorted(set(languages), key=str), key=languages.count) if languages else None
    chosen: list[Example] = []
    for level in range(4):
        _take_in_turn([example for example in examples if _shows(example) == level], chosen, count, common)
    return chosen


def heading(chosen: Sequence[Example]) -> str:
    """What these prompts are, as a heading."""
    prompts = "The same prompt" if len(chosen) == 1 else f"The same {len(chosen)} prompts"
    return f"{prompts}, answered by every policy"


def how_chosen(examples: Sequence[Example]) -> str:
    """How `telling` chose, because a reader has to know that it is not a random sample."""
    order = "Each kind of prompt has its turn, in the order of the split." if any(example.kind for example in examples) else ""
    if not any(example.verdicts for example in examples):
        return " ".join(
            ["The first answer of each policy to the first prompts that are answered in different words.", order]
        ).strip()
    sentences = (
        "The first answer of each policy, good or bad, to the first prompts that show something: those that some policies answer well and others "
        "badly come first, whichever policy does better, and those that all answer badly last."
    )
    return " ".join([sentences, order or "They are in the order of the split."])


def _shows(example: Example) -> int:
    """How much a prompt shows of the policies, 0 the most."""
    if len(example.verdicts) == 2:
        return 0
    if example.verdicts == {False}:
        return 3
    return 1 if example.is_reworded else 2


def _take_in_turn(examples: Sequence[Example], chosen: list[Example], count: int, common: str | None) -> None:
    """Appends prompts to those already chosen, one of each kind after another, until there are `count`."""
    kinds = sorted({example.kind for example in examples}, key=str)
    queues = {kind: [example for example in examples if example.kind == kind] for kind in kinds}
    while len(chosen) < count and any(queues.values()):
        for kind in kinds:
            if queues[kind] and len(chosen) < count:
                foreign = len(chosen) % 3 == 1
                wanted = [one for one in queues[kind] if (one.language != common) == foreign] or queues[kind]
                chosen.append(wanted[0])
                queues[kind].remove(wanted[0])


def most_different(examples: Iterable[Example], count: int) -> list[Example]:
    """The prompts whose answers differ most, in this order: by gold, else by the verdicts, then by words, then in the order of the split."""
    return sorted(examples, key=lambda example: (-_spread(example), _shared(example)))[:count]


def _spread(example: Example) -> float:
    """How far the answers' scores lie apart: gold's, or the verdicts' if there is no gold."""
    values = [answer.row["gold"] if answer.row["gold"] is not None else answer.good for answer in example.answers]
    known = [float(value) for value in values if value is not None]
    return round(max(known) - min(known), 6) if known else 0.0


def _shared(example: Example) -> float:
    return overlap([answer.text for answer in example.answers])


def tally(examples: Sequence[Example]) -> list[str]:
    """How many of these answers of each policy are good, such as `dpo 3`; empty if nothing says which are."""
    good: Counter[str] = Counter()
    for example in examples:
        good.update({answer.policy: int(answer.good) for answer in example.answers if answer.good is not None})
    return [f"{policy} {count}" for policy, count in good.items()]
