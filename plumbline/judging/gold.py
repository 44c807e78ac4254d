"""The closed world's verifier as a judge: what AI labels are compared with, never what they should come from."""

from collections.abc import Iterable, Sequence

from plumbline.judging.asking import Ledger
from plumbline.judging.judge import Comparison, Judge, Principle, Prompts, Ranking, Rating, Verdict
from plumbline.judging.verdicts import TIE, A, B, Ranks, ranks_of, scores_from_ranks
from plumbline.reasoning import ALL


class VerifierJudge(Judge):
    """Judges by the verifier's gold score, from 0 to 1."""

    def __init__(self, thinking_marks: str = ALL) -> None:
        self.name = "gold"
        self.ledger = Ledger()
        self.thinking_marks = thinking_marks

    def rate(self, prompts: Prompts, completions: Sequence[str]) -> list[Rating]:
        """Maps the gold score to the scale of ratings, 1 to 10."""
        scores = [1 + 9 * gold for gold in self._gold(prompts, completions)]
        return [Rating(score, [self._verdict("", score)]) for score in scores]

    def check(self, prompts: Prompts, completions: Sequence[str], principles: Sequence[Principle]) -> list[Rating]:
        """Passes a gold score of at least one half, whatever the principle."""
        passed = [float(gold >= 0.5) for gold in self._gold(prompts, completions)]
        return [Rating(value, [self._verdict("", value)]) for value in passed]

    def compare(
        self, prompts: Prompts, first: Sequence[str], second: Sequence[str], principles: Sequence[Principle] | None = None
    ) -> list[Comparison]:
        golds = zip(self._gold(prompts, first), self._gold(prompts, second), strict=True)
        outcomes = [A if a > b else B if a < b else TIE for a, b in golds]
        return [Comparison(outcome, [self._verdict("ab", outcome)], {self.name: outcome}) for outcome in outcomes]

    def rank(self, prompts: Prompts, groups: Sequence[Sequence[str]]) -> list[Ranking]:
        rankings = []
        for prompt, group in zip(prompts, groups, strict=True):
            ranks = ranks_of([-gold for gold in self._gold([prompt] * len(group), group)])
            order = " ".join(map(str, range(len(group))))
            rankings.append(Ranking([*scores_from_ranks(ranks)], [self._verdict(order, ranks)], flipped=0, compared=0))
        return rankings

    def finish(self) -> None:
        """Nothing is open."""

    def _gold(self, prompts: Prompts, completions: Iterable[str]) -> list[float]:
        from plumbline.world.verify import verify

        return [verify(prompt, self.answer(completion)).gold for prompt, completion in zip(prompts, completions, strict=True)]

    def _verdict(self, order: str, value: str | float | Ranks) -> Verdict:
        return Verdict(self.name, "verifier", "", order, value, "")
