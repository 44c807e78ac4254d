"""Means and paired differences with 95 % intervals, bootstrapped over prompts.

Several answers to one prompt are not independent, so a resample draws prompts, each with all its answers (the cluster
bootstrap: Davison and Hinkley, *Bootstrap Methods and their Application*, 1997, section 3.8). Intervals are percentiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
CONFIDENCE = 0.95
CHUNK_COUNT = 12_000_000  # weights drawn at once (96 MB), however many prompts there are

Values = Sequence[float | None]
"""One value for each answer; None if the figure does not apply to that answer."""

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A figure with the bounds of its interval, and the number of prompts behind it."""

    value: float
    low: float
    high: float
    n: int

    def excludes(self, value: float) -> bool:
        """Whether the interval lies wholly on one side of a value."""
        return self.low > value or self.high < value


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


def bootstrap_mean(values: Values, prompts: Sequence[str], *, seed: int, resamples: int = RESAMPLES) -> Interval | None:
    """The mean over answers with its interval; None if the figure applies to no answer."""
    return bootstrap_ratio(*sum_by_prompt(values, prompts), seed=seed, resamples=resamples)


def bootstrap_ratio(sums: Floats, counts: Floats, *, seed: int, resamples: int = RESAMPLES) -> Interval | None:
    """The ratio of two totals over the same units (prompts, rows) with its interval; None if no unit counts.

    sums, counts: (units,); a unit whose count is 0 is left out.
    """
    kept = counts > 0
    if not kept.any():
        return None
    sums, counts = sums[kept], counts[kept]
    draws = [(w @ sums) / (w @ counts) for w in _weights(len(sums), resamples, seed)]
    return _percentiles(sums.sum() / counts.sum(), np.concatenate(draws), len(sums))


def bootstrap_fraction(values: Values, prompts: Sequence[str], *, seed: int, resamples: int = RESAMPLES) -> Interval | None:
    """The mean of values in [0, 1] with its interval, which has a width even if all answers agree.

    Resampling answers that are all 0 would give [0, 0], although 0 of n is not evidence for never. The upper bound is then that
    of Clopper and Pearson for 0 of n prompts. If all answers are 1, the same holds for the lower bound.
    """
    interval = bootstrap_mean(values, prompts, seed=seed, resamples=resamples)
    if interval is None or interval.value not in (0.0, 1.0):
        return interval
    reach = 1 - ((1 - CONFIDENCE) / 2) ** (1 / interval.n)
    if interval.value == 0.0:
        return interval._replace(high=reach)
    return interval._replace(low=1 - reach)


def bootstrap_gain(
    values: Values,
    prompts: Sequence[str],
    against_values: Values,
    against_prompts: Sequence[str],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """The difference of two means over the same prompts, paired: a resample draws the same prompts for both.

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
    columns = np.column_stack([*ours, *theirs])  # together, because reading the weights takes most of the time
    totals = np.concatenate([w @ columns for w in _weights(int(kept.sum()), resamples, seed)])
    draws = totals[:, 0] / totals[:, 1] - totals[:, 2] / totals[:, 3]
    gain = ours.sums.sum() / ours.counts.sum() - theirs.sums.sum() / theirs.counts.sum()
    return _percentiles(gain, draws, int(kept.sum()))


def _weights(n: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each of n prompts is drawn, in chunks of shape (resamples, n); each row sums to n."""
    step = max(1, CHUNK_COUNT // n)
    for start in range(0, resamples, step):
        yield _draw_weights(n, start, min(step, resamples - start), seed)


@lru_cache(maxsize=4)  # figures over the same number of prompts share their resamples
def _draw_weights(n: int, start: int, resamples: int, seed: int) -> Floats:
    drawn = np.random.default_rng([seed, n, start]).integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def _percentiles(value: float, draws: Floats, n: int) -> Interval:
    """The percentile interval of a figure."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high), n)
