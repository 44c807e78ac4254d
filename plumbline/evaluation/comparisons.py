"""All policies of a recipe against each other: ratings, and for each pair whether the difference is more than chance.

Pairs are compared by a paired t-test over prompts, each with the mean of its answers, and the p-values are corrected for the number of pairs by
Holm's method (*Scandinavian Journal of Statistics* 6, 1979): the chance that any two equal policies are called different is at most 5 %.
A difference that is the same on all prompts has no variance to base a test on: its p-value is that of its exact interval (`paired_p_value`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import ceil, nan
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri, stdtr

from plumbline.evaluation.ratings import ratings
from plumbline.evaluation.statistics import CONFIDENCE, Floats, Interval, bootstrap_mean

MEASURES = {
    "gold": "gold",
    "win": "the judge’s verdicts against the opponent",
    "verifiable": "right answers",
    "followed": "instructions followed",
    "reward": "the reward",
}
"""What policies can be compared by, the most telling first: column of an answer → its name."""

POWER = 0.8
"""The chance with which a difference should be found by as many prompts as it is said to take."""

Row = Mapping[str, Any]
Answers = Mapping[str, Sequence[Row]]
"""Policy → its scored answers, as `evaluate` writes them."""


DIGITS = 12
"""Differences are rounded to so many decimals: without it, equal means that were summed in another order would differ, and always by as much."""


class Rated(NamedTuple):
    """A policy with its rating in Elo points above the opponent."""

    policy: str
    rating: Interval


class Pair(NamedTuple):
    """Two policies, the first of them the better by what was measured."""

    policy: str
    other: str
    difference: Interval
    p_value: float
    """Of the paired t-test, two-sided, corrected by Holm's method."""
    differs: bool
    """Whether p_value is at most 5 %."""
    prompts_needed: int | None
    """How many prompts would show a difference of this size with a power of 80 %; None for no difference at all, or without a spread to go by."""
    detectable: float | None
    """The difference that as many prompts as there are show with a power of 80 %; None without a spread to go by."""


class Comparisons(NamedTuple):
    """What the policies were compared by, and how they compare."""

    measure: str
    """A key of MEASURES."""
    rated: list[Rated]
    """The best first."""
    pairs: list[Pair]
    """In the order of the ratings."""

    def are_distinguishable(self, policy: str, other: str) -> bool:
        """Whether two policies differ by more than chance."""
        return any(pair.differs for pair in self.pairs if {pair.policy, pair.other} == {policy, other})


def compare_policies(answers: Answers, against: str, seed: int) -> Comparisons | None:
    """Compares every two policies by the most telling column of which all have values; None for fewer than two policies, or without such a column."""
    measure = next((column for column in MEASURES if all(_has(rows, column) for rows in answers.values())), None)
    if measure is None or len(answers) < 2:
        return None
    kept = {policy: [row for row in rows if row[measure] is not None] for policy, rows in answers.items()}
    policies = [*answers]
    of_pairs = wins_by_judge(kept, against) if measure == "win" else wins_by_value(kept, measure)
    values = ratings(of_pairs, policies.index(against), seed=seed)
    rated = sorted((Rated(*one) for one in zip(policies, values, strict=True)), key=lambda one: -one.rating.value)
    return Comparisons(measure, rated, compare_pairs({one.policy: kept[one.policy] for one in rated}, measure, seed, against))


def _has(rows: Sequence[Row], column: str) -> bool:
    return any(row.get(column) is not None for row in rows)


def wins_by_value(answers: Answers, column: str) -> Floats:
    """Wins of each policy over each other by prompt (prompts, policies, policies): the answer of the same index with the larger value wins."""
    values = {policy: {(row["id"], row["index"]): row[column] for row in rows} for policy, rows in answers.items()}
    keys = [key for key in next(iter(values.values())) if all(key in of_policy for of_policy in values.values())]
    table = np.array([[of_policy[key] for key in keys] for of_policy in values.values()], dtype=np.float64)
    each = (1 + np.sign(table[:, None] - table[None])) / 2  # (policies, policies, answers)
    each[range(len(values)), range(len(values))] = 0
    return _by_prompt(each, [prompt for prompt, _ in keys])


def wins_by_judge(answers: Answers, against: str) -> Floats:
    """The same by a judge who compared every policy with the opponent only: (prompts, policies, policies)."""
    policies = [*answers]
    opponent = policies.index(against)
    keys = [*dict.fromkeys((row["id"], row["index"]) for rows in answers.values() for row in rows)]
    positions = {key: position for position, key in enumerate(keys)}
    each = np.zeros((len(policies), len(policies), len(keys)))
    for number, policy in enumerate(policies):
        for row in answers[policy] if number != opponent else ():
            position = positions[row["id"], row["index"]]
            each[number, opponent, position], each[opponent, number, position] = row["win"], 1 - row["win"]
    return _by_prompt(each, [prompt for prompt, _ in keys])


def _by_prompt(each: Floats, prompts: Sequence[str]) -> Floats:
    """Sums over the answers to each prompt: (prompts, policies, policies) of (policies, policies, answers)."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    sums = np.zeros((len(numbers), *each.shape[:2]))
    np.add.at(sums, [numbers[prompt] for prompt in prompts], each.transpose(2, 0, 1))
    return sums


def compare_pairs(answers: Answers, column: str, seed: int, against: str | None = None) -> list[Pair]:
    """Every pair of policies, with p-values corrected for their number. Prompts that only one of the two has values for are left out.

    against: the judge's opponent, if the column is `win`.
    """
    found = [
        _compare(answers, *pair, column, lowest_difference(column, against in pair), seed) for pair in combinations(answers, 2)
    ]
    alpha = (1 - CONFIDENCE) / len(found)  # Holm's first step: what is enough there is enough at every other
    return [
        Pair(
            *of_pair[:3],
            p_value,
            differs=p_value <= 1 - CONFIDENCE,
            prompts_needed=None
            if of_pair.deviation is None
            else prompts_needed(of_pair.difference.value, of_pair.deviation, alpha),
            detectable=None if of_pair.deviation is None else detectable(of_pair.difference.n, of_pair.deviation, alpha),
        )
        for of_pair, p_value in zip(found, holm([of_pair.p_value for of_pair in found]), strict=True)
    ]


def lowest_difference(column: str, with_opponent: bool) -> float | None:
    """The lowest difference of two policies on a prompt, whose negative is the highest; None if it has no bound.

    with_opponent: whether one of them is the judge's opponent, whose answers tie with themselves: its `win` is always 0.5.
    """
    if column == "reward":
        return None
    return -0.5 if column == "win" and with_opponent else -1.0


class _Found(NamedTuple):
    policy: str
    other: str
    difference: Interval
    deviation: float | None
    """The standard deviation of a prompt's difference; None for a single prompt, and if it is the same on every prompt, but not 0."""
    p_value: float


def _compare(answers: Answers, policy: str, other: str, column: str, lowest: float | None, seed: int) -> _Found:
    """Two policies, the better one first; lowest: of `lowest_difference`."""
    means = {name: _means(answers[name], column) for name in (policy, other)}
    prompts = [prompt for prompt in means[policy] if prompt in means[other]]
    if not prompts:
        raise ValueError(
            f"report: expected prompts for which both {policy} and {other} have {column}, found none; evaluate both on the same prompts"
        )
    values = {name: np.array([of_policy[prompt] for prompt in prompts]) for name, of_policy in means.items()}
    first, second = (policy, other) if values[policy].mean() >= values[other].mean() else (other, policy)
    differences = np.round(values[first] - values[second], DIGITS)
    deviation = float(differences.std(ddof=1)) if len(prompts) > 1 else None
    difference = bootstrap_mean(differences.tolist(), prompts, seed=seed, within=None if lowest is None else (lowest, -lowest))
    assert difference is not None, "there are prompts"
    if difference.value and not np.ptp(differences):
        deviation = None
    p_value = paired_p_value(difference.value, deviation, len(prompts), lowest)
    if deviation is None and lowest is None and p_value > 1 - CONFIDENCE:  # the sign test has no interval of so few prompts
        difference = difference._replace(low=nan, high=nan)
    return _Found(first, second, difference, deviation, p_value)


def _means(rows: Sequence[Row], column: str) -> dict[str, float]:
    """The mean of each prompt's answers."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["id"], []).append(row[column])
    return {prompt: sum(of_prompt) / len(of_prompt) for prompt, of_prompt in values.items()}


def paired_p_value(difference: float, deviation: float | None, n: int, lowest: float | None = None) -> float:
    """The two-sided p-value of a paired t-test: how often n prompts would show so large a mean difference if there were none.

    If the same difference on all prompts, or a single prompt, says nothing of the spread, the p-value is one minus the confidence at which the
    interval of such a difference (statistics.py) touches 0: 2 · (−lowest / (|difference| − lowest))^n. Without bounds, and at the highest
    difference, that is the sign test: how often n coins fall alike.

    deviation: of a prompt's difference; None if nothing is said of it.
    lowest: the lowest difference on a prompt (`lowest_difference`).
    """
    if difference == 0:
        return 1.0
    if deviation:
        return 2 * float(stdtr(n - 1, -abs(difference) * n**0.5 / deviation))
    share = 0.5 if lowest is None else lowest / (lowest - abs(difference))
    return min(1.0, 2 * share**n)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected by Holm's method, in the same order: the smallest of m times m, the next times m − 1 …, never falling."""
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = highest
    return corrected


def prompts_needed(difference: float, deviation: float, alpha: float) -> int | None:
    """How many prompts show a difference with a power of 80 % at this level, two-sided: ((z_(1 − α/2) + z_power) · σ / δ)². None for no difference.

    deviation: σ, of a prompt's difference.
    """
    return max(2, ceil((_quantiles(alpha) * deviation / difference) ** 2)) if difference else None


def detectable(n: int, deviation: float, alpha: float) -> float:
    """The difference that n prompts show with a power of 80 % at this level: the inverse of `prompts_needed`."""
    return _quantiles(alpha) * deviation / n**0.5


def _quantiles(alpha: float) -> float:
    return float(ndtri(1 - alpha / 2) + ndtri(POWER))
