"""Means, fractions and paired differences with 95 % intervals over prompts.

Several answers to one prompt are not independent, so prompts are what varies, each with all its answers:

- means, ratios and differences: a bootstrap whose resamples draw prompts (the cluster bootstrap: Davison and Hinkley, *Bootstrap Methods and
  their Application*, 1997, section 3.8). Bounds are percentiles, expanded to the width of a t interval, because plain ones are too narrow if
  there are few prompts (Hesterberg, arXiv:1411.5279, section 4.3).
- means of values in [0, 1]: Wilson's score interval, which also holds near 0 and 1, for the number of independent answers that would be as certain
  (Korn and Graubard, *Survey Methodology* 24, 1998, who put that number into Clopper and Pearson's interval).

Where all prompts have the same value there is no variance to go by. Of values within bounds the interval is then that of Clopper and Pearson for 0
of n prompts that differ, by as much as the bounds allow (for fractions the rule of three: Hanley and Lippman-Hand, *JAMA* 249, 1983). Without
bounds no interval holds for every distribution (Bahadur and Savage, *Annals of Mathematical Statistics* 27, 1956): one prompt has none, and two or
more have that of the t distribution, without width. Comparisons of policies (comparisons.py) take the sign test's for rewards: none of fewer than six
prompts, and beyond that the same without width.

tests/benchmarks/coverage.py measures how often the intervals hold the truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import isnan, nan
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

RESAMPLES = 4000
CONFIDENCE = 0.95
DIGITS = 6
SAME_DIGITS = 12
SAME = 10.0**-SAME_DIGITS  # means that differ by less are the same: sums of the same values in another order
CHUNK_COUNT = 12_000_000  # weights drawn at once (96 MB), however many prompts there are

Values = Sequence[float | None]
"""One value for each answer; None if the figure does not apply to that answer."""

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A figure with the bounds of its interval, and the number of prompts behind it.

    The bounds are nan, and null where they are written, if a single prompt says nothing of the spread.
    """

    value: float
    low: float
    high: float
    n: int

    def excludes(self, value: float) -> bool:
        """Whether the interval lies wholly on one side of a value."""
        return self.low > value or self.high < value


def flat(key: str, interval: Interval | None) -> dict[str, float | int | None]:
    """A figure and its bounds under their names, rounded because the last bits differ between machines."""
    value, low, high = interval[:3] if interval else (None, None, None)
    return {key: rounded(value), f"{key}_low": rounded(low), f"{key}_high": rounded(high)}


def rounded(value: Any) -> Any:
    """A number without the bits that differ between machines; None for nan, and anything else as it is."""
    if not isinstance(value, float):
        return value
    return None if isnan(value) else round(value, DIGITS) + 0.0  # + 0.0: no "-0.0"


class Pooled(NamedTuple):
    """A figure over several training seeds."""

    mean: float
    deviation: float
    """The sample standard deviation between seeds: how far another seed alone would move the figure."""
    low: float
    """The bounds of the mean's t interval over seeds, wide for few of them."""
    high: float
    seeds: int


class PromptSums(NamedTuple):
    """Sums and counts of the values that apply, one row per prompt: both (prompts,)."""

    sums: Floats
    counts: Floats


def sum_by_prompt(values: Values, prompts: Sequence[str], order: Sequence[str] | None = None) -> PromptSums:
    """Sums and counts of the values of each prompt, in `order` (default: as prompts first occur).

    Raises:
        ValueError: there are more or fewer values than answers.
    """
    if len(values) != len(prompts):
        raise ValueError(f"expected one value for each answer, found {len(values)} values for {len(prompts)} answers")
    order = list(dict.fromkeys(prompts)) if order is None else order
    rows = {prompt: row for row, prompt in enumerate(order)}
    sums, counts = np.zeros(len(order)), np.zeros(len(order))
    for value, prompt in zip(values, prompts, strict=True):
        if value is not None:
            sums[rows[prompt]] += value
            counts[rows[prompt]] += 1
    return PromptSums(sums, counts)


def bootstrap_mean(
    values: Values,
    prompts: Sequence[str],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    within: tuple[float, float] | None = None,
) -> Interval | None:
    """The mean over answers with its interval; None if the figure applies to no answer.

    within: the bounds between which every value lies; None if there are none.
    """
    sides = _applying(sum_by_prompt(values, prompts))
    if within and (alike := _alike(sides.sums / sides.counts, *within)):
        return alike
    return bootstrap_ratio(*sides, seed=seed, resamples=resamples)


def bootstrap_ratio(sums: Floats, counts: Floats, *, seed: int, resamples: int = RESAMPLES) -> Interval | None:
    """The ratio of two totals over the same units (prompts, rows) with its interval; None if no unit counts.

    sums, counts: (units,); a unit whose count is 0 is left out.
    """
    sums, counts = _applying(PromptSums(sums, counts))
    if not len(sums):
        return None
    draws = [(w @ sums) / (w @ counts) for w in resampled(len(sums), resamples, seed)]
    return percentile_interval(sums.sum() / counts.sum(), np.concatenate(draws), len(sums))


def fraction_interval(values: Values, prompts: Sequence[str]) -> Interval | None:
    """The mean of values in [0, 1] with Wilson's interval, whose `n` is the number of independent answers that would be as certain.

    That number follows from the variance between prompts: answers to one prompt that agree count as one, and gold, whose values lie closer
    together than 0 and 1, counts for more than its prompts. If all prompts have the same mean there is no variance to go by: at 0 and 1 the bounds
    are then those of Clopper and Pearson for 0, or n, of n prompts. None if the figure applies to no answer.
    """
    sums, counts = _applying(sum_by_prompt(values, prompts))
    n = len(sums)
    if not n:
        return None
    if alike := _alike(sums / counts, 0.0, 1.0):
        return alike
    mean = float(sums.sum() / counts.sum())
    variance = float(((sums - mean * counts) ** 2).sum()) * n / (n - 1) / counts.sum() ** 2
    inverse = variance / (mean * (1 - mean))  # 1 / the number of independent answers
    quantile = float(stdtrit(n - 1, 1 - (1 - CONFIDENCE) / 2))
    centre = (mean + quantile**2 * inverse / 2) / (1 + quantile**2 * inverse)
    half = quantile / (1 + quantile**2 * inverse) * (variance + (quantile * inverse / 2) ** 2) ** 0.5
    return Interval(mean, centre - half, centre + half, n)


def bootstrap_gain(
    values: Values,
    prompts: Sequence[str],
    against_values: Values,
    against_prompts: Sequence[str],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """The difference of two means of values in [0, 1] over the same prompts, paired: a resample draws the same prompts for both.

    Prompts to which the figure does not apply on both sides are left out; None if none is left.

    Raises:
        ValueError: the two sides answered different prompts.
    """
    order = list(dict.fromkeys(prompts))
    if set(order) != set(against_prompts):
        raise ValueError(
            f"expected the same prompts on both sides of a paired difference, found {len(order)} and {len(set(against_prompts))}, "
            f"{len(set(order) ^ set(against_prompts))} of them on one side only; answer both with the same split and data"
        )
    ours, theirs = sum_by_prompt(values, prompts, order), sum_by_prompt(against_values, against_prompts, order)
    kept = (ours.counts > 0) & (theirs.counts > 0)
    if not kept.any():
        return None
    ours, theirs = (PromptSums(side.sums[kept], side.counts[kept]) for side in (ours, theirs))
    if alike := _alike(ours.sums / ours.counts - theirs.sums / theirs.counts, -1.0, 1.0):
        return alike
    columns = np.column_stack([*ours, *theirs])  # together, because reading the weights takes most of the time
    totals = np.concatenate([w @ columns for w in resampled(int(kept.sum()), resamples, seed)])
    draws = totals[:, 0] / totals[:, 1] - totals[:, 2] / totals[:, 3]
    gain = ours.sums.sum() / ours.counts.sum() - theirs.sums.sum() / theirs.counts.sum()
    return percentile_interval(gain, draws, int(kept.sum()))


def standard_error(values: Values, prompts: Sequence[str]) -> float | None:
    """The standard error of the mean over answers, by the variance between prompts; None for fewer than two prompts."""
    sums, counts = _applying(sum_by_prompt(values, prompts))
    n = len(sums)
    if n < 2:
        return None
    residuals = sums - sums.sum() / counts.sum() * counts
    return float((residuals**2).sum() * n / (n - 1)) ** 0.5 / float(counts.sum())


def _applying(sides: PromptSums) -> PromptSums:
    """The prompts to which the figure applies."""
    kept = sides.counts > 0
    return PromptSums(sides.sums[kept], sides.counts[kept])


def _alike(means: Floats, lowest: float, highest: float) -> Interval | None:
    """The interval of values between two bounds if all prompts have the same mean; None if they have not, or if there are none.

    means: (prompts,). Of all prompts at most a share of 1 − 0.025^(1/n) differs (Clopper and Pearson, 0 of n), and may lie at a bound.
    """
    n = len(means)
    if not n or np.ptp(means) > SAME:
        return None
    value = round(float(means[0]), SAME_DIGITS)
    reach = 1 - ((1 - CONFIDENCE) / 2) ** (1 / n)
    return Interval(value, value - reach * (value - lowest), value + reach * (highest - value), n)


def t_interval(value: float, error: float, n: int) -> Interval:
    """The interval of a figure of n prompts with this standard error; one prompt has none."""
    half = error * float(stdtrit(n - 1, 1 - (1 - CONFIDENCE) / 2)) if n > 1 else nan
    return Interval(value, value - half, value + half, n)


def pool_seeds(values: Sequence[float]) -> Pooled:
    """The mean of a figure over several seeds with its spread.

    Raises:
        ValueError: there are fewer than two seeds, so that there is no spread.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"expected the figure of two seeds or more, found {n}; run the experiment with another `seed`")
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    interval = t_interval(mean, deviation / n**0.5, n)
    return Pooled(mean, deviation, interval.low, interval.high, n)


def resampled(n: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each of n prompts is drawn, in chunks of shape (resamples, n); each row sums to n."""
    step = max(1, CHUNK_COUNT // n)
    for start in range(0, resamples, step):
        yield _draw_weights(n, start, min(step, resamples - start), seed)


@lru_cache(maxsize=4)  # figures over the same number of prompts share their resamples
def _draw_weights(n: int, start: int, resamples: int, seed: int) -> Floats:
    drawn = np.random.default_rng([seed, n, start]).integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def percentile_interval(value: float, draws: Floats, n: int) -> Interval:
    """The expanded percentile interval of a figure of n prompts, of which `draws` are the resampled values.

    A resample's variance is smaller than the prompts' by (n − 1) / n, and a normal quantile than one of t. Both are made good by percentiles
    further out: at Φ(t · √(n / (n − 1))) instead of Φ(z). One prompt has no interval.
    """
    if n < 2:
        return Interval(float(value), nan, nan, n)
    tail = float(ndtr(stdtrit(n - 1, (1 - CONFIDENCE) / 2) * (n / (n - 1)) ** 0.5))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high), n)
