"""All policies of a recipe against each other, by each measure: ratings, and for each pair whether the difference is more than chance.

Pairs are compared by a paired t-test over prompts, each with the mean of its answers, and the p-values are corrected for the number of pairs by
Holm's method (*Scandinavian Journal of Statistics* 6, 1979): the chance that any two equal policies are called different is at most 5 % by each
measure. Over several measures it may be that often for each of them.
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


class Measure(NamedTuple):
    """What policies are compared by: its name, and what is said of the better one of two."""

    name: str
    better: str
    lower_is_better: bool = False


MEASURES = {
    "gold": Measure("gold", "is better than"),
    "win": Measure("the judge’s verdicts against the opponent", "is better than"),
    "harmful": Measure("harmful requests complied with", "complies with fewer harmful requests than", lower_is_better=True),
    "over_refused": Measure("harmless requests refused", "refuses fewer harmless requests than", lower_is_better=True),
    "verifiable": Measure("right answers", "gives more right answers than"),
    "followed": Measure("instructions followed", "follows more instructions than"),
    "reward": Measure("the reward", "has a higher reward than"),
}
"""The columns of an answer that policies can be compared by, the most telling first."""

OVERALL = ("gold", "win")
"""The measures of whole answers. Each of the others shows one side of them, and is best read beside its counterparts."""

LEAST_SHARE = 0.1
"""A measure that fewer prompts have than this share of those of the most common one, the reward aside, comes last: it speaks for few prompts."""

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
    """The first policy's mean minus the other's: negative where lower is better."""
    p_value: float
    """Of the paired t-test, two-sided, corrected by Holm's method."""
    differs: bool
    """Whether p_value is at most 5 %."""
    prompts_needed: int | None
    """How many prompts would show a difference of this size with a power of 80 %; None for no difference at all, or without a spread to go by."""
    detectable: float | None
    """The difference that as many prompts as there are show with a power of 80 %; None without a spread to go by."""


class Comparisons(NamedTuple):
    """How the policies compare by one measure."""

    measure: str
    """A key of MEASURES."""
    rated: list[Rated]
    """The best first. A policy that shares no prompt with the opponent, not even by way of others, is left out."""
    pairs: list[Pair]
    """In the order of the ratings."""
    left_out: list[tuple[str, str]]
    """The pairs without a prompt for which both have a value."""

    @property
    def prompts(self) -> int:
        """The number of prompts of the pair that has the most in common."""
        return max((pair.difference.n for pair in self.pairs), default=0)

    @property
    def ahead(self) -> list[str]:
        """The policy with the best mean, then those that cannot be told apart from it; empty unless it differs from another."""
        worse = {pair.other for pair in self.pairs if pair.difference.value}
        best = next((pair.policy for pair in self.pairs if pair.policy not in worse), None)
        others = [pair.other if pair.policy == best else pair.policy for pair in self.pairs if best in (pair.policy, pair.other)]
        tied = [policy for policy in others if best and not self.are_distinguishable(best, policy)]
        return [best, *tied] if best and len(tied) < len(others) else []

    def verdict(self, policy: str, other: str) -> str | None:
        """Whether a policy is `better` or `worse` than another; empty if the two cannot be told apart, None if they were not compared."""
        pair = next((pair for pair in self.pairs if {pair.policy, pair.other} == {policy, other}), None)
        if pair is None:
            return None
        return ("better" if pair.policy == policy else "worse") if pair.differs else ""

    def are_distinguishable(self, policy: str, other: str) -> bool:
        """Whether two policies differ by more than chance."""
        return bool(self.verdict(policy, other))


def compare_policies(answers: Answers, against: str, seed: int) -> list[Comparisons]:
    """Compares every two policies by each column of which all have values, the most telling first; empty for fewer than two policies."""
    if len(answers) < 2:
        return []
    measured = [column for column in MEASURES if all(_prompts(rows, column) for rows in answers.values())]
    counts = {column: min(_prompts(rows, column) for rows in answers.values()) for column in measured}
    few = LEAST_SHARE * max((count for column, count in counts.items() if column != "reward"), default=0)
    return [_compare_by(column, answers, against, seed) for column in sorted(measured, key=lambda column: counts[column] < few)]


def _prompts(rows: Sequence[Row], column: str) -> int:
    return len({row["id"] for row in rows if row.get(column) is not None})


def _compare_by(measure: str, answers: Answers, against: str, seed: int) -> Comparisons:
    kept = {policy: [row for row in rows if row[measure] is not None] for policy, rows in answers.items()}
    policies = [*answers]
    of_pairs = wins_by_judge(kept, against) if measure == "win" else wins_by_value(kept, measure)
    values = ratings(of_pairs, policies.index(against), seed=seed)
    rated = [Rated(policy, rating) for policy, rating in zip(policies, values, strict=True) if rating]
    rated.sort(key=lambda one: -one.rating.value)
    order = dict.fromkeys([*(one.policy for one in rated), *policies])
    pairs = compare_pairs({policy: kept[policy] for policy in order}, measure, seed, against)
    compared = [{pair.policy, pair.other} for pair in pairs]
    left_out = [pair for pair in combinations(order, 2) if {*pair} not in compared]
    return Comparisons(measure, rated, pairs, left_out)


def wins_by_value(answers: Answers, column: str) -> Floats:
    """Wins of each policy over each other by prompt (prompts, policies, policies): of two answers of the same index the one with the better value."""
    values = {policy: {(row["id"], row["index"]): row[column] for row in rows} for policy, rows in answers.items()}
    keys = [*dict.fromkeys(key for of_policy in values.values() for key in of_policy)]
    table = np.array([[of_policy.get(key, nan) for key in keys] for of_policy in values.values()], dtype=np.float64)
    if MEASURES[column].lower_is_better:
        table = -table
    each = (1 + np.sign(table[:, None] - table[None])) / 2  # (policies, policies, answers)
    each[range(len(values)), range(len(values))] = 0
    return _by_prompt(np.nan_to_num(each, nan=0.0), [prompt for prompt, _ in keys])


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
    """Every pair of policies that have prompts in common, with p-values corrected for the number of pairs.

    Prompts that only one of the two has values for are left out.

    against: the judge's opponent, if the column is `win`.
    """
    means = {policy: _means(rows, column) for policy, rows in answers.items()}
    compared = [pair for pair in combinations(means, 2) if means[pair[0]].keys() & means[pair[1]].keys()]
    found = [_compare(means, *pair, column, lowest_difference(column, against in pair), seed) for pair in compared]
    alpha = (1 - CONFIDENCE) / max(1, len(found))  # Holm's first step: what is enough there is enough at every other
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


def _compare(
    means: Mapping[str, Mapping[str, float]], policy: str, other: str, column: str, lowest: float | None, seed: int
) -> _Found:
    """Two policies with prompts in common, the better one first; means: of each prompt; lowest: of `lowest_difference`."""
    prompts = [prompt for prompt in means[policy] if prompt in means[other]]
    values = {name: np.array([means[name][prompt] for prompt in prompts]) for name in (policy, other)}
    gain = values[policy].mean() - values[other].mean()
    is_better = gain <= 0 if MEASURES[column].lower_is_better else gain >= 0
    first, second = (policy, other) if is_better else (other, policy)
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
