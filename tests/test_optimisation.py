"""Claims about curves of optimisation: known forms are found again, noise is not called a form, and intervals are paired over prompts."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline.evaluation.optimisation import (
    FORMS,
    Curve,
    Point,
    curve_figures,
    curve_of,
    curve_table,
    distance,
    drawn_line,
    fitted,
    standardised,
    value_of,
)
from plumbline.evaluation.statistics import Floats

PROMPTS = 300
KL = {"best_of_n": [0.0, 0.19, 0.64, 1.2, 1.83, 2.5], "training": [0.0, 0.3, 1.0, 2.5, 6.0, 11.0, 20.0]}
ALPHA, BETA = {"best_of_n": 1.0, "training": 0.8}, {"best_of_n": 0.45, "training": 0.35}


def measured(way: str, noise: float, seed: int = 0, gold: Floats | None = None) -> Curve:
    """A curve whose proxy follows d·α and whose gold follows the form with known parameters, with noise that differs by prompt."""
    rng = np.random.default_rng(seed)
    by_prompt = rng.normal(0, noise, PROMPTS)
    points = []
    for number, kl in enumerate(KL[way]):
        d = np.array([kl]) ** 0.5
        truth = value_of(FORMS[way], d, ALPHA[way], BETA[way])[0] if kl else 0.0
        if gold is not None:
            truth = gold[number]
        noisy = by_prompt * d[0] + rng.normal(0, noise, PROMPTS)
        points.append(Point(2**number, np.full(PROMPTS, kl), np.full(PROMPTS, float(d[0])) + noisy, truth + noisy))
    return curve_of(way, points, seed=1, resamples=400)


@pytest.mark.parametrize("way", ["best_of_n", "training"])
def test_points_on_a_form_give_its_parameters_and_its_peak(way: str) -> None:
    """The peaks by calculus: d·(α − βd) at α/2β, d·(α − β log d) at exp(α/β − 1)."""
    figures = curve_figures(measured(way, noise=0.0))
    assert figures["gold_explained"] == 1.0
    assert (figures["gold_alpha"], figures["gold_beta"]) == pytest.approx((ALPHA[way], BETA[way]), abs=1e-5)
    alpha, beta = ALPHA[way], BETA[way]
    assert figures["gold_peak"] == pytest.approx(
        {"best_of_n": alpha / (2 * beta), "training": np.exp(alpha / beta - 1)}[way], abs=1e-4
    )
    top = float(str(figures["gold_peak"]))
    around = value_of(FORMS[way], np.array([top - 0.05, top, top + 0.05]), alpha, beta)
    assert around[1] == max(around)


@pytest.mark.parametrize("way", ["best_of_n", "training"])
def test_the_intervals_of_the_parameters_hold_the_truth_about_19_times_in_20(way: str) -> None:
    held = 0
    for seed in range(40):
        figures: Any = curve_figures(measured(way, noise=0.2, seed=seed))
        held += figures["gold_alpha"] is not None and figures["gold_alpha_low"] <= ALPHA[way] <= figures["gold_alpha_high"]
    assert held >= 33  # of a binomial count with a chance of 95 %, fewer come once in ten thousand


def test_a_form_that_does_not_explain_the_points_is_left_out() -> None:
    zigzag = np.array([0.0, 0.5, -0.5, 0.5, -0.5, 0.5, -0.5])
    figures: Any = curve_figures(measured("training", noise=0.01, gold=zigzag))
    assert figures["gold_explained"] < 0.9
    assert [figures[f"gold_{key}{end}"] for key in ("alpha", "beta", "peak") for end in ("", "_low", "_high")] == [None] * 9
    assert figures["proxy_alpha"] == pytest.approx(1.0, abs=0.01)  # which does not keep the proxy's from being given


def test_three_points_are_too_few_for_a_form() -> None:
    points = [Point(n, np.full(50, kl), np.full(50, kl), np.full(50, kl)) for n, kl in ((1, 0.0), (2, 0.2), (4, 0.6), (8, 1.2))]
    figures = curve_figures(curve_of("best_of_n", points, seed=1, resamples=50))
    assert (figures["gold_explained"], figures["gold_alpha"]) == (None, None)


def test_gold_that_only_rises_has_no_peak() -> None:
    rising = np.array([kl**0.5 for kl in KL["training"]])
    figures: Any = curve_figures(measured("training", noise=0.01, gold=rising))
    assert figures["gold_alpha"] is not None
    assert figures["gold_peak"] is None
    assert figures["gold_lost"] == 0.0


def test_what_gold_lost_is_between_its_highest_point_and_the_last_one_with_an_interval_over_pairs() -> None:
    """Noise that a prompt has at every point alike makes each gain uncertain, and not the difference of two."""
    shared = np.random.default_rng(3).normal(0, 2.0, 200)
    points = [
        Point(step, np.full(200, kl), np.zeros(200), shared + gain)
        for step, kl, gain in ((0, 0.0, 0.0), (10, 1.0, 0.8), (20, 4.0, 0.3))
    ]
    figures: Any = curve_figures(curve_of("training", points, seed=1, resamples=400))
    assert figures["gold_highest_at"] == 10
    assert (figures["gold_lost"], figures["gold_lost_low"], figures["gold_lost_high"]) == pytest.approx((0.5, 0.5, 0.5))
    assert figures["gold_gain_high"] - figures["gold_gain_low"] > 0.4


def test_a_negative_estimate_of_kl_is_a_distance_of_0_and_no_point_of_a_fit() -> None:
    assert distance(np.array([-0.04, 0.25])).tolist() == [0.0, 0.5]
    points = [Point(n, np.full(20, kl), np.full(20, 1.0), np.full(20, kl)) for n, kl in ((1, -0.1), (2, 0.2), (4, 0.6))]
    assert curve_table(curve_of("training", points, seed=1, resamples=20))[0]["sqrt_kl"] == 0.0


def test_least_squares_agrees_with_numpys() -> None:
    rng = np.random.default_rng(5)
    d, gains = rng.uniform(0.1, 3, 9), rng.normal(size=9)
    solution, *_ = np.linalg.lstsq(np.column_stack([d, -d * np.log(d)]), gains, rcond=None)
    assert fitted(FORMS["training"], d, gains) == pytest.approx(tuple(solution))
    both = fitted(FORMS["training"], np.stack([d, d]), np.stack([gains, 2 * gains]))
    assert np.stack(both, axis=1) == pytest.approx(np.array([solution, 2 * solution]))
    with_start = fitted(FORMS["training"], np.array([0.0, *d]), np.array([0.0, *gains]))
    assert with_start == pytest.approx(tuple(solution))


def test_the_table_has_a_row_for_each_point_that_json_and_csv_can_hold(tmp_path: Path) -> None:
    rows = curve_table(measured("best_of_n", noise=0.1))
    assert [row["n"] for row in rows] == [1, 2, 4, 8, 16, 32]
    assert all(row["gold_gain_low"] <= row["gold_gain"] <= row["gold_gain_high"] for row in rows)  # type: ignore[operator]
    json.dumps(rows, allow_nan=False)
    file = io.StringIO()
    csv.DictWriter(file, [*rows[0]]).writeheader()
    assert file.getvalue().startswith("n,sqrt_kl,kl,kl_low,kl_high,proxy_gain")


def test_points_of_different_prompts_are_refused() -> None:
    points = [Point(n, np.zeros(size), np.zeros(size), np.zeros(size)) for n, size in ((1, 3), (2, 4))]
    with pytest.raises(ValueError, match="measured on the same prompts"):
        curve_of("best_of_n", points, seed=1)


def test_gains_are_in_standard_deviations_of_the_starts_answers() -> None:
    assert standardised(np.array([1.0, 3.0]), [0.0, 4.0]).tolist() == [0.5, 1.5]
    assert standardised(np.array([1.0]), [2.0, 2.0]).tolist() == [1.0]


def test_the_drawn_line_is_the_form_and_there_is_none_of_a_form_that_was_left_out() -> None:
    line = drawn_line("best_of_n", {"gold_alpha": 1.0, "gold_beta": 0.5}, "gold", 2.0)
    assert line is not None
    assert line[-1] == pytest.approx((2.0, 0.0))
    assert max(y for _, y in line) == pytest.approx(0.5, abs=1e-3)
    assert drawn_line("best_of_n", {"gold_alpha": None}, "gold", 2.0) is None
