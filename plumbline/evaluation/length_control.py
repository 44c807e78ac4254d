"""Length-controlled win rate: what a win rate would be if both sides' answers were equally long.

The generalised linear model of AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475, Eq. 2, github.com/tatsu-lab/alpaca_eval): the judge prefers the
policy's answer to prompt x with probability

    σ(θ + φ · tanh(Δ / s) + γ_x)

Δ is the policy's number of characters minus the opponent's, s the standard deviation of Δ, γ_x the difficulty of the prompt. Fitted is the
regularised logistic loss on continuous preferences, in which a tie is 0.5. The length-controlled rate is the mean of σ(θ + γ_x): the length term is
set to zero. Two things differ, because AlpacaEval has a leaderboard to learn from and a single evaluation has not:

- γ_x comes from the comparisons at hand, shrunk by a normal prior of variance 1. AlpacaEval fits it once to all models of its leaderboard, and
  then weighs it for each model.
- θ and φ have a normal prior of variance 100 (C = 100). AlpacaEval chooses an L1 penalty by cross-validation and adds comparisons of its baseline
  with longer and shorter versions of itself (`length_controlled_v1`; without them it is `length_controlled_noreg`).

Limits: if one side is longer by nearly the same everywhere, nothing tells length from quality, and the prior shares the effect between them. If
answers are longer where the prompt favours the policy anyway, the shrunk γ_x takes only part of that and length the rest: docs/comparing.md has
measured by how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from plumbline.evaluation.statistics import Floats, Interval, Values, fraction_interval, percentile_interval, resampled

RESAMPLES = 1000
PRIOR = np.diag([0.01, 0.01])
"""The precisions of θ and φ: 1 / C."""
DIFFICULTY_PRECISION = 1.0
STEPS, TOLERANCE = 50, 1e-5  # Newton's method converges quadratically: a step below 1e-5 ends some 1e-10 from the minimum
TOGETHER = 200_000  # resamples times prompts fitted at once, so that they stay in the processor's cache


class Comparisons(NamedTuple):
    """The comparisons of each prompt: all (prompts, answers), padded where a prompt has fewer answers."""

    wins: Floats
    lengths: Floats  # tanh(Δ / s)
    counts: Floats  # 1, or 0 for padding


def length_controlled(
    wins: Values, differences: Sequence[float], prompts: Sequence[str], *, seed: int, resamples: int = RESAMPLES
) -> Interval | None:
    """The length-controlled win rate, bootstrapped over prompts: the model is fitted anew to every resample. None without verdicts.

    wins: 1, 0.5 or 0 of each answer; None for a verdict that could not be read. differences: Δ of each answer, in characters.
    """
    if len({*wins} - {None}) < 2:  # nothing varies that length could explain, and a resample would not vary either
        return fraction_interval(wins, prompts)
    data = comparisons(wins, differences, prompts)
    start, n = fit(data, np.ones((1, len(data.wins)))), len(data.wins)
    step = max(1, TOGETHER // n)
    parts = (chunk[at : at + step] for chunk in resampled(n, resamples, seed) for at in range(0, len(chunk), step))
    draws = [_rates(data, weights, fit(data, weights, start)) for weights in parts]
    return percentile_interval(_rates(data, np.ones((1, n)), start)[0], np.concatenate(draws), n)


def comparisons(wins: Values, differences: Sequence[float], prompts: Sequence[str]) -> Comparisons:
    """The comparisons that have a verdict, by prompt. Δ is standardised by its sample standard deviation, as it is there: not centred."""
    judged = [(prompt, win, delta) for prompt, win, delta in zip(prompts, wins, differences, strict=True) if win is not None]
    deltas = np.array([delta for *_, delta in judged], dtype=np.float64)
    deviation = float(deltas.std(ddof=1)) if len(deltas) > 1 else 0.0
    by_prompt: dict[str, list[tuple[float, float]]] = {}
    for prompt, win, delta in judged:
        by_prompt.setdefault(prompt, []).append((win, float(np.tanh(delta / deviation)) if deviation else 0.0))
    padded = np.zeros((3, len(by_prompt), max(map(len, by_prompt.values()))))
    for row, of_prompt in enumerate(by_prompt.values()):
        padded[:2, row, : len(of_prompt)] = np.array(of_prompt).T
        padded[2, row, : len(of_prompt)] = 1
    return Comparisons(*padded)


class Fitted(NamedTuple):
    """The model of each resample."""

    coefficients: Floats  # θ and φ: (resamples, 2)
    difficulties: Floats  # γ: (resamples, prompts)


def fit(data: Comparisons, weights: Floats, start: Fitted | None = None) -> Fitted:
    """The minimum of the regularised loss for each row of weights (resamples, prompts), by Newton's method.

    A prompt that is drawn twice counts as two prompts with the same comparisons. The difficulties are eliminated from each step's system (they
    meet only their own prompt's comparisons), so that a step solves two equations for each resample.

    Raises:
        ArithmeticError: it did not converge.
    """
    resamples, n = weights.shape
    beta = np.zeros((resamples, 2)) if start is None else np.repeat(start.coefficients, resamples, 0)
    gamma = np.zeros((resamples, n)) if start is None else np.repeat(start.difficulties, resamples, 0)
    for _ in range(STEPS):
        residual, by_length, v, v_d, v_dd = _sums(data, beta, gamma)
        own, slope = v + DIFFICULTY_PRECISION, residual - DIFFICULTY_PRECISION * gamma
        share = weights / own
        gradient = np.stack(
            [(weights * residual - share * v * slope).sum(1), (weights * by_length - share * v_d * slope).sum(1)], -1
        )
        second = [
            (weights * all_of - share * eliminated).sum(1)
            for all_of, eliminated in ((v, v * v), (v_d, v * v_d), (v_dd, v_d * v_d))
        ]
        hessian = np.stack([np.stack(second[:2], -1), np.stack(second[1:], -1)], -2) + PRIOR
        step = np.linalg.solve(hessian, (gradient - beta @ PRIOR)[..., None])[..., 0]
        beta = beta + step
        gamma = gamma + (slope - v * step[:, :1] - v_d * step[:, 1:]) / own
        if np.abs(step).max() < TOLERANCE:
            return Fitted(beta, gamma)
    raise ArithmeticError(
        f"length-controlled win rate: expected a fit within {STEPS} steps, found steps of {np.abs(step).max():.2g}"
    )


def _sums(data: Comparisons, beta: Floats, gamma: Floats) -> tuple[Floats, ...]:
    """Σ (y − p), Σ (y − p)·d, Σ v, Σ v·d and Σ v·d² of each prompt, where v = p(1 − p): all (resamples, prompts)."""
    totals = [np.zeros_like(gamma) for _ in range(5)]
    for wins, lengths, counts in zip(data.wins.T, data.lengths.T, data.counts.T, strict=True):
        p = expit(beta[:, :1] + beta[:, 1:] * lengths + gamma)
        rest, v = counts * (wins - p), counts * p * (1 - p)
        for total, part in zip(totals, (rest, rest * lengths, v, v * lengths, v * lengths**2), strict=True):
            total += part
    return tuple(totals)


def _rates(data: Comparisons, weights: Floats, fitted: Fitted) -> Floats:
    """The mean of σ(θ + γ_x) over the comparisons: (resamples,)."""
    counts = weights * data.counts.sum(1)
    return (counts * expit(fitted.coefficients[:, :1] + fitted.difficulties)).sum(1) / counts.sum(1)
