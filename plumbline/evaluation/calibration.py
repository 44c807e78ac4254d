"""How often the judge and the reward of an evaluation are right, where the right order of two answers is known.

Known is gold where the verifier knows the prompt. Elsewhere an answer is good if every verdict on it is: it is right, it declines what is harmful
and nothing else, and it follows its instructions. Pairs that are equally good, and pairs between which the judge or the reward sees no difference,
are left out.
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
    reward_agreement: by the reward, two answers of the policy to the same prompt, each pair of several; and the pairs of judge_agreement.
    """
    cases = {"judge_agreement": [*_of_judge(scores, against)], "reward_agreement": [*_of_reward(scores, against)]}
    return {
        key: (fraction_interval([right for _, right in of_key], [prompt for prompt, _ in of_key]), len(of_key))
        for key, of_key in cases.items()
    }


def _of_judge(scores: Sequence[Score], against: Sequence[Score]) -> Iterator[Case]:
    for ours, theirs in _with_opponent(scores, against):
        verdict = None if ours.win is None else ours.win - 0.5
        yield from _case(ours.id, verdict, _difference(_quality(ours), _quality(theirs)))


def _of_reward(scores: Sequence[Score], against: Sequence[Score]) -> Iterator[Case]:
    by_prompt: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        by_prompt[score.id].append(score)
    of_policy = (pair for of_prompt in by_prompt.values() for pair in combinations(of_prompt, 2))
    for first, second in (*of_policy, *_with_opponent(scores, against)):
        yield from _case(first.id, _difference(first.reward, second.reward), _difference(_quality(first), _quality(second)))


def _with_opponent(scores: Sequence[Score], against: Sequence[Score]) -> Iterator[tuple[Score, Score]]:
    """Each answer of the policy with the opponent's of the same index; none for the opponent itself."""
    if scores is not against:
        theirs = {(score.id, score.index): score for score in against}
        yield from ((score, theirs[score.id, score.index]) for score in scores)


def _quality(score: Score) -> float | None:
    """How good an answer is known to be, from 0 to 1; None if nothing says so."""
    if score.gold is not None:
        return score.gold
    good = [score.verifiable, score.followed, *(_difference(1.0, bad) for bad in (score.harmful, score.over_refused))]
    return min((value for value in good if value is not None), default=None)


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _case(prompt: str, stated: float | None, known: float | None) -> Iterator[Case]:
    """One case if there is a verdict and a known order, and neither is a tie."""
    if stated and known:
        yield prompt, float((stated > 0) == (known > 0))
