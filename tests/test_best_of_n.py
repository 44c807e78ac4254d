"""Claims about best of n: the estimator is the mean over all subsets, and KL is bounded as the paper says."""

import itertools
import math
import random

import pytest

from plumbline.evaluation.best_of_n import best_of_n_kl, expected_best


def mean_over_subsets(keys: list[float], values: list[float], n: int) -> float:
    """The definition: of each subset of n answers, the mean value of those with the highest key."""
    chosen = []
    for subset in itertools.combinations(range(len(keys)), n):
        highest = max(keys[row] for row in subset)
        best = [values[row] for row in subset if keys[row] == highest]
        chosen.append(sum(best) / len(best))
    return sum(chosen) / len(chosen)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("ties", [False, True])
def test_the_estimator_is_the_mean_over_all_subsets(n: int, ties: bool) -> None:
    rng = random.Random(n)
    keys = [float(rng.randrange(3)) if ties else rng.random() for _ in range(7)]
    values = [rng.random() for _ in keys]
    assert expected_best(keys, values, n) == pytest.approx(mean_over_subsets(keys, values, n))


def test_two_answers_of_three_by_hand() -> None:
    """Of keys 1, 2, 3 the subsets of two have the best 2, 3, 3: values 20, 30, 30."""
    assert expected_best([1.0, 2.0, 3.0], [10.0, 20.0, 30.0], 2) == pytest.approx(80 / 3)
    assert expected_best([3.0, 1.0, 2.0], [30.0, 10.0, 20.0], 2) == pytest.approx(
        80 / 3
    )  # the order of the answers does not matter


def test_answers_with_one_key_are_worth_their_mean_whatever_n_is() -> None:
    for n in (1, 2, 4):
        assert expected_best([5.0] * 4, [0.0, 1.0, 2.0, 5.0], n) == pytest.approx(2.0)


def test_more_than_there_are_cannot_be_chosen_from() -> None:
    with pytest.raises(ValueError, match="expected from 1 to 3 answers to choose from, found 4"):
        expected_best([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 4)


def test_the_kl_of_best_of_n_is_its_bound_where_no_rewards_are_equal() -> None:
    """For uniform rewards u, best of n has the density n·u^(n−1): KL = ∫ n u^(n−1) log(n u^(n−1)) du, here by the midpoint rule."""
    assert best_of_n_kl(1) == 0.0
    for n in (2, 4, 16):
        steps = 200_000
        points = ((step + 0.5) / steps for step in range(steps))
        integral = sum(n * u ** (n - 1) * math.log(n * u ** (n - 1)) for u in points) / steps
        assert best_of_n_kl(n) == pytest.approx(integral, abs=1e-4)
