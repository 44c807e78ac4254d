"""Best of n: what a reward's choice among n answers is expected to be worth, and how far it is from the policy that answered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import comb, log

import numpy as np

from plumbline.evaluation.statistics import Floats


def expected_best(keys: Sequence[float] | Floats, values: Sequence[float] | Floats, n: int) -> float:
    """Mean value of the answer with the highest key among n, over all subsets of n of a prompt's answers.

    The unbiased estimator (Nakano et al. 2021, arXiv:2112.09332, appendix I): the answer of rank k (from 0, by key) is the highest of C(k, n − 1) of
    C(N, n) subsets. Answers whose keys are equal share their chances equally.

    Raises:
        ValueError: there are fewer than n answers.
    """
    if not 1 <= n <= len(keys):
        raise ValueError(f"expected from 1 to {len(keys)} answers to choose from, found {n}")
    order = np.argsort(np.asarray(keys), kind="stable")
    _, first, counts = np.unique(np.asarray(keys)[order], return_index=True, return_counts=True)
    shared = np.repeat(np.add.reduceat(_chances(len(keys), n), first) / counts, counts)
    return float(shared @ np.asarray(values, dtype=np.float64)[order])


def best_of_n_kl(n: int) -> float:
    """Upper bound of KL(best of n ‖ policy) in nats: log n − (n − 1)/n, reached if no two answers have the same reward (arXiv:2401.01879)."""
    return log(n) - (n - 1) / n


@lru_cache(maxsize=64)
def _chances(total: int, n: int) -> Floats:
    """The chance of each rank, lowest first, to be the highest of n of `total` answers: (total,)."""
    return np.array([comb(rank, n - 1) / comb(total, n) for rank in range(total)])
