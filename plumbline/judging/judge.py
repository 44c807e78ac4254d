"""What every judge returns, and what stages may ask of it: to rate, compare, rank or check completions.

A judge is one or several chat models (panel.py), people (human.py) or the closed world's verifier (gold.py). Every verdict keeps the reply
that it was read from.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from plumbline.judging.aggregation import UNPARSED, WINS
from plumbline.judging.asking import Ledger
from plumbline.judging.verdicts import Ranks, other_way_round
from plumbline.reasoning import ALL, without_reasoning
from plumbline.rows import Message

if TYPE_CHECKING:
    from plumbline.judging.conversations import Conversations

Prompts = Sequence[list[Message]]
Principle = Mapping[str, str]
"""A principle's text by language."""


class Verdict(NamedTuple):
    """One reply to one question, as read."""

    judge: str
    model: str
    template: str
    order: str
    """How the answers were shown: `ab`, `ba`, or a ranking's positions; empty for a single answer."""
    value: str | float | Ranks | None
    """The verdict in terms of the order shown; None if it could not be read."""
    reply: str
    attempts: int = 1
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    probability: float | None = None
    """A comparison's worth to the answer shown as A, P(A) + P(tie) / 2, if the endpoint gives log-probabilities."""

    def swapped(self) -> "Verdict":
        """The same verdict on two answers in terms of the other order: `ba` for `ab`, `b` for `a`, 1 - p for p."""
        return self._replace(
            order=self.order[::-1],
            value=other_way_round(self.value) if isinstance(self.value, str) else self.value,
            probability=None if self.probability is None else 1 - self.probability,
        )

    def in_order_ab(self) -> "Verdict":
        """The same verdict on two answers in terms of the order `ab`."""
        return self.swapped() if self.order == "ba" else self


class Rating(NamedTuple):
    """A completion's score: the mean of its verdicts, or None if none of them could be read."""

    score: float | None
    verdicts: list[Verdict]


class Comparison(NamedTuple):
    """Which of two answers is better."""

    outcome: str
    """`a`, `b`, `tie`, `inconsistent` (the verdict changed with the order) or `unparsed`."""
    verdicts: list[Verdict]
    opinions: dict[str, str]
    """The outcome by each rater alone: a member, one of its samples, or a person."""
    probability: float | None = None
    """P(A) + P(tie) / 2, the mean over both orders, if every verdict has one (RLAIF, arXiv:2309.00267, §2.1)."""

    @property
    def win(self) -> float | None:
        """The outcome's worth to A: 1, 0, or 0.5 for a tie or an inconsistent verdict; None if it is unparsed."""
        return WINS.get(self.outcome)

    @property
    def score(self) -> float | None:
        """The comparison's worth to A when labels are made: by token probabilities if there are any, else `win`."""
        return self.win if self.probability is None or self.outcome == UNPARSED else self.probability

    def swapped(self) -> "Comparison":
        """The same comparison with the answers named the other way round: its win is 1 - win."""
        renamed = [verdict._replace(order=verdict.order[::-1]) for verdict in self.verdicts]  # `value` still fits what was shown
        return Comparison(
            other_way_round(self.outcome),
            sorted(renamed, key=lambda verdict: verdict.order),
            {rater: other_way_round(outcome) for rater, outcome in self.opinions.items()},
            None if self.probability is None else 1 - self.probability,
        )


class Ranking(NamedTuple):
    """The answers' scores: the mean share of the others that each one beats, or None if no ranking could be read."""

    scores: list[float | None]
    verdicts: list[Verdict]
    flipped: int
    """Pairs of answers whose order changed with the order shown."""
    compared: int
    """Pairs of answers that were ranked in both orders shown."""


class Judge(ABC):
    """What stages call. Completions come as they were sampled; judged is what `answer` leaves of them."""

    name: str
    ledger: Ledger
    thinking_marks: str = ALL
    """Which marks set a completion's reasoning apart (plumbline/reasoning.py)."""

    def answer(self, completion: str) -> str:
        """What is judged of a completion, and shown to whoever judges it: all but its reasoning."""
        return without_reasoning(completion, self.thinking_marks)

    @abstractmethod
    def rate(self, prompts: Prompts, completions: Sequence[str]) -> list[Rating]:
        """Scores each completion on its own."""

    @abstractmethod
    def check(self, prompts: Prompts, completions: Sequence[str], principles: Sequence[Principle]) -> list[Rating]:
        """Checks whether each completion keeps to its principle; the score is the share of verdicts that say so."""

    @abstractmethod
    def compare(
        self, prompts: Prompts, first: Sequence[str], second: Sequence[str], principles: Sequence[Principle] | None = None
    ) -> list[Comparison]:
        """Compares two answers to each prompt; equal answers are a tie that nobody is asked about."""

    @abstractmethod
    def rank(self, prompts: Prompts, groups: Sequence[Sequence[str]]) -> list[Ranking]:
        """Ranks all answers to each prompt."""

    def announce(self, share: float) -> None:  # noqa: B027  judges without a progress bar need not know
        """Announces which share of all questions the next call completes."""

    def take_conversations(self) -> "Conversations | None":
        """Some of the conversations since this was last called; None of a judge that is not asked in words."""
        return None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Finishes the judge when the block ends. After an error it is only closed, so that the error is the last word."""
        try:
            yield
        except BaseException:
            self.close()
            raise
        self.finish()

    def close(self) -> None:  # noqa: B027  judges without connections or files need not close anything
        """Closes what is open; nothing more will be asked."""

    @abstractmethod
    def finish(self) -> None:
        """Ends the judge's work: progress bars close, a dry run prints what it would have cost and stops."""


def rater_names(verdicts: Sequence[Verdict]) -> list[str]:
    """Who gave each verdict: the judge's name, numbered from its second sample on."""
    seen: Counter[str] = Counter()
    names = []
    for verdict in verdicts:
        seen[verdict.judge] += 1
        names.append(verdict.judge if seen[verdict.judge] == 1 else f"{verdict.judge} {seen[verdict.judge]}")
    return names
