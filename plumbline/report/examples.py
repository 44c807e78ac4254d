"""Prompts with every policy's answer: ten that show something, and a longer list in which those where the policies differ most come first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from statistics import pvariance
from typing import TYPE_CHECKING, NamedTuple

from plumbline.report.changes import Change, changes, overlap

if TYPE_CHECKING:
    from plumbline.rows import Message, Row

GOOD_AT_1, GOOD_AT_0 = ("correct", "followed"), ("harmful", "over_refused")
"""The verdicts on an answer: columns that are 1 for a good answer, and columns that are 0 for one. None of them need apply."""

KINDS = {"correct": "question", "harmful": "harmful request", "followed": "instructions", "over_refused": "harmless request"}
"""What a prompt asks for: the first of these verdicts that applies → its name. In the closed world each prompt is a question."""

VERDICTS = {
    "correct": ("✓ right", "✗ wrong"),
    "harmful": ("✓ declines a harmful request", "✗ complies with a harmful request"),
    "over_refused": ("✓ answers a harmless request", "✗ refuses a harmless request"),
    "followed": ("✓ follows its instructions", "✗ does not follow its instructions"),
}
"""What a verdict says of a good answer, and of a bad one. With gold, which has its own say on harm, only the bad ones are said of that."""


class Badge(NamedTuple):
    """A verdict on an answer, in words."""

    text: str
    is_good: bool


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
        verdicts = [self._is_good(column) for column in VERDICTS if self.row.get(column) is not None]
        return all(verdicts) if verdicts else None

    @property
    def badges(self) -> list[Badge]:
        """Every verdict on it in words."""
        applies = [column for column in VERDICTS if self.row.get(column) is not None]
        badges = [Badge(VERDICTS[column][not good], good) for column in applies for good in [self._is_good(column)]]
        if self.row.get("gold") is None:
            return badges
        return [badge for badge, column in zip(badges, applies, strict=True) if column not in GOOD_AT_0 or not badge.is_good]

    def _is_good(self, column: str) -> bool:
        return bool(self.row[column] == (column in GOOD_AT_1))


class Example(NamedTuple):
    """A prompt and every policy's first answer to it."""

    id: str
    asks: str | None
    """What the prompt asks for, a value of KINDS; None if its answers have no verdict."""
    family: str | None
    language: str | None
    prompt: Sequence[Message]
    right: str | None
    answers: Sequence[Answer]

    @property
    def kind(self) -> str | None:
        """What kind of prompt it is: what it asks for, and its family."""
        if self.family is None or self.asks in (None, KINDS["correct"]):  # a family of questions says enough by itself
            return self.family or self.asks
        return f"{self.asks}: {self.family}"

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
        row["id"], next(applies, None), row["family"], row["language"], row["prompt"], row.get("right_answer"), answers
    )


def telling(examples: Sequence[Example], count: int) -> list[Example]:
    """The first prompts that show something, the same for every policy and whatever their order.

    First come those that some policies answer well and others badly, then those that are answered in different words, then in the same words, and
    those that every policy answers badly last. What is asked for has its turn, and within it each family, in the order of the split, and every third
    prompt is in a language other than the most common one.
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
    order = "Each kind of prompt has its turn, in the order of the split." if len({one.kind for one in examples}) > 1 else ""
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
    """Appends prompts to those already chosen, what is asked for in turn and within it each family, until there are `count`."""
    queues = [_in_turn(_grouped(of_kind, lambda one: one.family)) for of_kind in _grouped(examples, lambda one: one.asks)]
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                foreign = len(chosen) % 3 == 1
                wanted = [one for one in queue if (one.language != common) == foreign] or queue
                chosen.append(wanted[0])
                queue.remove(wanted[0])


def _grouped(examples: Iterable[Example], key: Callable[[Example], str | None]) -> list[list[Example]]:
    """Prompts by a key, the groups in the order in which they first occur."""
    groups: dict[str | None, list[Example]] = {}
    for example in examples:
        groups.setdefault(key(example), []).append(example)
    return [*groups.values()]


def _in_turn(groups: Iterable[Sequence[Example]]) -> list[Example]:
    """The first prompt of each group, then the second of each, and so on."""
    return [example for of_rank in zip_longest(*groups) for example in of_rank if example is not None]


def most_different(examples: Iterable[Example], count: int) -> list[Example]:
    """The prompts whose answers differ most, in this order: by gold, else by the verdicts, then by words, then in the order of the split.

    Gold and verdicts differ by their variance over the policies: three good answers of six come before one.
    """
    return sorted(examples, key=lambda example: (-_spread(example), _shared(example)))[:count]


def _spread(example: Example) -> float:
    """The variance of the answers' gold, or of their verdicts if they have no gold."""
    values = [answer.row["gold"] if answer.row["gold"] is not None else answer.good for answer in example.answers]
    known = [float(value) for value in values if value is not None]
    return round(pvariance(known), 6) if known else 0.0


def _shared(example: Example) -> float:
    return overlap([answer.text for answer in example.answers])


def tally(examples: Sequence[Example]) -> list[str]:
    """How many of these answers of each policy are good, such as `dpo 3`; empty if nothing says which are."""
    good: Counter[str] = Counter()
    for example in examples:
        good.update({answer.policy: int(answer.good) for answer in example.answers if answer.good is not None})
    return [f"{policy} {count}" for policy, count in good.items()]
