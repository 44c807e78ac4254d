"""Bradley–Terry ratings of policies that answered the same prompts, with intervals bootstrapped over prompts.

Bradley and Terry, *Biometrika* 39, 1952: i beats j with probability σ(r_i − r_j). A tie counts half a win for each side. Ratings are given on the
scale of Elo, r · 400 / ln 10: 100 points more are 64 % of wins, 200 points 76 %.
"""

from __future__ import annotations

from math import log

import numpy as np
from scipy.special import expit

from plumbline.evaluation.statistics import Floats, Interval, percentile_interval, resampled

ELO = 400 / log(10)
RESAMPLES = 1000
PRIOR_WINS = 0.5
"""Wins that each side of a pair is given beforehand, so that a policy that never loses has a finite rating."""
STEPS, TOLERANCE = 100, 1e-6


def ratings(wins: Floats, anchor: int, *, seed: int) -> list[Interval]:
    """Each policy's rating in Elo points above that of `anchor`, which has 0.

    wins: (prompts, policies, policies), how often the first beat the second by this prompt; both entries are 0 for two that were not compared.
    """
    n, k, _ = wins.shape
    rows = wins.reshape(n, k * k)
    prior = PRIOR_WINS * ((wins + wins.transpose(0, 2, 1)).sum(0) > 0)
    value = _fit((rows.sum(0).reshape(1, k, k)) + prior, anchor)[0]
    draws = np.concatenate([_fit((w @ rows).reshape(-1, k, k) + prior, anchor) for w in resampled(n, RESAMPLES, seed)])
    return [percentile_interval(ELO * value[i], ELO * draws[:, i], n) for i in range(k)]


def _fit(wins: Floats, anchor: int) -> Floats:
    """The maximum-likelihood ratings (resamples, policies) of counts of wins (resamples, policies, policies), by Newton's method.

    Raises:
        ArithmeticError: it did not converge.
    """
    resamples, k, _ = wins.shape
    others = [policy for policy in range(k) if policy != anchor]
    games, rating = wins + wins.transpose(0, 2, 1), np.zeros((resamples, k))
    for _ in range(STEPS):
        expected = expit(rating[:, :, None] - rating[:, None, :])
        gradient = (wins - games * expected).sum(2)
        hessian = -games * expected * (1 - expected)
        hessian[:, range(k), range(k)] = -hessian.sum(2)
        step = np.linalg.solve(hessian[:, others][:, :, others], gradient[:, others, None])[..., 0]
        rating[:, others] += np.clip(step, -1, 1)  # a full step may overshoot where one side hardly ever loses
        if np.abs(step).max(initial=0) < TOLERANCE:
            return rating
    raise ArithmeticError(f"Bradley–Terry ratings: expected a fit within {STEPS} steps, found steps of {np.abs(step).max():.2g}")
