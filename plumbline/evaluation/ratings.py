"""Bradley–Terry ratings of policies that answered the same prompts, with intervals bootstrapped over prompts.

Bradley and Terry, *Biometrika* 39, 1952: i beats j with probability σ(r_i − r_j). A tie counts half a win for each side. Ratings are given on the
scale of Elo, r · 400 / ln 10: 100 points more are 64 % of wins, 200 points 76 %.

If every prompt is won by the same policy, resampling prompts changes nothing, and the interval would have no width. So each resample is also given
prompts that were not asked: of each pair one that either side wins, each of them as often as a resample draws one prompt, a Poisson number of mean 1.
That is what Agresti and Coull do for a fraction (*The American Statistician* 52, 1998), with one success and one failure instead of their two.
"""

from __future__ import annotations

from math import log

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from plumbline.evaluation.statistics import Floats, Interval, percentile_interval, resampled

ELO = 400 / log(10)
RESAMPLES = 1000
PRIOR_WINS = 0.5
"""Wins that each side of a pair is given beforehand, so that a policy that never loses has a finite rating."""
STEPS, TOLERANCE = 100, 1e-6


def ratings(wins: Floats, anchor: int, *, seed: int) -> list[Interval | None]:
    """Each policy's rating in Elo points above that of `anchor`, which has 0; None if no comparison links it to the anchor, even by way of others.

    wins: (prompts, policies, policies), how often the first beat the second by this prompt; both entries are 0 for two that were not compared.

    Raises:
        ValueError: a count of wins is not a number.
    """
    if np.isnan(wins).any():
        raise ValueError("Bradley–Terry ratings: expected numbers of wins, found nan; leave out the answers without a value")
    games = wins + wins.transpose(0, 2, 1)
    linked = connected_components(games.sum(0) > 0)[1]
    kept = [policy for policy in range(wins.shape[1]) if linked[policy] == linked[anchor]]
    asked = games[:, kept][:, :, kept].any((1, 2))
    fitted = iter(_linked_ratings(wins[asked][:, kept][:, :, kept], kept.index(anchor), seed))
    return [next(fitted) if policy in kept else None for policy in range(wins.shape[1])]


def _linked_ratings(wins: Floats, anchor: int, seed: int) -> list[Interval]:
    n, k, _ = wins.shape
    if k == 1:
        return [Interval(0.0, 0.0, 0.0, n)]
    rows, games = wins.reshape(n, k * k), wins + wins.transpose(0, 2, 1)
    prompts = (games > 0).sum(0)
    prior = PRIOR_WINS * (prompts > 0)
    games_of_prompt = games.sum(0) / np.maximum(prompts, 1)  # of one on which the two were compared
    value = _fit((rows.sum(0).reshape(1, k, k)) + prior, anchor)[0]
    generator, draws = np.random.default_rng([seed, n, k]), []
    for weights in resampled(n, RESAMPLES, seed):
        unasked = generator.poisson(1.0, (len(weights), k, k)) * games_of_prompt
        draws.append(_fit((weights @ rows).reshape(-1, k, k) + prior + unasked, anchor))
    every = ELO * np.concatenate(draws)
    return [percentile_interval(ELO * value[i], every[:, i], n) for i in range(k)]


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
