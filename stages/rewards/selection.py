"""Which completions a reward selects: pure functions of one prompt's (or all prompts') rewards.

Statistical rejection sampling (RSO, arXiv:2309.06657, §3.2, Algorithm 1): completions drawn from q = π_SFT are thinned out so that what is
left is distributed as p(y) ∝ q(y) exp(r(y)/β), the optimal policy at KL strength β. The textbook form keeps y where u ≤ p(y)/(M q(y)),
u uniform; with M = max p/q, which the largest reward among the candidates stands for, that is u ≤ exp((r − r_max)/β).
"""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple


def acceptance_probabilities(log_ratios: Sequence[float], log_bound: float | None = None) -> list[float]:
    """p(y)/(M·q(y)) of each candidate, from log p(y)/q(y) up to a constant, such as r(y)/β.

    log_bound: log M on the same scale; without it the largest ratio among the candidates.

    Raises:
        ValueError: a ratio exceeds the bound, which then is none: the accepted would not be distributed as p; or one is not finite.
    """
    if not log_ratios:
        return []
    if not all(map(math.isfinite, log_ratios)):
        raise ValueError(
            f"rejection sampling: expected finite rewards, found {next(x for x in log_ratios if not math.isfinite(x))}"
        )
    largest = max(log_ratios)
    bound = largest if log_bound is None else log_bound
    if largest > bound:
        raise ValueError(f"rejection sampling: expected log p/q of at most log M = {bound:g}, found {largest:g}")
    return [math.exp(ratio - bound) for ratio in log_ratios]


def reject_statistically(rewards: Sequence[float], beta: float, keep: int, rng: random.Random) -> list[int]:
    """Positions of the accepted candidates of one prompt, in the order of acceptance.

    keep: how many to accept; 0: as many as one pass accepts, which is rejection sampling proper. Otherwise, as in Algorithm 1, passes over
    what is left are made, each with its own r_max, until there are `keep` or none is left. A completion that was drawn twice is two candidates.
    """
    accepted: list[int] = []
    remaining = list(range(len(rewards)))
    while remaining and (keep == 0 or len(accepted) < keep):
        taken = []
        probabilities = acceptance_probabilities([rewards[place] / beta for place in remaining])
        for place, probability in zip(remaining, probabilities, strict=True):
            if rng.random() < probability:
                taken.append(place)
                if keep and len(accepted) + len(taken) == keep:
                    break
        accepted += taken
        remaining = [place for place in remaining if place not in taken]
        if keep == 0:
            break
    return accepted


def best(rewards: Sequence[float], texts: Sequence[str], keep: int) -> list[int]:
    """Positions of the `keep` completions with the highest reward (0: all), the first sampled where rewards are equal; no text twice."""
    distinct = {text: place for place, text in reversed(list(enumerate(texts)))}.values()
    return sorted(distinct, key=lambda place: (-rewards[place], place))[: keep or None]


def top_fraction_threshold(rewards: Sequence[float], fraction: float) -> float:
    """The reward of the last of the best `fraction` of all completions: RAFT's selection over the whole batch (arXiv:2304.06767)."""
    count = max(1, round(fraction * len(rewards)))
    return sorted(rewards, reverse=True)[count - 1]


class Match(NamedTuple):
    """Two accepted completions of one prompt, by position."""

    chosen: int
    rejected: int


def matches(
    accepted: Sequence[int], rewards: Sequence[float], texts: Sequence[str], pairs: str, rng: random.Random
) -> list[Match]:
    """Preferences among accepted completions, the higher reward chosen (RSO, §3.3); equal rewards or texts make none.

    first_round: all are drawn into ⌊n/2⌋ pairs. tournament: the winners are drawn again until one is left, n − 1 pairs.
    """
    standing = list(accepted)
    rng.shuffle(standing)
    made = []
    while len(standing) > 1:
        winners = standing[len(standing) // 2 * 2 :]
        for first, second in zip(standing[::2], standing[1::2], strict=False):
            better, worse = (second, first) if rewards[second] > rewards[first] else (first, second)
            winners.append(better)
            if rewards[better] > rewards[worse] and texts[better] != texts[worse]:
                made.append(Match(better, worse))
        if pairs == "first_round":
            break
        standing = winners
    return made
