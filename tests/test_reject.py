"""Selection by a reward: best of n, a threshold, RSO as a distribution, and pairs among the accepted."""

import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline.pipeline.engine import Engine
from plumbline.pipeline.records import read_json, read_jsonl, write_json
from plumbline.pipeline.shard_files import write_table
from plumbline.rewards.rejection import acceptance_probabilities, best, matches, reject_statistically, top_fraction_threshold
from plumbline.rows import Row, assistant
from stages.reject import RejectEntry, RejectStage, candidates, preferences, run, select, threshold_of
from tests.interrupting import contents, require_resuming, require_surviving_a_kill

KOLMOGOROV = 1.95  # sqrt(n) times the largest distance of two distribution functions exceeds this once in a thousand samples


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
    accepted = [drawn[index] for index in reject_statistically([rewards[y] for y in drawn], beta, 0, rng)]
    weights = [share * math.exp(reward / beta) for share, reward in zip(q, rewards, strict=True)]
    counts, n = Counter(accepted), len(accepted)

    def chi_square(target: list[float]) -> float:
        total = sum(target)
        return sum((counts[y] - n * w / total) ** 2 / (n * w / total) for y, w in enumerate(target))

    assert chi_square(weights) < 16.3  # exceeded by one sample in a thousand
    assert chi_square([share * math.exp(reward / 0.45) for share, reward in zip(q, rewards, strict=True)]) > 16.3
    assert n / 30_000 == pytest.approx(sum(weights) / math.exp(1.0 / beta), abs=0.012)


def test_a_ratio_above_its_bound_or_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most log M = 0\.5, found 1"):
        acceptance_probabilities([1.0], 0.5)
    with pytest.raises(ValueError, match="finite"):
        acceptance_probabilities([float("nan")])


def test_beta_goes_from_the_best_alone_to_everything() -> None:
    rewards = [0.1, 0.9, 0.5, 0.7]
    assert reject_statistically(rewards, 1e-6, 0, random.Random(0)) == [1]
    assert reject_statistically(rewards, 1e6, 0, random.Random(0)) == [0, 1, 2, 3]
    assert reject_statistically(rewards, 1e-6, 3, random.Random(0)) == [1, 3, 2]  # each pass has its own r_max
    assert sorted(reject_statistically(rewards, 0.5, 9, random.Random(0))) == [0, 1, 2, 3]
    assert reject_statistically([], 0.5, 2, random.Random(0)) == []


def test_best_takes_no_text_twice_and_the_first_of_equals() -> None:
    rewards, texts = [1.0, 3.0, 3.0, 2.0, 3.0], ["a", "b", "c", "d", "b"]
    assert best(rewards, texts, 1) == [1]
    assert best(rewards, texts, 3) == [1, 2, 3]
    assert best(rewards, texts, 0) == [1, 2, 3, 0]


def test_a_fraction_is_of_the_whole_batch() -> None:
    assert top_fraction_threshold(lambda: [np.array([1.0, 5.0, 3.0]), np.array([4.0, 2.0])], 0.4) == 4
    assert top_fraction_threshold(lambda: [np.array([1.0, 5.0])], 0.01) == 5
    assert top_fraction_threshold(lambda: [np.array([1.0, 5.0])], 1.0) == 1


def test_a_fractions_threshold_is_the_one_that_sorting_gives() -> None:
    generator = np.random.default_rng(3)
    spread = generator.normal(size=3000) * 10.0 ** generator.integers(-300, 300, 3000)
    parts = [spread[:1000], np.round(generator.normal(size=2000)), spread[1000:], np.array([0.0, -0.0]), np.array([])]
    ordered = sorted(np.concatenate(parts), reverse=True)
    for count in (1, 2, 500, 1500, 2600, 2700, 4000, 5001, 5002):
        assert top_fraction_threshold(lambda: parts, count / 5002) == ordered[count - 1]


def test_a_first_round_pairs_all_and_a_tournament_until_one_is_left() -> None:
    rewards, texts = [float(i) for i in range(8)], [str(i) for i in range(8)]
    first = matches(range(8), rewards, texts, "first_round", 0.0, random.Random(0))
    assert sorted(index for match in first for index in match) == list(range(8))
    whole = matches(range(8), rewards, texts, "tournament", 0.0, random.Random(0))
    assert whole[:4] == first
    assert len(whole) == 7
    assert whole[-1].chosen == 7
    assert all(rewards[match.chosen] > rewards[match.rejected] for match in whole)
    assert {match.rejected for match in whole} == set(range(7))  # everyone but the winner loses once


def test_equal_rewards_and_equal_texts_make_no_pair() -> None:
    assert matches([0, 1], [1.0, 1.0], ["a", "b"], "tournament", 0.0, random.Random(0)) == []
    assert matches([0, 1], [1.0, 2.0], ["a", "a"], "tournament", 0.0, random.Random(0)) == []


def test_best_vs_worst_makes_one_pair_of_a_prompt_and_none_of_equals() -> None:
    rewards, texts = [2.0, 1.0, 3.0, 1.0, 3.0], list("abcde")
    assert matches(range(5), rewards, texts, "best_vs_worst", 0.0, random.Random(0)) == [(2, 1)]  # of equals the first
    assert matches([2, 4], rewards, texts, "best_vs_worst", 0.0, random.Random(0)) == []
    assert matches([2], rewards, texts, "best_vs_worst", 0.0, random.Random(0)) == []


@pytest.mark.parametrize("pairs", ["best_vs_worst", "first_round", "tournament"])
def test_rewards_that_differ_by_less_than_the_margin_make_no_preference(pairs: str) -> None:
    rewards, texts = [0.0, 0.5, 1.5, 3.5], list("abcd")
    made = matches(range(4), rewards, texts, pairs, 1.0, random.Random(0))
    assert made
    assert all(rewards[match.chosen] - rewards[match.rejected] >= 1.0 for match in made)
    whole = matches(range(4), rewards, texts, pairs, 0.0, random.Random(0))
    assert made == [match for match in whole if rewards[match.chosen] - rewards[match.rejected] >= 1.0]
    assert matches(range(4), rewards, texts, pairs, 3.6, random.Random(0)) == []


# ---- the stage ------------------------------------------------------------------------------------------------------


def row(prompt: int, index: int, words: int, **changes: Any) -> Row:
    return {
        "id": f"p{prompt}", "prompt": [{"role": "user", "content": f"question {prompt}"}], "completion": assistant(text(words)),
        "index": index, "policy": "sft", "finished": True, "reward": float(words),
    } | changes  # fmt: skip


def text(words: int) -> str:
    return " ".join(["word"] * words)


def entry(**changes: Any) -> RejectEntry:
    settings: dict[str, Any] = {
        "sample": "s", "reward": "long", "strategy": "best", "keep": 1, "threshold": None, "fraction": None, "beta": None,
        "pairs": "none", "min_margin": 0.0, "validation_fraction": 0.0,
    }  # fmt: skip
    return RejectEntry(**(settings | changes))


ROWS = [row(prompt, index, words) for prompt in range(3) for index, words in enumerate([1, 4, 2 + prompt, 9])]


def kept(rows: list[Row], **changes: Any) -> list[list[float]]:
    settings = entry(**changes)
    threshold = threshold_of(settings, lambda: [np.array([row["reward"] for row in rows])])
    return [[row["reward"] for row in rows] for rows in select(candidates(rows), settings, threshold, 1)]


def test_each_strategy_keeps_what_it_says() -> None:
    assert kept(ROWS) == [[9], [9], [9]]
    assert kept(ROWS, strategy="threshold", threshold=4, keep=0) == [[9, 4], [9, 4], [9, 4]]
    assert kept(ROWS, strategy="threshold", threshold=10, keep=0) == []
    assert kept(ROWS, strategy="fraction", fraction=0.25, keep=0) == [[9], [9], [9]]
    assert kept(ROWS, strategy="statistical", beta=1e-6, keep=2) == [[9, 4], [9, 4], [9, 4]]


def test_what_is_drawn_for_a_prompt_does_not_depend_on_the_others() -> None:
    rows = [row(prompt, index, index % 5) for prompt in range(5) for index in range(8)]
    settings = entry(strategy="statistical", beta=1.0, keep=0)
    together = {selected[0]["id"]: selected for selected in select(candidates(rows), settings, None, 1)}
    alone = select(candidates([row for row in rows if row["id"] == "p3"]), settings, None, 1)
    assert together["p3"] == alone[0]


def test_a_completion_that_was_cut_off_is_never_kept() -> None:
    assert kept([row(0, 0, 4), row(0, 1, 10, finished=False), row(1, 0, 3, finished=False)]) == [[4.0]]


def test_preferences_have_the_reward_difference_as_margin() -> None:
    (pair,) = preferences([row(0, 0, 4), row(0, 1, 9)], "first_round", 0.0, 1)
    assert (pair["chosen"], pair["rejected"]) == (assistant(text(9)), assistant(text(4)))
    assert (pair["margin"], pair["score_chosen"], pair["score_rejected"]) == (5.0, 9.0, 4.0)


def test_values_that_do_not_fit_together_are_problems_under_their_key() -> None:
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"strategy": "beste"}, "strategy: expected one of best"),
        ({"pairs": "all"}, "pairs: expected one of none"),
        ({"keep": 0}, "keep: expected at least 1"),
        ({"keep": -1, "strategy": "statistical", "beta": 1.0}, "keep: expected 0"),
        ({"strategy": "threshold"}, "threshold: "),
        ({"strategy": "fraction", "fraction": 1.5}, "fraction: expected above 0 and at most 1"),
        ({"strategy": "statistical"}, "beta: expected above 0"),
        ({"pairs": "first_round"}, "keep: expected 2 or more"),
    ]
    unlike = [
        (changes, entry(**changes).problems())
        for changes, start in mistakes
        if not entry(**changes).problems()[0].startswith(start)
    ]
    assert unlike == []
    assert entry().problems() == []


@pytest.fixture
def sampled(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_STAGE", "reject@rs")
    write_table(Path("artifacts/sample/s"), [{key: one[key] for key in one if key != "reward"} for one in ROWS], 2)
    rules = {name: {"kind": "pattern", "expression": "word", "least": least} for name, least in (("long", 4), ("longer", 9))}
    write_json("artifacts/reward/long/reward.json", {"kind": "rules", "rules": rules})
    return project


def stage(**changes: Any) -> RejectStage:
    return RejectStage(seed=1, threads=1, reject=entry(**changes))


def test_the_stage_writes_demonstrations_and_figures(sampled: Path) -> None:
    run(stage(), "rs")
    assert [row["completion"] for row in read_jsonl("artifacts/reject/rs/train.jsonl")] == [assistant(text(9))] * 3
    figures = read_json("artifacts/figures/reject/rs.json")
    assert {key: figures[key] for key in ("completions", "unfinished", "kept", "prompts_without", "rows")} == {
        "completions": 12, "unfinished": 0, "kept": 3, "prompts_without": 0, "rows": 3,
    }  # fmt: skip
    # of each prompt's four rewards 0, 1, 0 and 2, and 1 instead of the second 0 in the last prompt, 2 is kept
    assert figures["reward_kept"] == 2.0
    assert figures["reward_gain"] == pytest.approx(2.0 - 10 / 12)


def test_the_stage_writes_preferences_of_the_accepted(sampled: Path) -> None:
    run(stage(strategy="statistical", beta=5.0, keep=4, pairs="tournament"), "rs")
    rows = read_jsonl("artifacts/reject/rs/train.jsonl")
    assert {"prompt", "chosen", "rejected", "margin"} <= set(rows[0])
    assert all(row["margin"] > 0 for row in rows)
    assert 3 <= len(rows) <= 9  # each prompt's winner beats someone; ties make no pair


def test_a_selection_of_nothing_says_how_to_get_some(sampled: Path) -> None:
    with pytest.raises(ValueError, match="Lower threshold"):
        run(stage(strategy="threshold", threshold=99.0, keep=0), "rs")


@pytest.mark.parametrize("done", [1, 2, 3])
def test_an_interrupted_run_goes_on_from_its_shards(sampled: Path, monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    """Two shards, which are first scored and then selected from."""
    outputs = ["artifacts/reject/rs", "artifacts/figures/reject/rs.json"]
    settings = stage(strategy="fraction", fraction=0.5, keep=0)
    require_resuming(monkeypatch, lambda: run(settings, "rs"), outputs, done)


def test_a_run_that_was_killed_loses_one_shard_and_ends_in_the_same_bytes(sampled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it selects from the second of two scored shards."""
    outputs = ["artifacts/reject/rs", "artifacts/figures/reject/rs.json"]
    code = 'from test_reject import run, stage; run(stage(strategy="fraction", fraction=0.5, keep=0), "rs")'
    settings = stage(strategy="fraction", fraction=0.5, keep=0)
    require_surviving_a_kill(monkeypatch, lambda: run(settings, "rs"), code, outputs, done=3)


@pytest.mark.slow
def test_workers_score_as_the_stage_itself(sampled: Path) -> None:
    outputs = ["artifacts/reject/rs", "artifacts/figures/reject/rs.json"]
    settings = stage(strategy="fraction", fraction=0.5, keep=0)
    run(settings, "rs")
    here = contents(outputs)
    run(replace(settings, engine=Engine(shards="processes", workers=2)), "rs")
    assert contents(outputs) == here


def test_a_fraction_is_of_all_shards(sampled: Path) -> None:
    """Of the rewards 0, 1, 0, 2; 0, 1, 0, 2 | 0, 1, 1, 2 the best quarter is the three 2."""
    run(stage(strategy="fraction", fraction=0.25, keep=0), "rs")
    figures = read_json("artifacts/figures/reject/rs.json")
    assert (figures["kept"], figures["reward_kept"]) == (3, 2.0)
