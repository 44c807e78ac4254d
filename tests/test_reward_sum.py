"""Sums of rewards: weights, digests of the parts, and chains."""

from pathlib import Path

import pytest

from plumbline.pipeline.composing import problems
from plumbline.pipeline.digests import content_digest
from plumbline.pipeline.records import read_json, write_json
from plumbline.rewards.reward import load_reward
from stages.reward_sum import RewardSumEntry, RewardSumStage, run


def stage(first: str, second: str) -> RewardSumStage:
    entry = RewardSumEntry(first=first, second=second, weight=2.0, second_weight=-0.5)
    return RewardSumStage(seed=1, threads=1, reward_sum=entry)


@pytest.fixture
def rewards(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three rewards: a point for each of the words a, b and c."""
    monkeypatch.setenv("DVC_STAGE", "reward_sum@sum")
    for name, word in (("one", "a"), ("two", "b"), ("three", "c")):
        rules = {"kind": "rules", "rules": {"word": {"kind": "pattern", "expression": word, "weight": 1.0}}}
        write_json(f"artifacts/reward/{name}/reward.json", rules)
    return project / "artifacts/reward"


def test_a_sum_adds_its_parts_times_their_weights_and_may_be_a_part_itself(rewards: Path) -> None:
    run(stage("one", "two"), "sum")
    run(stage("sum", "three"), "chain")
    prompts = [[{"role": "user", "content": "q"}]] * 3
    assert load_reward(rewards / "sum")(prompts, ["a", "b", "a b"]) == [2.0, -0.5, 1.5]
    assert load_reward(rewards / "chain")(prompts, ["a", "b", "c"]) == [4.0, -1.0, -0.5]


def test_a_sum_names_its_parts_with_their_digests_so_a_change_of_a_part_changes_it(rewards: Path) -> None:
    run(stage("one", "two"), "sum")
    before = read_json(rewards / "sum/reward.json")["parts"]
    assert [(part["reward"], part["weight"]) for part in before] == [("one", 2.0), ("two", -0.5)]
    assert [part["digest"] for part in before] == [content_digest(rewards / name, "md5") for name in ("one", "two")]
    description = read_json(rewards / "two/reward.json")
    write_json(rewards / "two/reward.json", description | {"code": "another"})
    run(stage("one", "two"), "sum")
    after = read_json(rewards / "sum/reward.json")["parts"]
    assert [old["digest"] == new["digest"] for old, new in zip(before, after, strict=True)] == [True, False]


def test_a_part_that_is_not_a_reward_is_refused(rewards: Path) -> None:
    (rewards / "none").mkdir()
    with pytest.raises(ValueError, match="expected a reward at artifacts/reward/none"):
        run(stage("one", "none"), "sum")
    assert not (rewards / "sum").exists()


def test_a_reward_is_not_added_to_itself() -> None:
    (complaint,) = problems(stage("one", "one"))
    assert complaint.startswith("reward_sum.second: ")
