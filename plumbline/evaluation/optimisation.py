"""What optimising a proxy reward does to gold, over the square root of KL (Gao, Schulman and Hilton 2022, arXiv:2210.10760).

A point is best of n for one n, or a policy after so many steps of training. d = √KL(π ‖ start), and gains are over the start, whose gain at d = 0 is
0. They are in standard deviations of the start's answers, so that proxy and gold have one scale, as in the paper.

The paper's forms of a gain (section 3.1) are fitted to the points by least squares:

- best of n: d·(α − β·d), highest at d = α / 2β;
- reinforcement learning: d·(α − β·log d), highest at d = exp(α/β − 1). DPO follows it too (Rafailov et al. 2024, arXiv:2406.02900).

α and β are given only if there are at least `LEAST_POINTS` points and the form explains at least `LEAST_EXPLAINED` of their variance. All intervals
are bootstrapped over prompts: a resample draws prompts with all that was measured on them at every point, and fits anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp
from typing import Any, NamedTuple

import numpy as np
from scipy.special import xlogy

from plumbline.evaluation.best_of_n import best_of_n_kl, expected_best
from plumbline.evaluation.statistics import RESAMPLES, Floats, flat, percentile_interval, resampled, rounded

LEAST_POINTS = 4
"""Two parameters need more points than two to be tested."""
LEAST_EXPLAINED = 0.9
LARGEST_EXPONENT = 700.0  # of a peak that a resample puts out of reach
MEASURES = ("proxy", "gold")


class Point(NamedTuple):
    """What was measured at one point, by prompt: (prompts,) each."""

    size: int
    """n of best of n, or the steps of training."""
    kl: Floats
    """Estimates of KL from the start, in nats; their mean may be negative by chance near the start."""
    proxy: Floats
    """Gain of the reward that was optimised."""
    gold: Floats
    """Gain of the reward that stands for what is wanted."""


class Form(NamedTuple):
    """A form d·(α − β·g(d)), linear in α and β."""

    penalty: Callable[[Floats], Floats]
    """d → d·g(d), 0 at d = 0."""
    peak: Callable[[float, float], float]
    """α, β > 0 → the d at which the form is highest."""


FORMS = {
    "best_of_n": Form(lambda d: d * d, lambda alpha, beta: alpha / (2 * beta)),
    "training": Form(lambda d: xlogy(d, d), lambda alpha, beta: exp(min(alpha / beta, LARGEST_EXPONENT) - 1)),
}


class Curve(NamedTuple):
    """All points together: means over prompts, and the same of every resample."""

    way: str
    sizes: Sequence[int]
    prompts: int
    means: Mapping[str, Floats]
    """kl, proxy, gold → (points,)."""
    draws: Mapping[str, Floats]
    """kl, proxy, gold → (resamples, points)."""


def best_of_n_points(scores: Mapping[str, Floats]) -> list[Point]:
    """Best of n by the proxy for n = 1, 2, 4 …, all from the same answers.

    scores: proxy, gold → the rewards of the start's answers: (prompts, answers).
    """
    prompts, most = scores["proxy"].shape

    def gain(name: str, n: int) -> Floats:
        of_best = [expected_best(keys, values, n) for keys, values in zip(scores["proxy"], scores[name], strict=True)]
        return standardised(np.array(of_best) - scores[name].mean(axis=1), scores[name])

    sizes = [2**power for power in range(most.bit_length())]
    return [Point(n, np.full(prompts, best_of_n_kl(n)), *(gain(name, n) for name in MEASURES)) for n in sizes]


def training_points(scores: Mapping[int, Mapping[str, Floats]], kl: Mapping[int, Floats]) -> list[Point]:
    """The start, and the policy after each of the steps at which it was kept.

    scores: steps, 0 for the start → proxy, gold → the rewards of that policy's answers: (prompts, answers). kl: steps → estimates of KL from the
    start by each of these answers, in nats.
    """
    start = scores[0]

    def gain(name: str, step: int) -> Floats:
        return standardised(scores[step][name].mean(axis=1) - start[name].mean(axis=1), start[name])

    return [Point(step, kl[step].mean(axis=1), *(gain(name, step) for name in MEASURES)) for step in scores]


def curve_of(way: str, points: Sequence[Point], seed: int, resamples: int = RESAMPLES) -> Curve:
    """The curve of the points; `way` is best_of_n or training.

    Raises:
        ValueError: there are no points, or they are not all of the same prompts.
    """
    if not points or len({len(column) for point in points for column in point[1:]}) != 1:
        raise ValueError("expected points that were measured on the same prompts, found none, or different numbers of prompts")
    columns = {name: np.column_stack([getattr(point, name) for point in points]) for name in ("kl", *MEASURES)}
    prompts = len(points[0].kl)
    stacked = np.hstack([*columns.values()])  # together, because reading the weights takes most of the time
    drawn = np.concatenate([weights @ stacked for weights in resampled(prompts, resamples, seed)]) / prompts
    draws = dict(zip(columns, np.split(drawn, len(columns), axis=1), strict=True))
    return Curve(way, [point.size for point in points], prompts, {name: of.mean(axis=0) for name, of in columns.items()}, draws)


def distance(kl: Floats) -> Floats:
    """d = √KL; 0 where the estimate of KL is negative."""
    return np.sqrt(np.maximum(kl, 0.0))


def curve_table(curve: Curve) -> list[dict[str, float | int | None]]:
    """A row for each point: its size, KL, √KL, and the gains with their bounds."""
    size = "n" if curve.way == "best_of_n" else "step"
    rows = []
    for position, number in enumerate(curve.sizes):
        row: dict[str, float | int | None] = {size: number}
        for name in ("kl", *MEASURES):
            interval = percentile_interval(curve.means[name][position], curve.draws[name][:, position], curve.prompts)
            row |= flat(name if name == "kl" else f"{name}_gain", interval)
        root = float(distance(curve.means["kl"][position : position + 1])[0])
        rows.append({size: row.pop(size), "sqrt_kl": rounded(root), **row})
    return rows


def curve_figures(curve: Curve) -> dict[str, float | int | None]:
    """How far optimisation went, what it gained and lost, and the forms that fit.

    `gold_lost` is the highest gain of gold among the points less that of the last point. The highest is chosen by the same answers, so it is a little
    too high; its interval is for these two points.
    """
    highest = int(np.argmax(curve.means["gold"]))
    figures: dict[str, float | int | None] = {"points": len(curve.sizes), "prompts": curve.prompts}
    figures |= flat("kl", percentile_interval(curve.means["kl"][-1], curve.draws["kl"][:, -1], curve.prompts))
    for name in MEASURES:
        figures |= flat(f"{name}_gain", percentile_interval(curve.means[name][-1], curve.draws[name][:, -1], curve.prompts))
    gold, draws = curve.means["gold"], curve.draws["gold"]
    figures |= flat("gold_gain_highest", percentile_interval(gold[highest], draws[:, highest], curve.prompts))
    figures["gold_highest_at"] = curve.sizes[highest]
    lost = percentile_interval(gold[highest] - gold[-1], draws[:, highest] - draws[:, -1], curve.prompts)
    figures |= flat("gold_lost", lost)
    for name in MEASURES:
        figures |= form_figures(curve, name)
    return figures


def form_figures(curve: Curve, name: str) -> dict[str, float | int | None]:
    """α, β and the peak of a measure's form, each with its bounds; None where the form does not fit.

    The peak, in √KL, is also None if β may be 0 or below, or if it lies beyond all points.
    `<name>_explained` says how much of the variance of the points the form explains, from 1 down; None for too few points.
    """
    form, d, gains = FORMS[curve.way], distance(curve.means["kl"]), curve.means[name]
    figures: dict[str, float | int | None] = {f"{name}_explained": None}
    for key in ("alpha", "beta", "peak"):
        figures |= flat(f"{name}_{key}", None)
    if (d > 0).sum() < LEAST_POINTS:
        return figures
    alpha, beta = map(float, fitted(form, d, gains))
    explained = _explained(form, d[d > 0], gains[d > 0], alpha, beta)
    figures[f"{name}_explained"] = rounded(explained)
    if explained is None or explained < LEAST_EXPLAINED:
        return figures
    alphas, betas = fitted(form, distance(curve.draws["kl"]), curve.draws[name])
    figures |= flat(f"{name}_alpha", percentile_interval(alpha, alphas, curve.prompts))
    bounds = percentile_interval(beta, betas, curve.prompts)
    figures |= flat(f"{name}_beta", bounds)
    if bounds.low > 0 and form.peak(alpha, beta) <= d.max():  # else the form may rise for ever, or its peak is a guess
        peaks = [form.peak(*one) for one in zip(alphas.tolist(), betas.tolist(), strict=True) if one[1] > 0]
        figures |= flat(f"{name}_peak", percentile_interval(form.peak(alpha, beta), np.array(peaks), curve.prompts))
    return figures


def fitted(form: Form, d: Floats, gains: Floats) -> tuple[Floats, Floats]:
    """α and β by least squares. d, gains: (…, points), d ≥ 0; α, β: (…). A point at d = 0 says nothing of either."""
    x, y = d, -form.penalty(d)
    xx, xy, yy, xg, yg = ((one * other).sum(axis=-1) for one, other in ((x, x), (x, y), (y, y), (x, gains), (y, gains)))
    determinant = xx * yy - xy * xy
    return (xg * yy - yg * xy) / determinant, (xx * yg - xy * xg) / determinant


def value_of(form: Form, d: Floats, alpha: float, beta: float) -> Floats:
    """The gain that a form gives at d."""
    return alpha * d - beta * form.penalty(d)


def _explained(form: Form, d: Floats, gains: Floats, alpha: float, beta: float) -> float | None:
    total = float(((gains - gains.mean()) ** 2).sum())
    return 1 - float(((gains - value_of(form, d, alpha, beta)) ** 2).sum()) / total if total > 0 else None


def standardised(gain: Floats, start: Sequence[float] | Floats) -> Floats:
    """Gains in standard deviations of the start's answers; as they are if these are all alike."""
    deviation = float(np.std(np.asarray(start, dtype=np.float64)))
    return gain / deviation if deviation > 0 else gain


def drawn_line(way: str, figures: Mapping[str, Any], name: str, most: float, count: int = 60) -> list[tuple[float, float]] | None:
    """The fitted form of a measure from near 0 up to `most`, as points (d, gain); None if it was left out."""
    if figures.get(f"{name}_alpha") is None or most <= 0:
        return None
    d = np.linspace(most / count, most, count)
    gains = value_of(FORMS[way], d, float(figures[f"{name}_alpha"]), float(figures[f"{name}_beta"]))
    return [(float(x), float(y)) for x, y in zip(d, gains, strict=True)]
