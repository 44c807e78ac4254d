"""Claims about samples: whose completions stand beside which, and what a sample of demonstrations becomes."""

from pathlib import Path
from typing import Any

import pytest
from ppo_tiny import PROMPTS, tiny_policy, word_tokenizer

from stages import label, sample
from stages.judging.config import NoJudge
from stages.models.training import save_policy
from stages.pipeline.records import read_jsonl, write_jsonl
from stages.sample import SampleEntry, SampleStage


@pytest.fixture
def world(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two policies, rollout prompts and demonstrations, as under DVC."""
    monkeypatch.setenv("DVC_STAGE", "sample@one")
    for seed, name in enumerate(("sft", "spin1")):
        save_policy(tiny_policy(seed), word_tokenizer(), project / "artifacts/policy" / name)
    rows: list[dict[str, Any]] = [{"id": f"p{number}", "prompt": prompt} for number, prompt in enumerate(PROMPTS)]
    write_jsonl(project / "artifacts/data/prompts/train.jsonl", rows)
    demonstrations = [
        {**row, "id": f"s{number}", "completion": [{"role": "assistant", "content": "a b"}]} for number, row in enumerate(rows)
    ]
    write_jsonl(project / "artifacts/data/sft/train.jsonl", demonstrations)
    (project / "artifacts/sample/none").mkdir(parents=True)
    (project / "data/annotations").mkdir(parents=True)
    return project


def draw(entry: str, **changes: Any) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {"policy": "sft", "extends": "none", "of": "rollout", "n": 2, "prompts": 0, "temperature": 1.0}
    config = SampleEntry(**{**settings, "max_new_tokens": 6, "batch_size": 8, **changes})
    sample.run(SampleStage(seed=3, threads=1, sample=config), entry)
    return read_jsonl(f"artifacts/sample/{entry}/completions.jsonl")


def make_pairs(entry: str, weak: str) -> list[dict[str, Any]]:
    settings = label.LabelEntry(
        sample=entry, judge="none", way="rating", pairs="strong_vs_weak", min_margin=1.0, keep_ties=False, pairs_per_prompt=0, opponents=0, prompts=0,
        strong="demonstrations", weak=weak, constitution="none", known="none", validation_fraction=0.3,
    )  # fmt: skip
    label.run(label.LabelStage(seed=3, threads=1, label=settings, judge=NoJudge()), entry)
    return [row for split in ("train", "validation") for row in read_jsonl(f"artifacts/label/{entry}/{split}.jsonl")]


def test_spins_pairs_are_the_demonstration_against_the_policys_own_answer(world: Path) -> None:
    rows = draw("spin1", of="demonstrations", n=1)
    assert [(row["id"], row["policy"], row["index"]) for row in rows[:2]] == [("s0", "demonstrations", 0), ("s0", "sft", 1)]
    own = {row["id"]: row["completion"] for row in rows if row["policy"] == "sft"}
    pairs = make_pairs("spin1", weak="sft")
    assert {row["id"] for row in pairs} == {name for name, text in own.items() if text[0]["content"] != "a b"}
    assert all(row["chosen"][0]["content"] == "a b" and row["rejected"] == own[row["id"]] for row in pairs)
    assert len(pairs) > len(PROMPTS) / 2


def test_the_next_iteration_answers_anew_and_does_not_double_the_demonstrations(world: Path) -> None:
    draw("spin1", of="demonstrations", n=1)
    rows = draw("spin2", of="demonstrations", n=1, policy="spin1", extends="spin1")
    assert [row["policy"] for row in rows[:3]] == ["demonstrations", "sft", "spin1"]
    assert len(rows) == 3 * len(PROMPTS)
    assert {row["policy_rejected"] for row in make_pairs("spin2", weak="spin1")} == {"spin1"}


def test_demonstrations_stay_out_of_a_sample_of_the_rollout_prompts(world: Path) -> None:
    rows = draw("one", prompts=3)
    assert [row["id"] for row in rows] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert {row["policy"] for row in rows} == {"sft"}


def test_an_unknown_source_of_prompts_is_refused(world: Path) -> None:
    with pytest.raises(ValueError, match="expected rollout or demonstrations, found 'sft'"):
        draw("one", of="sft")
