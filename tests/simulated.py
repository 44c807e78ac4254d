"""Answers of policies whose true figures are known, to measure how often intervals hold the truth."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from scipy.special import expit

from plumbline.evaluation.best_of_n import expected_best
from plumbline.evaluation.length_control import length_controlled
from plumbline.evaluation.statistics import Floats, Interval, bootstrap_gain, bootstrap_mean, fraction_interval

SAMPLES = 2  # answers to each prompt, which are alike
BEST_OF = 4
LARGE = 200_000  # prompts whose mean is taken for the truth where there is no formula


class Case(NamedTuple):
    """A figure whose interval is to hold the truth."""

    name: str
    truth: float
    interval: Callable[[Generator, int, int], Interval | None]
    """A fresh draw of so many prompts, with so many resamples → the figure with its interval."""


def ids(n: int, samples: int = SAMPLES) -> list[str]:
    return [f"p{number}" for number in range(n) for _ in range(samples)]


def flat(values: Floats) -> list[float]:
    return [float(value) for value in values.ravel()]


def golds(generator: Generator, n: int, skill: float = 0.0, hard: Floats | None = None, samples: int = SAMPLES) -> Floats:
    """Gold of answers (prompts, samples): 0.5 if right, 0.2 always, and 0.15 each for two manners; three prompts of ten are hard."""
    hard = generator.random(n) < 0.3 if hard is None else hard
    right = generator.random((n, samples)) < np.where(hard, 0.3, 0.8 + skill)[:, None]
    return 0.5 * right + 0.2 + 0.15 * (generator.random((2, n, samples)) < 0.9).sum(0)


GOLD = 0.5 * (0.3 * 0.3 + 0.7 * 0.8) + 0.2 + 0.3 * 0.9


def gold(generator: Generator, n: int, resamples: int) -> Interval | None:
    return fraction_interval(flat(golds(generator, n)), ids(n))


def gain(generator: Generator, n: int, resamples: int) -> Interval | None:
    """The same prompts answered by a policy that is right more often in those that are not hard."""
    hard = generator.random(n) < 0.3
    ours, theirs = golds(generator, n, 0.1, hard), golds(generator, n, 0.0, hard)
    return bootstrap_gain(flat(ours), ids(n), flat(theirs), ids(n), seed=int(generator.integers(2**31)), resamples=resamples)


def wins(generator: Generator, n: int) -> Floats:
    """A win, a tie or a loss by a latent advantage that differs between prompts."""
    latent = generator.normal(0.4, 1.0, (n, 1)) + generator.logistic(size=(n, SAMPLES))
    return np.where(latent > 0.8, 1.0, np.where(latent < -0.8, 0.0, 0.5))


def win_rate(generator: Generator, n: int, resamples: int) -> Interval | None:
    return fraction_interval(flat(wins(generator, n)), ids(n))


def rare(generator: Generator, n: int, resamples: int) -> Interval | None:
    """A figure near its bound: 3 % of the answers, more in some prompts than in others."""
    chance = generator.beta(0.3, 9.7, (n, 1))
    return fraction_interval(flat((generator.random((n, SAMPLES)) < chance).astype(float)), ids(n))


class Judged(NamedTuple):
    """Comparisons by a judge who likes length: both (prompts, samples)."""

    wins: Floats
    differences: Floats


def judged(generator: Generator, n: int, by_difficulty: float = 0.0) -> Judged:
    """The model of a length-controlled win rate: θ = 0.4, φ = 1, γ from a normal distribution, answers longer by 20 characters on average.

    Each order of the two answers is judged anew, so that a win is 1, 0.5 or 0. by_difficulty: how many characters longer where γ is 1.
    """
    difficulty = generator.normal(0.0, 1.0, (n, 1))
    differences = generator.normal(20.0 + by_difficulty * difficulty, 60.0, (n, SAMPLES))
    chance = expit(0.4 + np.tanh(differences / 63.0) + difficulty)
    return Judged((generator.random((2, n, SAMPLES)) < chance).mean(0), differences)


def length_controlled_win_rate(generator: Generator, n: int, resamples: int, by_difficulty: float = 0.0) -> Interval | None:
    comparisons = judged(generator, n, by_difficulty)
    seed = int(generator.integers(2**31))
    return length_controlled(
        flat(comparisons.wins), flat(comparisons.differences), ids(n), seed=seed, resamples=min(resamples, 1000)
    )


def best_of_n(generator: Generator, n: int, resamples: int) -> Interval | None:
    """Gold of the answer of four that a noisy reward likes best, over all subsets of eight."""
    of_prompts = golds(generator, n, samples=2 * BEST_OF)
    rewards = of_prompts + generator.normal(0.0, 0.3, of_prompts.shape)
    chosen = [
        expected_best([*map(float, keys)], [*map(float, row)], BEST_OF) for row, keys in zip(of_prompts, rewards, strict=True)
    ]
    return fraction_interval(chosen, ids(n, 1))


def log_ratios(generator: Generator, n: int) -> Floats:
    """log π − log π_reference of the 20 tokens of one answer to each prompt: Gaussian policies, whose log-ratio has the KL as its mean and twice the
    KL as its variance. The KL of an answer differs between prompts."""
    mean = np.repeat(generator.gamma(2.0, 0.75, (n, 1)) / 20, 20, 1)
    return generator.normal(mean, np.sqrt(2 * mean))


def kl_k1(generator: Generator, n: int, resamples: int) -> Interval | None:
    values = log_ratios(generator, n).sum(1)
    return bootstrap_mean(flat(values), ids(n, 1), seed=int(generator.integers(2**31)), resamples=resamples)


def kl_k3(generator: Generator, n: int, resamples: int) -> Interval | None:
    ratios = log_ratios(generator, n)
    values = (np.expm1(-ratios) + ratios).sum(1)
    return bootstrap_mean(flat(values), ids(n, 1), seed=int(generator.integers(2**31)), resamples=resamples)


def cases() -> list[Case]:
    """Every figure with its truth: by a formula, or the mean of very many prompts."""
    generator = np.random.default_rng(2024)
    best = best_of_n(generator, LARGE, 0)
    assert best is not None
    return [
        Case("gold", GOLD, gold),
        Case("gain", 0.5 * 0.7 * 0.1, gain),
        Case("win rate", float(wins(generator, LARGE * 5).mean()), win_rate),
        Case(
            "length-controlled win rate", float(expit(0.4 + generator.normal(0, 1, LARGE * 5)).mean()), length_controlled_win_rate
        ),
        Case("best of 4", best.value, best_of_n),
        Case("KL, k1", 1.5, kl_k1),
        Case("KL, k3", 1.5, kl_k3),
        Case("a fraction of 3 %", 0.03, rare),
    ]


def by_difficulty() -> Case:
    """The length-controlled win rate where it is known to fail: answers are longer where the prompt favours the policy anyway."""
    truth = next(case.truth for case in cases() if case.interval is length_controlled_win_rate)
    return Case(
        "the same, longer where it wins anyway",
        truth,
        lambda *arguments: length_controlled_win_rate(*arguments, by_difficulty=20.0),
    )


def covered(case: Case, n: int, trials: int, resamples: int, seed: int = 0) -> int:
    """In how many trials the interval holds the truth."""
    generator = np.random.default_rng([seed, n])
    hits = 0
    for _ in range(trials):
        interval = case.interval(generator, n, resamples)
        assert interval is not None
        hits += interval.low <= case.truth <= interval.high
    return hits
