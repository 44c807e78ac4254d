"""Claims about how often intervals hold a truth that is known, and how often equal policies are called different."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import stats

from plumbline.evaluation.comparisons import compare_pairs
from tests.simulated import Case, cases, covered, golds

TRIALS, RESAMPLES = 200, 400
NAMES = [
    "gold", "gain", "win rate", "length-controlled win rate", "best of 4", "KL, k1", "KL, k3", "a fraction of 3 %",
]  # fmt: skip


@cache
def by_name() -> dict[str, Case]:
    return {case.name: case for case in cases()}


@pytest.mark.parametrize("name", NAMES)
def test_intervals_hold_the_truth_19_times_in_20(name: str) -> None:
    """Within what the binomial distribution allows 200 trials with a chance of 95 %: one in a thousand is outside."""
    low, high = stats.binom.ppf([0.0005, 0.9995], TRIALS, 0.95)
    assert low <= covered(by_name()[name], 150, TRIALS, RESAMPLES) <= high


def test_every_case_is_measured() -> None:
    assert [*by_name()] == NAMES


def equal_policies(generator: np.random.Generator, policies: int, n: int) -> dict[str, list[dict[str, Any]]]:
    """Policies of the same skill that answer the same prompts, of which some are hard for all."""
    hard = generator.random(n) < 0.3
    return {
        f"policy{number}": [
            {"id": f"p{prompt}", "index": index, "gold": float(value)}
            for prompt, of_prompt in enumerate(golds(generator, n, hard=hard))
            for index, value in enumerate(of_prompt)
        ]
        for number in range(policies)
    }


@pytest.mark.parametrize("policies", [2, 4])
def test_equal_policies_are_seldom_called_different_however_many_there_are(policies: int) -> None:
    generator, runs = np.random.default_rng(5), 300
    different = sum(
        any(pair.differs for pair in compare_pairs(equal_policies(generator, policies, 60), "gold", 1)) for _ in range(runs)
    )
    assert different <= stats.binom.ppf(0.9995, runs, 0.05)
