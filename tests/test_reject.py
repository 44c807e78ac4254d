"""What a reward selects: best of n, a threshold, RSO as a distribution, a ceiling on cost, and pairs among the accepted."""

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stages.pipeline.records import read_json, read_jsonl, write_json, write_jsonl
from stages.reject import RejectEntry, RejectStage, candidates, check_entry, preferences, run, select
from stages.rewards.selection import acceptance_probabilities, best, matches, reject_statistically, top_fraction_threshold

KOLMOGOROV = 1.95  # of sqrt(n) times the largest distance of two distribution functions: exceeded once in a thousand


def normal_cdf(x: float, mean: float, deviation: float) -> float:
    return 0.5 * (1 + math.erf((x - mean) / (deviation * math.sqrt(2))))


def log_normal_density(x: float, mean: float, deviation: float) -> float:
    return -0.5 * ((x - mean) / deviation) ** 2 - math.log(deviation * math.sqrt(2 * math.pi))


def kolmogorov_distance(values: list[float], mean: float, deviation: float) -> float:
    """sqrt(n) · sup |F_n − F| for a normal F."""
    ordered, n = sorted(values), len(values)
    gaps = (
        max((i + 1) / n - normal_cdf(x, mean, deviation), normal_cdf(x, mean, deviation) - i / n) for i, x in enumerate(ordered)
    )
    return math.sqrt(n) * max(gaps)


def test_the_accepted_have_the_known_density_of_the_target() -> None:
    """q = N(0, 1), p = N(0.5, 0.6²): log p/q is largest at x = 0.5 / (1 − 0.6²), which gives M; 1/M of the candidates are accepted."""
    rng = random.Random(3)
    drawn = [rng.gauss(0, 1) for _ in range(20_000)]
    log_ratios = [log_normal_density(x, 0.5, 0.6) - log_normal_density(x, 0, 1) for x in drawn]
    mode = 0.5 / (1 - 0.6**2)
    log_m = log_normal_density(mode, 0.5, 0.6) - log_normal_density(mode, 0, 1)
    probabilities = acceptance_probabilities(log_ratios, log_m)
    accepted = [x for x, probability in zip(drawn, probabilities, strict=True) if rng.random() < probability]
    assert kolmogorov_distance(accepted, 0.5, 0.6) < KOLMOGOROV
    assert kolmogorov_distance(accepted, 0.45, 0.6) > KOLMOGOROV  # so a small error would be seen
    share, expected = len(accepted) / len(drawn), math.exp(-log_m)
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(drawn))


def test_rewards_over_beta_are_log_ratios_so_the_accepted_follow_q_exp_r_over_beta() -> None:
    """Four completions with known q and r: the accepted counts follow p ∝ q exp(r/β), by χ² with 3 degrees of freedom."""
    q, rewards, beta = [0.4, 0.3, 0.2, 0.1], [0.0, 0.5, 1.0, -1.0], 0.5
    rng = random.Random(11)
    drawn = rng.choices(range(4), q, k=30_000)
    accepted = [drawn[place] for place in reject_statistically([rewards[y] for y in drawn], beta, 0, rng)]
    weights = [share * math.exp(reward / beta) for share, reward in zip(q, rewards, strict=True)]
    counts, n = Counter(accepted), len(accepted)

    def chi_square(target: list[float]) -> float:
        total = sum(target)
        return sum((counts[y] - n * w / total) ** 2 / (n * w / total) for y, w in enumerate(target))

    assert chi_square(weights) < 16.3  # exceeded once in a thousand
    assert chi_square([share * math.exp(reward / 0.45) for share, reward in zip(q, rewards, strict=True)]) > 16.3
    assert n / 30_000 == pytest.approx(sum(weights) / math.exp(1.0 / beta), abs=0.012)


def test_a_bound_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most log M = 0\.5, found 1"):
        acceptance_probabilities([1.0], 0.5)
    with pytest.raises(ValueError, match="finite"):
        acceptance_probabilities([float("nan")])


def test_beta_goes_from_the_best_alone_to_everything() -> None:
    rewards = [0.1, 0.9, 0.5, 0.7]
    assert reject_statistically(rewards, 1e-6, 0, random.Random(0)) == [1]
    assert reject_statistically(rewards, 1e6, 0, random.Random(0)) == [0, 1, 2, 3]
    assert reject_statistically(rewards, 1e-6, 3, random.Random(0)) == [
        1,
        3,
        2,
    ]  # passes over what is left, each with its own r_max
    assert sorted(reject_statistically(rewards, 0.5, 9, random.Random(0))) == [0, 1, 2, 3]
    assert reject_statistically([], 0.5, 2, random.Random(0)) == []


def test_best_takes_no_text_twice_and_the_first_of_equals() -> None:
    rewards, texts = [1.0, 3.0, 3.0, 2.0, 3.0], ["a", "b", "c", "d", "b"]
    assert best(rewards, texts, 1) == [1]
    assert best(rewards, texts, 3) == [1, 2, 3]
    assert best(rewards, texts, 0) == [1, 2, 3, 0]


def test_a_fraction_is_of_the_whole_batch() -> None:
    assert top_fraction_threshold([1, 5, 3, 4, 2], 0.4) == 4
    assert top_fraction_threshold([1, 5], 0.01) == 5


def test_a_first_round_pairs_all_and_a_tournament_until_one_is_left() -> None:
    rewards, texts = [float(i) for i in range(8)], [str(i) for i in range(8)]
    first = matches(range(8), rewards, texts, "first_round", random.Random(0))
    assert sorted(place for match in first for place in match) == list(range(8))
    whole = matches(range(8), rewards, texts, "tournament", random.Random(0))
    assert whole[:4] == first
    assert len(whole) == 7
    assert whole[-1].chosen == 7
    assert all(rewards[match.chosen] > rewards[match.rejected] for match in whole)
    assert {match.rejected for match in whole} == set(range(7))  # everyone but the winner loses once


def test_equal_rewards_and_equal_texts_make_no_pair() -> None:
    assert matches([0, 1], [1.0, 1.0], ["a", "b"], "tournament", random.Random(0)) == []
    assert matches([0, 1], [1.0, 2.0], ["a", "a"], "tournament", random.Random(0)) == []


# ---- the stage ------------------------------------------------------------------------------------------------------


def row(prompt: int, index: int, words: int, **changes: Any) -> dict[str, Any]:
    completion = [{"role": "assistant", "content": " ".join(["word"] * words)}]
    return {
        "id": f"p{prompt}", "prompt": [{"role": "user", "content": f"question {prompt}"}], "completion": completion,
        "index": index, "policy": "sft", "finished": True, "reward": float(words), "cost": None,
    } | changes  # fmt: skip


def entry(**changes: Any) -> RejectEntry:
    settings: dict[str, Any] = {
        "sample": "s", "reward": "words", "cost": "none", "strategy": "best", "keep": 1, "threshold": None, "fraction": None,
        "beta": None, "max_cost_score": None, "pairs": "none", "validation_fraction": 0.0,
    }  # fmt: skip
    return RejectEntry(**(settings | changes))


ROWS = [row(prompt, index, words) for prompt in range(3) for index, words in enumerate([1, 4, 2 + prompt, 9])]


def kept(rows: list[dict[str, Any]], **changes: Any) -> list[list[float]]:
    settings = entry(**changes)
    by_prompt, _ = candidates(rows, settings.max_cost_score)
    return [[row["reward"] for row in rows] for rows in select(by_prompt, settings, 1)]


def test_each_strategy_keeps_what_it_says() -> None:
    assert kept(ROWS) == [[9], [9], [9]]
    assert kept(ROWS, strategy="threshold", threshold=4, keep=0) == [[9, 4], [9, 4], [9, 4]]
    assert kept(ROWS, strategy="threshold", threshold=10, keep=0) == []
    assert kept(ROWS, strategy="fraction", fraction=0.25, keep=0) == [[9], [9], [9]]
    assert kept(ROWS, strategy="statistical", beta=1e-6, keep=2) == [[9, 4], [9, 4], [9, 4]]


def test_what_is_drawn_for_a_prompt_does_not_depend_on_the_others() -> None:
    rows = [row(prompt, index, index % 5) for prompt in range(5) for index in range(8)]
    settings = entry(strategy="statistical", beta=1.0, keep=0)
    together = {found[0]["id"]: found for found in select(candidates(rows, None)[0], settings, 1)}
    alone = select(candidates([row for row in rows if row["id"] == "p3"], None)[0], settings, 1)
    assert together["p3"] == alone[0]


def test_a_ceiling_on_cost_drops_the_best_of_all_and_cut_off_ones_never_count() -> None:
    rows = [row(0, 0, 9, cost=0.6), row(0, 1, 4, cost=0.5), row(0, 2, 10, cost=-1.0, finished=False), row(1, 0, 3, cost=0.51)]
    by_prompt, dropped = candidates(rows, 0.5)
    assert [[row["reward"] for row in rows] for rows in by_prompt.values()] == [[4.0]]
    assert dropped == {"unfinished": 1, "above_cost": 2}


def test_preferences_have_the_reward_difference_as_margin() -> None:
    (pair,) = preferences([row(0, 0, 4), row(0, 1, 9)], "first_round", 1)
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("word " * 8 + "word", "word " * 3 + "word")
    assert pair["margin"] == 5.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "beste"}, "expected one of best"),
        ({"keep": 0}, "keep of at least 1"),
        ({"strategy": "threshold"}, "needs a threshold"),
        ({"strategy": "fraction", "fraction": 1.5}, "at most 1"),
        ({"strategy": "statistical"}, "beta above 0"),
        ({"max_cost_score": 0.0}, "both cost and max_cost_score"),
        ({"cost": "harm"}, "both cost and max_cost_score"),
        ({"pairs": "first_round"}, "keep of 2 or more"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_entry(entry(**changes), "rs")


@pytest.fixture
def sampled(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_STAGE", "reject@rs")
    rows = [{key: value for key, value in one.items() if key not in ("reward", "cost")} for one in ROWS]
    write_jsonl("artifacts/sample/s/completions.jsonl", rows)
    (project / "artifacts/reward/none").mkdir(parents=True)
    long = {"kind": "pattern", "expression": r"word", "weight": 1.0, "least": 4}
    very_long = {"kind": "pattern", "expression": r"word", "weight": 1.0, "least": 9}
    write_json("artifacts/reward/long/reward.json", {"kind": "rules", "rules": {"long": long, "very": very_long}})
    write_json("artifacts/reward/harm/reward.json", {"kind": "rules", "rules": {"very": very_long}})
    return project


def stage(**changes: Any) -> RejectStage:
    return RejectStage(seed=1, threads=1, reject=entry(**({"reward": "long"} | changes)))


def test_the_stage_writes_demonstrations_and_figures(sampled: Path) -> None:
    run(stage(cost="harm", max_cost_score=0.5), "rs")
    rows = read_jsonl("artifacts/reject/rs/train.jsonl")
    assert [len(row["completion"][0]["content"].split()) for row in rows] == [4, 4, 4]  # nine words cost too much
    metrics = read_json("metrics/reject/rs.json")
    assert (metrics["above_cost"], metrics["kept"], metrics["rows"], metrics["prompts_without"]) == (3, 3, 3, 0)
    # of the rewards 0, 1, (0, 0, 1) and 2, three prompts
    assert metrics["reward_gain"] == pytest.approx(1.0 - (0 + 1 + 2) / 4 - 1 / 12)


def test_the_stage_writes_preferences_of_the_accepted(sampled: Path) -> None:
    run(stage(strategy="statistical", beta=5.0, keep=4, pairs="tournament"), "rs")
    rows = read_jsonl("artifacts/reject/rs/train.jsonl")
    assert {"prompt", "chosen", "rejected", "margin"} <= set(rows[0])
    assert all(row["margin"] > 0 for row in rows)
    assert 3 <= len(rows) <= 9


def test_a_selection_of_nothing_says_how_to_get_some(sampled: Path) -> None:
    with pytest.raises(ValueError, match="Lower threshold"):
        run(stage(strategy="threshold", threshold=99.0, keep=0), "rs")
