"""Preferences for a reward model: margins, batches of whole prompts, and calibration."""

import math
import random
from typing import Any

import pytest

from plumbline.rewards.margins import calibration, calibration_error, order_by_prompt, with_margins
from plumbline.rows import Row, assistant


def pair(margin: float | None = None, **more: Any) -> Row:
    prompt = [{"role": "user", "content": "q"}]
    return {"prompt": prompt, "chosen": assistant("a b"), "rejected": assistant("c d"), "margin": margin, **more}


def test_margins_are_the_labels_times_the_scale() -> None:
    rows = [pair(3.0), pair(score_chosen=9, score_rejected=7.5)]
    assert [row["margin"] for row in with_margins(rows, 0.5)] == [1.5, 0.75]
    assert all(set(row) == {"prompt", "chosen", "rejected"} for row in with_margins(rows, 0.0))
    with pytest.raises(ValueError, match=r"margin_scale: .*score_chosen and score_rejected"):
        [*with_margins([pair()], 0.5)]


# ---- whole prompts --------------------------------------------------------------------------------------------------


def split_prompts(prompts: list[str], rows: list[int], batch_size: int) -> int:
    batches: dict[str, set[int]] = {}
    for position, row in enumerate(rows):
        batches.setdefault(prompts[row], set()).add(position // batch_size)
    return sum(len(of_prompt) > 1 for of_prompt in batches.values())


@pytest.mark.parametrize(("sizes", "batch_size", "expected"), [
    ([6] * 20, 12, 0),  # all pairs of 4 completions
    ([1, 2, 3, 6] * 10, 12, 0),
    ([6] * 20, 8, None),  # not all can be kept whole: those that are not are counted
    ([20], 8, 1),
])  # fmt: skip
def test_all_pairs_of_a_prompt_lie_in_one_batch(sizes: list[int], batch_size: int, expected: int | None) -> None:
    prompts = [f"p{number}" for number, size in enumerate(sizes) for _ in range(size)]
    random.Random(0).shuffle(prompts)
    order = order_by_prompt(prompts, batch_size, seed=1)
    assert sorted(order.rows) == list(range(len(prompts)))
    assert order.split_count == split_prompts(prompts, order.rows, batch_size)
    assert order.split_count == expected if expected is not None else order.split_count > 0
    assert order.rows != order_by_prompt(prompts, batch_size, seed=2).rows or len(sizes) == 1
    assert order.split_count <= split_prompts(prompts, list(range(len(prompts))), batch_size)


# ---- calibration ----------------------------------------------------------------------------------------------------


def test_margins_that_are_log_odds_are_calibrated_and_twice_them_are_not() -> None:
    """Preferences drawn with probability σ(m): the error is that of sampling; margins of 2m claim too much."""
    rng = random.Random(5)
    log_odds = [rng.gauss(0, 1.5) for _ in range(20_000)]
    margins = [abs(m) if rng.random() < 1 / (1 + math.exp(-abs(m))) else -abs(m) for m in log_odds]
    unlabelled = [None] * len(margins)
    assert calibration_error(calibration(margins, unlabelled)) < 0.015
    assert calibration_error(calibration([2 * m for m in margins], unlabelled)) > 0.05


def test_accuracy_by_margin_by_hand() -> None:
    bins = calibration([2.0, -1.0, 0.0, 3.0], [1.0, 1.0, 4.0, None], bins=2)
    by_reward, by_label = [one for one in bins if one.by == "reward"], [one for one in bins if one.by == "label"]
    assert [(one.n, one.accuracy, one.margin) for one in by_reward] == [(2, 0.25, 0.5), (2, 1.0, 2.5)]
    assert by_reward[1].predicted == pytest.approx((1 / (1 + math.exp(-2)) + 1 / (1 + math.exp(-3))) / 2)
    assert sum(one.n for one in by_label) == 3
    assert by_label[0].predicted is None
    assert all(one.accuracy_low <= one.accuracy <= one.accuracy_high for one in bins)
