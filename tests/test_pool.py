"""Pools: two samples in one, prompt by prompt."""

from pathlib import Path
from typing import Any

import pytest

from plumbline.pipeline.composing import problems
from plumbline.pipeline.shard_files import read_shards, read_table, shard_name, write_shard, write_table
from plumbline.rows import DEMONSTRATIONS, Row, assistant, text_of
from stages.pool import PoolEntry, PoolStage, run


def row(prompt: str, index: int, text: str, policy: str) -> Row:
    question = [{"role": "user", "content": prompt}]
    return {"id": prompt, "prompt": question, "index": index, "completion": assistant(text), "finished": True, "policy": policy}


def stage(first: str = "one", second: str = "two") -> PoolStage:
    return PoolStage(seed=1, threads=1, pool=PoolEntry(first=first, second=second))


@pytest.fixture
def pooled(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The pool of two samples whose prompts come in different orders, and of which `p` has a demonstration in both."""
    monkeypatch.setenv("DVC_STAGE", "pool@both")
    write_table(Path("artifacts/sample/one"), [
        row("p", 0, "p, a first", "a"), row("p", 1, "p, a second", "a"), row("p", 2, "p, by hand", DEMONSTRATIONS), row("q", 0, "q, a", "a"),
    ], shard_prompts=1)  # fmt: skip
    write_table(Path("artifacts/sample/two"), [
        row("r", 0, "r, b", "b"), row("q", 0, "q, b", "b"), row("q", 1, "q, by hand", DEMONSTRATIONS),
        row("p", 0, "p, b", "b"), row("p", 1, "p, by hand", DEMONSTRATIONS),
    ], shard_prompts=2)  # fmt: skip
    run(stage(), "both")
    return read_table(Path("artifacts/sample/both"))


def test_a_prompts_completions_are_the_first_samples_then_the_seconds_numbered_anew(pooled: list[Row]) -> None:
    assert [(row["id"], row["index"], text_of(row["completion"])) for row in pooled] == [
        ("p", 0, "p, a first"), ("p", 1, "p, a second"), ("p", 2, "p, by hand"), ("p", 3, "p, b"),
        ("q", 0, "q, a"), ("q", 1, "q, b"), ("q", 2, "q, by hand"),
        ("r", 0, "r, b"),
    ]  # fmt: skip


def test_shards_have_as_many_prompts_as_the_first_samples(pooled: list[Row]) -> None:
    assert [{row["id"] for row in rows} for rows in read_shards(Path("artifacts/sample/both"))] == [{"p"}, {"q"}, {"r"}]


def test_shards_that_a_filter_left_small_do_not_make_the_pools_small(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "pool@both")
    for number, prompts in enumerate(["", "p", "qrs"]):
        write_shard(Path("artifacts/sample/one") / shard_name(number), [row(prompt, 0, "a", "a") for prompt in prompts])
    write_table(Path("artifacts/sample/two"), [row(prompt, 0, "b", "b") for prompt in "spqr"], shard_prompts=2)
    run(stage(), "both")
    assert [{row["id"] for row in rows} for rows in read_shards(Path("artifacts/sample/both"))] == [{"p", "q", "r"}, {"s"}]


def test_rows_keep_their_other_columns(pooled: list[Row]) -> None:
    assert [row["policy"] for row in pooled] == ["a", "a", DEMONSTRATIONS, "b", "a", "b", DEMONSTRATIONS, "b"]
    assert pooled[3] == row("p", 3, "p, b", "b")


def test_a_sample_is_not_pooled_with_itself() -> None:
    (complaint,) = problems(stage(second="one"))
    assert complaint.startswith("pool.second: ")
