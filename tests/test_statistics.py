"""Claims about the intervals: against cases known by hand and against scipy."""

import numpy as np
import pytest
from scipy import stats

from plumbline.evaluation.statistics import (
    bootstrap_gain,
    bootstrap_mean,
    bootstrap_ratio,
    flat,
    fraction_interval,
    pool_seeds,
    standard_error,
    sum_by_prompt,
    t_interval,
)


def ids(n: int, samples: int = 1) -> list[str]:
    return [f"p{row}" for row in range(n) for _ in range(samples)]


def noise(n: int, seed: int = 0) -> list[float]:
    return [float(value) for value in np.random.default_rng(seed).normal(0.5, 0.2, n)]


def test_interval_of_coin_flips_is_the_textbook_one() -> None:
    # 500 of 1000: 0.5 ± 1.96 · sqrt(0.25 / 1000) = 0.5 ± 0.0310
    interval = fraction_interval([0.0, 1.0] * 500, ids(1000))
    assert interval is not None
    assert interval.value == 0.5
    assert interval.low == pytest.approx(0.4690, abs=0.003)
    assert interval.high == pytest.approx(0.5310, abs=0.003)


def test_interval_agrees_with_scipy() -> None:
    values = [value**3 for value in noise(400)]  # skewed
    ours = bootstrap_mean(values, ids(400), seed=2)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert ours is not None
    assert ours.low == pytest.approx(theirs.low, abs=0.002)
    assert ours.high == pytest.approx(theirs.high, abs=0.002)


def test_interval_of_clusters_agrees_with_scipy_over_their_means() -> None:
    means = noise(300)
    ours = bootstrap_mean([mean for mean in means for _ in range(3)], ids(300, 3), seed=2)
    theirs = stats.bootstrap((means,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(3))
    assert ours is not None
    assert ours.high - ours.low == pytest.approx(theirs.confidence_interval.high - theirs.confidence_interval.low, rel=0.06)


def test_interval_shrinks_with_the_root_of_n() -> None:
    small, large = (bootstrap_mean(noise(n), ids(n), seed=1) for n in (200, 3200))
    assert small is not None
    assert large is not None
    assert (small.high - small.low) / (large.high - large.low) == pytest.approx(4.0, rel=0.15)


def test_answers_that_repeat_their_prompt_add_no_certainty() -> None:
    values = noise(200)
    once = bootstrap_mean(values, ids(200), seed=1)
    repeated = [value for value in values for _ in range(4)]
    clustered = bootstrap_mean(repeated, ids(200, 4), seed=1)
    naive = bootstrap_mean(repeated, ids(800), seed=1)
    assert once == clustered
    assert clustered is not None
    assert naive is not None
    assert (clustered.high - clustered.low) / (naive.high - naive.low) == pytest.approx(2.0, rel=0.1)


def test_a_gain_that_is_the_same_on_all_prompts_is_as_certain_as_their_number_allows() -> None:
    """Clopper and Pearson, 0 of 100: at most 3.62 % of prompts differ, by up to 1 either way from 0, and by up to 2 downwards from 1."""
    none = bootstrap_gain(noise(100), ids(100), noise(100), ids(100), seed=1)
    assert none == (0.0, pytest.approx(-0.0362, abs=1e-4), pytest.approx(0.0362, abs=1e-4), 100)
    two, five, six = (bootstrap_gain([1.0] * n, ids(n), [0.0] * n, ids(n), seed=1) for n in (2, 5, 6))
    assert two == (1.0, pytest.approx(-0.684, abs=1e-3), 1.0, 2)
    assert five is not None
    assert six is not None
    assert not five.excludes(0.0)  # as the sign test says: 2 · 0.5⁵ = 0.0625
    assert six.excludes(0.0)  # 2 · 0.5⁶ = 0.031


@pytest.mark.parametrize("samples", [1, 4])
def test_a_single_prompt_has_no_interval_of_values_without_bounds(samples: int) -> None:
    values, prompts = [3.0, 1.0, 2.0, 5.0][:samples], ids(1, samples)
    mean = bootstrap_mean(values, prompts, seed=1)
    assert mean is not None
    assert not mean.excludes(1e9)
    assert flat("reward", mean) == {"reward": sum(values) / samples, "reward_low": None, "reward_high": None}
    assert flat("ratio", bootstrap_ratio(np.array([6.0]), np.array([4.0]), seed=1))["ratio_low"] is None
    assert flat("t", t_interval(0.3, 0.0, 1)) == {"t": 0.3, "t_low": None, "t_high": None}


def test_values_within_bounds_that_are_all_the_same_have_an_interval_that_narrows_with_their_number() -> None:
    for value in (0.0, 0.25, 0.5, 1.0):
        widths = []
        for n in (1, 2, 10, 1000):
            interval = fraction_interval([value] * n, ids(n))
            assert interval is not None
            assert 0 <= interval.low <= interval.value == value <= interval.high <= 1
            widths.append(interval.high - interval.low)
        assert widths == pytest.approx([1 - 0.025 ** (1 / n) for n in (1, 2, 10, 1000)])
    summed_otherwise = fraction_interval([0.1, 0.2, 0.3, 0.3, 0.2, 0.1], ids(2, 3))
    assert summed_otherwise is not None
    assert summed_otherwise.high - summed_otherwise.low == pytest.approx(1 - 0.025 ** (1 / 2))


def test_paired_gain_is_tighter_than_the_two_intervals() -> None:
    before = noise(300)
    after = [value + 0.1 for value in before]
    gain = bootstrap_gain(after, ids(300), before, ids(300), seed=1)
    assert gain is not None
    assert gain.value == pytest.approx(0.1)
    assert gain.high - gain.low < 0.03


def test_gain_does_not_depend_on_the_order_of_the_other_side() -> None:
    ours, theirs, prompts = noise(50), noise(50, seed=9), ids(50)
    straight = bootstrap_gain(ours, prompts, theirs, prompts, seed=1)
    assert straight == bootstrap_gain(ours, prompts, theirs[::-1], prompts[::-1], seed=1)


def test_swapping_the_sides_negates_the_gain() -> None:
    ours, theirs, prompts = noise(80), noise(80, seed=9), ids(80)
    forth = bootstrap_gain(ours, prompts, theirs, prompts, seed=1)
    back = bootstrap_gain(theirs, prompts, ours, prompts, seed=1)
    assert forth is not None
    assert back is not None
    assert forth.value == pytest.approx(-back.value)
    assert forth.low == pytest.approx(-back.high)


def test_gain_refuses_other_prompts() -> None:
    with pytest.raises(ValueError, match="same prompts on both sides"):
        bootstrap_gain([1.0], ["a"], [1.0], ["b"], seed=1)


def test_never_in_100_prompts_is_not_never() -> None:
    # Clopper and Pearson, 0 of 100: upper bound 1 - 0.025 ** (1 / 100) = 0.0362
    never = fraction_interval([0.0] * 100, ids(100))
    always = fraction_interval([1.0] * 100, ids(100))
    assert never is not None
    assert always is not None
    assert (never.value, never.low, never.high) == (0.0, 0.0, pytest.approx(0.0362, abs=1e-4))
    assert (always.value, always.low, always.high) == (1.0, pytest.approx(0.9638, abs=1e-4), 1.0)
    assert never.high == pytest.approx(stats.binomtest(0, 100).proportion_ci(0.95, "exact").high)


def test_values_that_do_not_apply_are_left_out() -> None:
    some = bootstrap_mean([1.0, None, 3.0, None], ["a", "a", "b", "c"], seed=1)
    assert some is not None
    assert (some.value, some.n) == (2.0, 2)
    assert bootstrap_mean([None, None], ["a", "b"], seed=1) is None
    assert bootstrap_gain([None], ["a"], [1.0], ["a"], seed=1) is None


def test_same_seed_same_interval() -> None:
    once = bootstrap_mean(noise(60), ids(60), seed=5)
    assert bootstrap_mean(noise(60), ids(60), seed=5) == once
    assert bootstrap_mean(noise(60), ids(60), seed=6) != once


def test_many_prompts_are_resampled_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap_mean(noise(60), ids(60), seed=5)
    monkeypatch.setattr("plumbline.evaluation.statistics.CHUNK_COUNT", 60 * 7)
    pieces = bootstrap_mean(noise(60), ids(60), seed=5)
    assert pieces is not None
    assert pieces == pytest.approx(whole, abs=0.005)


def test_a_fraction_of_independent_answers_has_wilsons_interval() -> None:
    # Wilson, 3 of 40, with t at 39 degrees of freedom and the sample variance, which is 40 / 39 as large
    interval = fraction_interval([1.0] * 3 + [0.0] * 37, ids(40))
    wilson = stats.binomtest(3, 40).proportion_ci(0.95, "wilson")
    assert interval is not None
    assert (interval.value, interval.n) == (0.075, 40)
    assert (interval.low, interval.high) == (pytest.approx(wilson.low, abs=0.003), pytest.approx(wilson.high, abs=0.01))
    many = fraction_interval([1.0] * 300 + [0.0] * 3700, ids(4000))
    of_many = stats.binomtest(300, 4000).proportion_ci(0.95, "wilson")
    assert many is not None
    assert many[1:3] == pytest.approx((of_many.low, of_many.high), abs=1e-5)


def test_a_fraction_stays_within_0_and_1_and_one_prompt_says_nothing() -> None:
    for ones in range(11):
        interval = fraction_interval([1.0] * ones + [0.0] * (10 - ones), ids(10))
        assert interval is not None
        assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0
    assert fraction_interval([1.0, 0.0], ids(1, 2)) == (0.5, pytest.approx(0.0125), pytest.approx(0.9875), 1)


def test_answers_that_repeat_their_prompt_add_no_certainty_to_a_fraction() -> None:
    once = fraction_interval([1.0] * 30 + [0.0] * 70, ids(100))
    repeated = fraction_interval([1.0] * 120 + [0.0] * 280, ids(100, 4))
    assert once == pytest.approx(repeated)


def test_few_prompts_have_the_width_of_a_t_interval() -> None:
    values = noise(8, seed=4)
    ours, theirs = bootstrap_mean(values, ids(8), seed=1), stats.ttest_1samp(values, 0).confidence_interval()
    assert ours is not None
    assert ours.high - ours.low == pytest.approx(theirs.high - theirs.low, rel=0.12)


def test_standard_error_is_the_textbook_one_of_prompt_means() -> None:
    values = noise(50)
    assert standard_error(values, ids(50)) == pytest.approx(stats.sem(values))
    assert standard_error([value for value in values for _ in range(3)], ids(50, 3)) == pytest.approx(stats.sem(values))
    assert standard_error([1.0], ["a"]) is None


def test_seeds_are_pooled_with_their_spread() -> None:
    """0.86, 0.84 and 0.85: deviation 0.01, standard error 0.01 / √3, t at 2 degrees of freedom 4.303."""
    pooled = pool_seeds([0.86, 0.84, 0.85])
    assert pooled == pytest.approx((0.85, 0.01, 0.85 - 4.3027 * 0.0057735, 0.85 + 4.3027 * 0.0057735, 3), abs=1e-6)
    with pytest.raises(ValueError, match="two seeds or more, found 1"):
        pool_seeds([0.86])


def test_sums_need_one_value_per_answer() -> None:
    with pytest.raises(ValueError, match="1 values for 2 answers"):
        sum_by_prompt([1.0], ["a", "b"])
