"""How often the judge and the reward of an evaluation are right, where the right order of two answers is known.

Known is gold where the verifier knows the prompt, else whether the answer is right. Pairs that are equally good, and pairs between which the
judge or the reward sees no difference, are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from plumbline.evaluation.statistics import Interval, fraction_interval

if TYPE_CHECKING:
    from plumbline.evaluation.figures import Score

Case = tuple[str, float]
"""A prompt's id, and 1 if a pair of its answers is ordered as it is known to be, else 0."""


def agreements(scores: Sequence[Score], against: Sequence[Score]) -> Mapping[str, tuple[Interval | None, int]]:
    """Figure → the fraction of pairs that are ordered rightly with its interval over prompts, and the number of these pairs.

    judge_agreement: the policy's answer and the opponent's of the same index, by the verdicts of the win rate.
    reward_agreement: two answers of the policy to the same prompt, by the reward; of several answers to a prompt, each pair.
    """
    cases = {"judge_agreement": [*_of_judge(scores, against)], "reward_agreement": [*_of_reward(scores)]}
    return {
        key: (fraction_interval([right for _, right in of_key], [prompt for prompt, _ in of_key]), len(of_key))
        for key, of_key in cases.items()
    }


def _of_judge(scores: Sequence[Score], against: Sequence[Score]) -> Iterator[Case]:
    theirs = {(score.id, score.index): _quality(score) for score in against}
    for score in scores:
        verdict = None if score.win is None else score.win - 0.5
        yield from _case(score.id, verdict, _difference(_quality(score), theirs[score.id, score.index]))


def _of_reward(scores: Sequence[Score]) -> Iterator[Case]:
    by_prompt: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        by_prompt[score.id].append(score)
    for prompt, of_prompt in by_prompt.items():
        for first, second in combinations(of_prompt, 2):
            yield from _case(prompt, _difference(first.reward, second.reward), _difference(_quality(first), _quality(second)))


def _quality(score: Score) -> float | None:
    return score.verifiable if score.gold is None else score.gold


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _case(prompt: str, stated: float | None, known: float | None) -> Iterator[Case]:
    """One case if there is a verdict and a known order, and neither is a tie."""
    if stated and known:
        yield prompt, float((stated > 0) == (known > 0))
