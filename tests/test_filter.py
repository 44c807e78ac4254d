"""Filters: the rows of a sample whose reward is within bounds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plumbline.pipeline.composing import problems
from plumbline.pipeline.engine import Engine
from plumbline.pipeline.records import read_json, write_json
from plumbline.pipeline.shard_files import read_table, write_table
from plumbline.rows import Row, assistant, text_of
from stages.filter import FilterEntry, FilterStage, run
from tests.interrupting import contents, require_resuming

ROWS: list[Row] = [
    {
        "id": prompt,
        "prompt": [{"role": "user", "content": prompt}],
        "index": index,
        "completion": assistant(" ".join(["word"] * words)),
    }
    for prompt, lengths in (("p", (1, 2, 3)), ("q", (4,)))
    for index, words in enumerate(lengths)
]


def stage(least: float | None = None, most: float | None = None) -> FilterStage:
    return FilterStage(seed=1, threads=1, filter=FilterEntry(sample="s", reward="length", least=least, most=most))


@pytest.fixture
def sampled(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sample whose reward is a quarter for each word."""
    monkeypatch.setenv("DVC_STAGE", "filter@some")
    write_table(Path("artifacts/sample/s"), ROWS, 1)
    rules = {"long": {"kind": "length", "weight": 1.0, "least": 4}}
    write_json("artifacts/reward/length/reward.json", {"kind": "rules", "rules": rules})
    return project


def lengths(**bounds: Any) -> list[int]:
    run(stage(**bounds), "some")
    return [len(text_of(row["completion"]).split()) for row in read_table(Path("artifacts/sample/some"))]


@pytest.mark.slow
def test_workers_filter_as_the_stage_itself(sampled: Path) -> None:
    outputs = ["artifacts/sample/some", "artifacts/figures/filter/some.json"]
    run(stage(least=0.5), "some")
    here = contents(outputs)
    run(replace(stage(least=0.5), engine=Engine(shards="processes", workers=2)), "some")
    assert contents(outputs) == here


def test_both_bounds_are_inclusive_and_either_may_be_left_out(sampled: Path) -> None:
    assert lengths(least=0.5, most=0.75) == [2, 3]
    assert lengths(least=0.75) == [3, 4]
    assert lengths(most=0.25) == [1]


def test_kept_rows_are_unchanged_and_the_figures_count_them(sampled: Path) -> None:
    assert lengths(most=0.5) == [1, 2]
    assert read_table(Path("artifacts/sample/some")) == ROWS[:2]
    assert read_json("artifacts/figures/filter/some.json") == {
        "completions": 4, "kept": 2, "kept_fraction": 0.5, "prompts_without": 1,
    }  # fmt: skip


def test_a_sample_of_which_nothing_is_left_is_an_error_that_says_where_the_rewards_lie(sampled: Path) -> None:
    with pytest.raises(ValueError, match=r"none among 4, .* between 0\.25 and 1\. Change `least` or `most`"):
        run(stage(least=1.5), "some")
    assert not (sampled / "artifacts/sample/some").exists()


def test_bounds_that_drop_nothing_or_everything_are_problems() -> None:
    assert [complaint.partition(":")[0] for complaint in problems(stage())] == ["filter.least, most"]
    assert [complaint.partition(":")[0] for complaint in problems(stage(least=1.0, most=0.5))] == ["filter.least"]
    assert problems(stage(least=0.5, most=0.5)) == []


def test_an_interrupted_run_goes_on_from_its_shards(sampled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = ["artifacts/sample/some", "artifacts/figures/filter/some.json"]
    require_resuming(monkeypatch, lambda: run(stage(least=0.5), "some"), outputs, done=1)
