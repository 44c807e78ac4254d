"""Selects completions by their rewards: pure functions of the rewards of one prompt, or of all prompts.

Statistical rejection sampling (RSO, arXiv:2309.06657, §3.2, Algorithm 1) thins out completions drawn from q = π_SFT so that those left are
distributed as p(y) ∝ q(y) exp(r(y)/β), the optimal policy at KL strength β. The textbook form keeps y if u ≤ p(y)/(M q(y)), with u uniform and
M = max p/q. With M estimated from the largest reward among the candidates, that is u ≤ exp((r − r_max)/β).
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DIGIT_BITS, DIGITS = np.uint64(16), 2**16
LOWEST_DIGIT, SIGN = np.uint64(DIGITS - 1), np.uint64(1 << 63)


def acceptance_probabilities(log_ratios: Sequence[float], log_bound: float | None = None) -> list[float]:
    """p(y)/(M·q(y)) of each candidate.

    log_ratios: log p(y)/q(y) up to a constant, such as r(y)/β.
    log_bound: log M on the same scale; by default the largest of the ratios.

    Raises:
        ValueError: a ratio is not finite, or exceeds the bound, so that accepted candidates would not be distributed as p.
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
    """Positions of one prompt's accepted candidates, in the order of acceptance.

    keep: the number to accept. With 0, one pass is made and all that it accepts are kept: this is rejection sampling proper. Otherwise, as in
    Algorithm 1, passes over the remaining candidates, each with its own r_max, go on until `keep` are accepted or none remains. A completion
    that was drawn twice is two candidates.
    """
    accepted: list[int] = []
    remaining = list(range(len(rewards)))
    while remaining and (keep == 0 or len(accepted) < keep):
        selected = []
        probabilities = acceptance_probabilities([rewards[index] / beta for index in remaining])
        for index, probability in zip(remaining, probabilities, strict=True):
            if rng.random() < probability:
                selected.append(index)
                if keep and len(accepted) + len(selected) == keep:
                    break
        accepted += selected
        remaining = [index for index in remaining if index not in selected]
        if keep == 0:
            break
    return accepted


def best(rewards: Sequence[float], texts: Sequence[str], keep: int) -> list[int]:
    """Positions of the `keep` completions with the highest rewards (0: all), best first. Of equal rewards, the first sampled; no text twice."""
    distinct = {text: index for index, text in reversed(list(enumerate(texts)))}.values()
    return sorted(distinct, key=lambda index: (-rewards[index], index))[: keep or None]


def top_fraction_threshold(parts: Callable[[], Iterable[Floats]], fraction: float) -> float:
    """The lowest reward among the best `fraction` of all completions: RAFT's selection over the whole batch (arXiv:2304.06767).

    parts: returns the rewards, part after part, each time that it is called. They are never in memory together: as a float64's bits order like its
    value, the threshold is found 16 bits at a time, from the highest, by counting.
    """
    wanted = max(1, round(fraction * sum(len(part) for part in parts())))
    prefix = np.uint64(0)
    for shift in map(np.uint64, (48, 32, 16, 0)):
        histogram = np.zeros(DIGITS, dtype=np.int64)
        for part in parts():
            digits = _ordered_bits(part) >> shift
            within = digits if shift == 48 else digits[digits >> DIGIT_BITS == prefix]
            histogram += np.bincount((within & LOWEST_DIGIT).astype(np.int64), minlength=DIGITS)
        reached = np.cumsum(histogram[::-1])  # the number of rewards with at least this digit, from the highest digit down
        position = int(np.searchsorted(reached, wanted))
        wanted -= int(reached[position - 1]) if position else 0
        prefix = (prefix << DIGIT_BITS) | np.uint64(DIGITS - 1 - position)
    return _from_ordered_bits(prefix)


def _ordered_bits(values: Floats) -> NDArray[np.uint64]:
    """The bits of float64 numbers as unsigned integers that are in the same order: all flipped if negative, else the sign alone."""
    bits = np.ascontiguousarray(values, dtype=np.float64).view(np.uint64)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _from_ordered_bits(ordered: np.uint64) -> float:
    return float((ordered ^ SIGN if ordered & SIGN else ~ordered).view(np.float64))


class Match(NamedTuple):
    """The positions of two accepted completions of one prompt."""

    chosen: int
    rejected: int


def matches(
    accepted: Sequence[int], rewards: Sequence[float], texts: Sequence[str], pairs: str, min_margin: float, rng: random.Random
) -> list[Match]:
    """Pairs accepted completions, the one with the higher reward as chosen. Equal rewards or equal texts make no preference.

    Args:
        pairs: `best_vs_worst` pairs the best with the worst; `first_round` draws all of them into ⌊n/2⌋ pairs, and `tournament` pairs the winners
            again until one is left, in n − 1 pairs (RSO, §3.3).
        min_margin: rewards that differ by less make no preference either.
    """
    if pairs == "best_vs_worst":
        drawn = [Match(max(accepted, key=rewards.__getitem__), min(accepted, key=rewards.__getitem__))]
    else:
        drawn = _tournament(accepted, rewards, rounds=1 if pairs == "first_round" else None, rng=rng)
    return [
        match
        for match in drawn
        if rewards[match.chosen] > rewards[match.rejected]
        and rewards[match.chosen] - rewards[match.rejected] >= min_margin
        and texts[match.chosen] != texts[match.rejected]
    ]


def _tournament(accepted: Sequence[int], rewards: Sequence[float], rounds: int | None, rng: random.Random) -> list[Match]:
    """The matches of so many rounds, or of all until one completion is left; whoever has no opponent goes on."""
    standing, played = list(accepted), []
    rng.shuffle(standing)
    while len(standing) > 1 and rounds != 0:
        winners = standing[len(standing) // 2 * 2 :]
        for first, second in zip(standing[::2], standing[1::2], strict=False):
            match = Match(second, first) if rewards[second] > rewards[first] else Match(first, second)
            winners.append(match.chosen)
            played.append(match)
        standing, rounds = winners, None if rounds is None else rounds - 1
    return played
