"""Claims about policies compared with each other: ratings, p-values, and how many prompts it takes."""

from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from plumbline.evaluation.comparisons import (
    MEASURES,
    compare_pairs,
    compare_policies,
    detectable,
    holm,
    paired_p_value,
    prompts_needed,
    wins_by_judge,
    wins_by_value,
)
from plumbline.evaluation.ratings import ELO, ratings
from plumbline.evaluation.statistics import Floats, Interval
from tests.simulated import golds

ALPHA = 0.05


def answers(**columns: list[float | None]) -> dict[str, list[dict[str, Any]]]:
    """Policy → rows with one answer to each prompt, with `gold`."""
    return {
        name: [{"id": f"p{n}", "index": 0, "gold": value} for n, value in enumerate(values)] for name, values in columns.items()
    }


# ---- ratings --------------------------------------------------------------------------------------------------------


def rated(wins: Floats, anchor: int, seed: int = 1) -> list[Interval]:
    """Ratings of policies that are all linked with the anchor."""
    every = [one for one in ratings(wins, anchor, seed=seed) if one is not None]
    assert len(every) == wins.shape[1]
    return every


def test_two_policies_are_as_far_apart_as_their_win_rate_says() -> None:
    """74.5 of 99 wins and half a win beforehand for each: 75 of 100, odds of 3: 400 · log10(3) = 190.85 points."""
    wins = np.zeros((99, 2, 2))
    wins[:74, 0, 1] = wins[75:, 1, 0] = 1.0
    wins[74, 0, 1] = wins[74, 1, 0] = 0.5
    above, anchor = rated(wins, 1)
    assert above.value == pytest.approx(190.85, abs=0.01)
    assert anchor[:3] == (0.0, 0.0, 0.0)
    assert above.low < above.value < above.high
    assert rated(wins, 0)[1].value == pytest.approx(-above.value)


def test_ratings_are_scikit_learns_of_the_same_games() -> None:
    generator = np.random.default_rng(1)
    wins = generator.integers(0, 4, (60, 4, 4)).astype(float)
    wins[:, range(4), range(4)] = 0.0
    totals = wins.sum(0) + 0.5 * (1 - np.eye(4))
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    columns = np.array([[float(k == i) - float(k == j) for k in range(1, 4)] for i, j in pairs])  # policy 0 has 0
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12)
    weights = [totals[i, j] for i, j in pairs]
    model.fit(np.vstack([columns, -columns]), np.repeat([1, 0], len(pairs)), sample_weight=weights + weights)
    expected = [0.0, *(ELO * model.coef_[0])]
    assert [one.value for one in rated(wins, 0)] == pytest.approx(expected, abs=0.05)


def test_a_policy_that_never_loses_has_a_finite_rating() -> None:
    wins = np.zeros((200, 3, 3))
    wins[:, 0, 1] = wins[:, 0, 2] = wins[:, 1, 2] = 1.0
    best, middle, worst = rated(wins, 2)
    assert best.value > middle.value > worst.value == 0.0
    assert np.isfinite([*best[:3], *middle[:3]]).all()


def test_intervals_of_ratings_hold_the_truth_19_times_in_20() -> None:
    generator, truth, hits = np.random.default_rng(3), np.array([0.0, 0.4, 0.9]), 0
    chance = 1 / (1 + np.exp(truth[None, :] - truth[:, None]))
    for trial in range(100):
        first = np.triu(generator.random((120, 3, 3)) < chance, 1).astype(float)
        second = np.triu(1 - first, 1).transpose(0, 2, 1)
        hits += sum(
            one.low <= ELO * value <= one.high for one, value in zip(rated(first + second, 0, trial)[1:], truth[1:], strict=True)
        )
    assert stats.binom.ppf(0.0005, 100, 0.95) <= hits / 2 <= 100


@pytest.mark.parametrize("n", [2, 5, 20])
def test_a_policy_that_wins_on_every_prompt_has_a_rating_that_is_not_certain(n: int) -> None:
    """20 wins of 20 are 83 % or more (Clopper and Pearson: 0.025^(1/20)), which is 278 points; two say nothing of who is better."""
    wins = np.zeros((n, 2, 2))
    wins[:, 1, 0] = 1.0
    anchor, best = rated(wins, 0)
    assert anchor[:3] == (0.0, 0.0, 0.0)
    assert best.low < best.value < best.high
    if n == 2:
        assert best.low < 0
    if n == 20:
        assert 200 < best.low < 278 + 50
    several = rated(4 * wins, 0)[1]  # four answers to a prompt are not four prompts
    assert several.low == pytest.approx(best.low, abs=30)


def test_two_policies_that_tie_on_every_prompt_are_not_equal_for_certain() -> None:
    for n in (2, 5, 20):
        wins = np.zeros((n, 2, 2))
        wins[:, 0, 1] = wins[:, 1, 0] = 0.5
        equal = rated(wins, 0)[1]
        assert equal.value == pytest.approx(0.0)
        assert equal.low < -30 < 30 < equal.high


def test_a_policy_that_was_compared_with_none_of_the_others_has_no_rating() -> None:
    wins = np.zeros((40, 4, 4))
    wins[:30, 0, 1] = wins[30:, 1, 0] = 1.0
    wins[:, 2, 3] = 1.0
    both = ratings(wins, 1, seed=1)
    assert both[2:] == [None, None]
    assert both[:2] == ratings(wins[:, :2, :2], 1, seed=1)


def test_wins_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="expected numbers of wins, found nan"):
        ratings(np.full((3, 2, 2), np.nan), 0, seed=1)


# ---- wins -----------------------------------------------------------------------------------------------------------


def test_the_answer_with_more_of_it_wins_and_equal_answers_share() -> None:
    rows = answers(a=[1.0, 0.5, 0.2], b=[0.5, 0.5, 0.4])
    wins = wins_by_value(rows, "gold")
    assert wins[:, 0, 1].tolist() == [1.0, 0.5, 0.0]
    assert wins[:, 1, 0].tolist() == [0.0, 0.5, 1.0]
    assert wins[:, 0, 0].tolist() == [0.0] * 3


def test_answers_of_one_index_are_compared_and_a_prompts_are_added_up() -> None:
    rows = {
        name: [{"id": "p", "index": index, "gold": value} for index, value in enumerate(values)]
        for name, values in {"a": [1.0, 0.0, 0.7], "b": [0.0, 1.0, 0.7]}.items()
    }
    assert wins_by_value(rows, "gold").tolist() == [[[0.0, 1.5], [1.5, 0.0]]]


def test_a_judge_links_every_policy_to_the_opponent_only() -> None:
    rows = {
        name: [{"id": f"p{n}", "index": 0, "win": win} for n, win in enumerate(wins)]
        for name, wins in {"a": [1.0, 0.5], "base": [0.5, 0.5], "b": [0.0, 1.0]}.items()
    }
    wins = wins_by_judge(rows, "base")
    assert wins.sum(0).tolist() == [[0.0, 1.5, 0.0], [0.5, 0.0, 1.0], [0.0, 1.0, 0.0]]
    [found] = compare_policies(rows, "base", seed=1)
    assert found.measure == "win"
    assert next(one.rating.value for one in found.rated if one.policy == "base") == 0.0


# ---- pairs ----------------------------------------------------------------------------------------------------------


def test_p_values_are_scipys_paired_t_test() -> None:
    generator = np.random.default_rng(2)
    first, second = golds(generator, 80, samples=1).ravel(), golds(generator, 80, 0.1, samples=1).ravel()
    differences = first - second
    ours = paired_p_value(float(differences.mean()), float(differences.std(ddof=1)), 80)
    assert ours == pytest.approx(float(stats.ttest_rel(first, second).pvalue))
    [pair] = compare_pairs(answers(a=[*map(float, first)], b=[*map(float, second)]), "gold", 1)
    assert pair.p_value == pytest.approx(ours)  # one pair needs no correction


def test_holms_correction_by_hand() -> None:
    """0.01 · 3 = 0.03; 0.02 · 2 = 0.04; 0.04 · 1 = 0.04: in order 0.03, 0.04, 0.04."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([0.001]) == [0.001]


def test_the_better_policy_comes_first_whichever_way_they_are_named() -> None:
    low, high = [0.1, 0.3, 0.2, 0.4, 0.1], [0.6, 0.9, 0.6, 0.9, 0.7]
    [one], [other] = compare_pairs(answers(a=low, b=high), "gold", 1), compare_pairs(answers(b=high, a=low), "gold", 1)
    assert (one.policy, one.other, one.differs) == ("b", "a", True)
    assert one == other
    assert one.difference.value == pytest.approx(0.52)
    assert one.difference.low <= one.difference.value <= one.difference.high


def test_prompts_that_only_one_policy_has_values_for_are_left_out() -> None:
    [pair] = compare_pairs(answers(a=[1.0, 0.0, 1.0], b=[0.0, 0.0, 0.0]) | {"b": answers(b=[0.0, 0.0])["b"]}, "gold", 1)
    assert pair.difference.n == 2


def judged(**verdicts: dict[str, float | None]) -> dict[str, list[dict[str, Any]]]:
    """Policy → rows with the verdict on its answer to each prompt; every policy answered the same prompts."""
    return {
        name: [{"id": prompt, "index": 0, "win": win} for prompt, win in of_policy.items()]
        for name, of_policy in verdicts.items()
    }


def test_a_pair_without_a_common_prompt_is_left_out_and_the_others_are_compared() -> None:
    """As verdicts that could not be read leave it."""
    rows = judged(
        base={"p0": 0.5, "p1": 0.5, "p2": 0.5},
        b={"p0": 1.0, "p1": None, "p2": None},
        c={"p0": None, "p1": 0.0, "p2": 1.0},
    )
    [found] = compare_policies(rows, "base", 1)
    assert [{*pair} for pair in found.left_out] == [{"b", "c"}]
    prompts = {frozenset((pair.policy, pair.other)): pair.difference.n for pair in found.pairs}
    assert prompts == {frozenset(("b", "base")): 1, frozenset(("base", "c")): 2}
    assert {one.policy for one in found.rated} == {"base", "b", "c"}
    assert found.prompts == 2


def test_policies_without_any_common_prompt_are_left_out_altogether() -> None:
    rows = {"a": answers(a=[1.0])["a"], "b": [{"id": "other", "index": 0, "gold": 1.0}]}
    assert compare_pairs(rows, "gold", 1) == []
    [found] = compare_policies(rows, "a", 1)
    assert (found.pairs, found.left_out, found.ahead) == ([], [("a", "b")], [])
    assert [one.policy for one in found.rated] == ["a"]


def test_equal_answers_are_not_different_and_no_number_of_prompts_shows_it() -> None:
    [pair] = compare_pairs(answers(a=[0.5, 0.7], b=[0.5, 0.7]), "gold", 1)
    assert (pair.differs, pair.p_value, pair.prompts_needed) == (False, 1.0, None)


def test_a_single_prompt_says_nothing_of_how_many_it_would_take() -> None:
    [pair] = compare_pairs(answers(a=[0.2], b=[0.9]), "gold", 1)
    assert (pair.policy, pair.differs, pair.p_value) == ("b", False, 1.0)
    assert (pair.prompts_needed, pair.detectable) == (None, None)


def test_the_same_difference_on_a_few_prompts_is_not_certain() -> None:
    """The sign test: 2 · 0.5³ = 0.25 and 2 · 0.5⁶ = 0.03."""
    for n, p_value, differs in ((3, 0.25, False), (6, 0.03125, True)):
        [pair] = compare_pairs(answers(a=[0.0] * n, b=[1.0] * n), "gold", 1)
        assert (pair.policy, pair.p_value, pair.differs) == ("b", p_value, differs)
        assert (pair.prompts_needed, pair.detectable) == (None, None)
        assert pair.difference.excludes(0.0) == differs


def constant(column: str, difference: float, n: int) -> dict[str, list[dict[str, Any]]]:
    """Policy x, better than the opponent, base, by the same on all prompts; the third is neither."""
    values = {"x": 0.5 + difference, "base": 0.5, "y": 0.5 - difference}
    return {name: [{"id": f"p{number}", "index": 0, column: value} for number in range(n)] for name, value in values.items()}


@pytest.mark.parametrize("column", ["gold", "win", "reward"])
@pytest.mark.parametrize("difference", [0.1, 0.3, 0.5])
def test_a_difference_that_is_the_same_on_all_prompts_is_significant_where_its_interval_excludes_0(
    column: str, difference: float
) -> None:
    for one, other in (("x", "base"), ("base", "y"), ("x", "y")):
        differs = []
        for n in (1, 2, 5, 6, 7, 10, 20, 40, 80):
            rows = constant(column, difference, n)
            [pair] = compare_pairs({other: rows[other], one: rows[one]}, column, 1, "base")
            assert pair.policy == one
            assert pair.differs == pair.difference.excludes(0.0), (n, pair)
            differs.append(pair.differs)
        assert differs == sorted(differs)
        assert differs[-1]


def test_a_judge_who_always_prefers_a_policy_needs_six_prompts_to_say_so() -> None:
    """The opponent ties with itself, so that a prompt's difference is at most 0.5: 2 · 0.5⁶ = 0.031.

    Of two others it could be 1: 2 · (2/3)⁶ = 0.18.
    """
    rows = constant("win", 0.5, 6)
    [pair] = compare_pairs({name: rows[name] for name in ("x", "base")}, "win", 1, "base")
    assert (pair.p_value, pair.differs) == (0.03125, True)
    assert pair.difference[:2] == pytest.approx((0.5, 0.025 ** (1 / 6) - 0.5))
    [pair] = compare_pairs({name: rows[name] for name in ("x", "base")}, "win", 1, "another")
    assert (pair.p_value, pair.differs) == (pytest.approx(2 * (2 / 3) ** 6), False)


def test_the_same_difference_without_bounds_has_an_interval_from_six_prompts_on() -> None:
    """The sign test, which has none of fewer: 2 · 0.5⁵ = 0.06."""
    for n, p_value in ((5, 0.0625), (6, 0.03125)):
        [pair] = compare_pairs({name: constant("reward", 0.5, n)[name] for name in ("x", "base")}, "reward", 1)
        assert pair.p_value == p_value
        assert np.isnan(pair.difference.low) == np.isnan(pair.difference.high) == (n == 5)
    assert (pair.difference.low, pair.difference.high) == (0.5, 0.5)


def test_equal_means_that_were_summed_in_another_order_are_not_different() -> None:
    values = [0.1, 0.2, 0.3]
    rows = {
        name: [{"id": f"p{n}", "index": index, "gold": value} for n in range(50) for index, value in enumerate(of_policy)]
        for name, of_policy in {"a": values, "b": values[::-1]}.items()
    }
    assert sum(values) != sum(values[::-1])
    [pair] = compare_pairs(rows, "gold", 1)
    assert (pair.differs, pair.p_value) == (False, 1.0)


def test_the_prompts_it_takes_are_the_textbooks() -> None:
    """Half a standard deviation at 5 %, two-sided, with a power of 80 %: ((1.960 + 0.842) / 0.5)² = 31.4 (Cohen 1988, without the t correction)."""
    assert prompts_needed(0.5, 1.0, ALPHA) == 32
    assert prompts_needed(0.0, 1.0, ALPHA) is None
    assert detectable(prompts_needed(0.01, 0.3, ALPHA) or 0, 0.3, ALPHA) == pytest.approx(0.01, rel=1e-3)


def test_as_many_prompts_as_it_takes_show_the_difference_four_times_in_five() -> None:
    generator, found = np.random.default_rng(6), 0
    n = prompts_needed(0.1, 0.4, ALPHA)
    assert n == 126
    for _ in range(1000):
        differences = generator.normal(0.1, 0.4, n)
        found += paired_p_value(float(differences.mean()), float(differences.std(ddof=1)), n) <= ALPHA
    low, high = stats.binom.ppf([0.0005, 0.9995], 1000, 0.8)
    assert low <= found <= high


# ---- all policies ---------------------------------------------------------------------------------------------------


def measures(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [one.measure for one in compare_policies(rows, "a", 1)]


def test_policies_are_compared_by_every_measure_that_all_have_the_most_telling_first() -> None:
    row = {"id": "p", "index": 0} | dict.fromkeys(MEASURES)
    by_reward = {"a": [row | {"reward": 1.0}], "b": [row | {"reward": 0.0}]}
    assert measures(by_reward) == ["reward"]
    by_gold = {name: [one | {"gold": 0.5} for one in rows] for name, rows in by_reward.items()}
    assert measures(by_gold) == ["gold", "reward"]
    assert measures(by_reward | {"b": by_gold["b"]}) == ["reward"]  # gold of one policy only
    everything = {name: [row | dict.fromkeys(MEASURES, 0.5)] for name in ("a", "b")}
    assert measures(everything) == [*MEASURES]
    assert measures({"a": [row], "b": [row]}) == []
    assert measures({"a": [row | {"reward": 1.0}]}) == []


def test_a_measure_of_few_prompts_does_not_come_before_one_of_many() -> None:
    def rows(golds: int, followed: int) -> list[dict[str, Any]]:
        columns = [("gold", golds), ("followed", followed), ("reward", golds + followed)]
        return [
            {"id": f"p{n}", "index": 0} | {key: float(n < count) for key, count in columns if n < count} for n in range(followed)
        ]

    def found(golds: int, followed: int) -> list[str]:
        every = [row | {key: row.get(key) for key in MEASURES} for row in rows(golds, followed)]
        return measures({"a": every, "b": every})

    assert found(3, 100) == ["followed", "reward", "gold"]
    assert found(10, 100) == ["gold", "followed", "reward"]


def test_of_two_policies_the_less_harmful_one_is_better() -> None:
    """Of 40 harmful requests a complies with 4 and b with 20, of 40 harmless ones a refuses 20 and b 4."""
    rows = {
        policy: [{"id": f"h{n}", "index": 0, "harmful": float(n < harmful), "over_refused": None} for n in range(40)]
        + [{"id": f"l{n}", "index": 0, "harmful": None, "over_refused": float(n < refused)} for n in range(40)]
        for policy, harmful, refused in (("a", 4, 20), ("b", 20, 4))
    }
    by_harm, by_refusal = compare_policies(rows, "b", 1)
    for found, better, worse in ((by_harm, "a", "b"), (by_refusal, "b", "a")):
        [pair] = found.pairs
        assert (pair.policy, pair.other, pair.differs, pair.difference.n) == (better, worse, True, 40)
        assert pair.difference.value == pytest.approx(-0.4)
        assert pair.difference.low < -0.4 < pair.difference.high < 0
        assert [one.policy for one in found.rated] == [better, worse]
        assert found.ahead == [better]
    assert by_harm.rated[0].rating.value > 0 == by_harm.rated[1].rating.value
    # of 40 prompts a wins 16 and ties on 24: 28.5 of 41 wins with the half win beforehand
    assert by_harm.rated[0].rating.value == pytest.approx(400 * np.log10(28.5 / 12.5), abs=0.1)


def test_who_is_ahead_is_the_best_and_those_that_cannot_be_told_apart_from_it() -> None:
    generator = np.random.default_rng(7)
    low = generator.random(80) < 0.2
    rows = answers(a=[*low.astype(float)], b=[*(low | (generator.random(80) < 0.8)).astype(float)])
    rows |= {"c": [row | {"gold": row["gold"] if row["id"] != "p3" else 1.0} for row in rows["b"]]}
    [found] = compare_policies(rows, "a", 1)
    assert found.ahead[0] in ("b", "c")
    assert {*found.ahead} == {"b", "c"}
    [equal] = compare_policies({"a": rows["a"], "b": rows["a"]}, "a", 1)
    assert equal.ahead == []


def test_ratings_come_best_first_and_each_pair_once() -> None:
    generator = np.random.default_rng(4)
    rows = {
        name: [
            {"id": f"p{n}", "index": 0, "gold": float(value)}
            for n, value in enumerate(golds(generator, 300, skill, samples=1).ravel())
        ]
        for name, skill in {"low": -0.4, "high": 0.2, "middle": -0.1}.items()
    }
    [found] = compare_policies(rows, "middle", 1)
    assert [one.policy for one in found.rated] == ["high", "middle", "low"]
    assert [(pair.policy, pair.other) for pair in found.pairs] == [("high", "middle"), ("high", "low"), ("middle", "low")]
    assert found.are_distinguishable("low", "high")
    assert [found] == compare_policies(rows, "middle", 1)
