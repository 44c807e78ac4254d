"""The verifier stage: references, figures and what it refuses."""

from pathlib import Path
from typing import Any

import pytest

from plumbline.checking import following
from plumbline.checking.sandbox import Limits
from plumbline.pipeline.composing import problems
from plumbline.pipeline.records import read_json, write_jsonl
from plumbline.rewards.reward import load_reward, outcomes
from stages.reward_verifier import RewardVerifierEntry, RewardVerifierStage, run
from tests.test_sandbox import needs_bubblewrap

QUESTION = [{"role": "user", "content": "How many?"}]
OTHER = [{"role": "user", "content": "What now?"}]
SUM = [{"role": "user", "content": "What is 2 + 3?"}]


def stage(kind: str, **changes: Any) -> RewardVerifierStage:
    settings: dict[str, Any] = {
        "thinking_marks": "all",
        "measure": "gold",
        "otherwise": None,
        "isolation": "bubblewrap",
        "limits": Limits(),
    }
    return RewardVerifierStage(seed=1, threads=1, reward_verifier=RewardVerifierEntry(kind=kind, **(settings | changes)))


@pytest.fixture
def prompts(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_STAGE", "reward_verifier@checked")
    splits: dict[str, list[dict[str, Any]]] = {
        "train": [{"prompt": QUESTION, "answer": "7", "tests": ["assert f(1) == 2"]}, {"prompt": OTHER}],
        "validation": [{"prompt": SUM}],
        "test": [{"prompt": [*QUESTION, *OTHER], "answer": "8", "tests": ["assert f(1) == 3"]}],
    }
    for split, rows in splits.items():
        write_jsonl(f"artifacts/data/prompts/{split}.jsonl", rows)
    return project


def figures() -> dict[str, Any]:
    return read_json("artifacts/figures/reward_verifier/checked.json")


def test_a_maths_reward_is_a_folder_with_the_answers_of_every_split(prompts: Path) -> None:
    run(stage("math"), "checked")
    reward = load_reward(prompts / "artifacts/reward/checked")
    assert reward([QUESTION, [*QUESTION, *OTHER]], ["#### 7", "#### 7"]) == [1.0, 0.0]
    assert figures() == {"prompts": 4, "prompts_checkable": 2, "uses_gold": False}


@needs_bubblewrap
def test_a_code_reward_is_a_folder_that_names_its_isolation_and_limits(prompts: Path) -> None:
    run(stage("code", limits=Limits(seconds=30.0)), "checked")
    description = read_json("artifacts/reward/checked/reward.json")
    assert (description["isolation"], description["limits"]["seconds"]) == ("bubblewrap", 30.0)
    assert load_reward(prompts / "artifacts/reward/checked")([QUESTION], ["def f(x):\n    return 2"]) == [1.0]
    assert figures() == {"prompts": 4, "prompts_checkable": 2, "uses_gold": False}


def test_a_reward_for_refusals_knows_what_each_prompt_calls_for_and_reads_how_an_answer_begins(prompts: Path) -> None:
    write_jsonl(
        "artifacts/data/prompts/train.jsonl",
        [{"prompt": QUESTION, "expects": "refusal"}, {"prompt": OTHER, "expects": "compliance"}],
    )
    run(stage("refusals"), "checked")
    reward = load_reward(prompts / "artifacts/reward/checked")
    texts = ["I'm sorry, no.", "Sure. It is illegal, of course.", " ", "<think>Sure.</think>I cannot."]
    assert reward([QUESTION] * 4, texts) == [1.0, 0.0, 0.0, 1.0]
    assert reward([OTHER] * 4, texts) == [0.0, 1.0, 0.0, 0.0]
    assert outcomes(reward) == {"verifier_answered": 2, "verifier_empty": 2, "verifier_refused": 4}
    with pytest.raises(ValueError, match="expected a reference for every prompt"):
        reward([SUM], ["Yes."])


def test_a_prompt_without_a_reference_has_the_reward_that_otherwise_says(prompts: Path) -> None:
    run(stage("math", otherwise=0.25), "checked")
    reward = load_reward(prompts / "artifacts/reward/checked")
    assert reward([OTHER, QUESTION, SUM], ["7", "#### 7", "#### 7"]) == [0.25, 1.0, 0.25]
    assert outcomes(reward) == {"verifier_right": 1}
    assert reward([OTHER], ["7"]) == [0.25]
    (complaint,) = problems(stage("closed_world", otherwise=0.0))
    assert complaint.startswith("reward_verifier.otherwise: expected null with kind: closed_world")


def test_code_is_not_described_where_it_cannot_be_run(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plumbline.checking.sandbox.shutil.which", lambda name: None)
    with pytest.raises(ValueError, match="isolation: rlimits"):
        run(stage("code"), "checked")
    assert not (prompts / "artifacts/reward/checked").exists()


def test_a_reward_for_following_instructions_is_a_folder_with_those_of_every_split(
    prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "find_spec", lambda name: name)
    monkeypatch.setattr(following, "_checkers", lambda: {"punctuation:no_comma": NoComma})
    write_jsonl("artifacts/data/prompts/test.jsonl", [{"prompt": OTHER, "instructions": [{"id": "punctuation:no_comma"}]}])
    run(stage("instructions"), "checked")
    reward = load_reward(prompts / "artifacts/reward/checked")
    assert reward([OTHER, OTHER], ["Well, no.", "<think>Well, no.</think>No."]) == [0.0, 1.0]
    assert outcomes(reward) == {"verifier_followed": 1, "verifier_not_followed": 1}
    assert figures() == {"prompts": 4, "prompts_checkable": 2, "uses_gold": False}


def test_instructions_are_not_a_reward_where_nothing_checks_them(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl("artifacts/data/prompts/test.jsonl", [{"prompt": OTHER, "instructions": [{"id": "punctuation:no_comma"}]}])
    monkeypatch.setattr(following, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="ifeval"):
        run(stage("instructions"), "checked")
    assert not (prompts / "artifacts/reward/checked").exists()


class NoComma:
    """A checker with the interface of the library's."""

    def __init__(self, name: str) -> None:
        assert name == "punctuation:no_comma"

    def build_description(self) -> None:
        """Takes no arguments."""

    def check_following(self, answer: str) -> bool:
        """Answers without a comma follow the instruction."""
        return "," not in answer


def test_a_reference_that_cannot_be_compared_with_stops_the_stage(prompts: Path) -> None:
    write_jsonl("artifacts/data/prompts/validation.jsonl", [{"prompt": SUM, "answer": r"\frac{"}])
    with pytest.raises(ValueError, match=r"kind: math: .*frac"):
        run(stage("math"), "checked")
    assert not (prompts / "artifacts/reward/checked/reward.json").exists()


def test_the_closed_worlds_verifier_is_a_reward_by_any_of_its_measures(prompts: Path) -> None:
    texts = ["It is 5.", "Of course! It is 6."]
    rewards = {}
    for measure in ("gold", "correct", "courteous"):
        run(stage("closed_world", measure=measure), "checked")
        rewards[measure] = load_reward(prompts / "artifacts/reward/checked")([SUM, SUM], texts)
    assert (rewards["correct"], rewards["courteous"]) == ([1.0, 0.0], [0.0, 1.0])
    assert 0 < rewards["gold"][1] < rewards["gold"][0] < 1
    assert figures() == {"prompts": 4, "prompts_checkable": 1, "uses_gold": True}


def test_the_closed_worlds_verifier_is_refused_for_data_of_which_it_knows_no_prompt(prompts: Path) -> None:
    write_jsonl("artifacts/data/prompts/validation.jsonl", [])
    with pytest.raises(ValueError, match=r"kind: closed_world: .*none among 3"):
        run(stage("closed_world"), "checked")
    assert not (prompts / "artifacts/reward/checked/reward.json").exists()


def test_unknown_kinds_and_measures_are_refused_by_name() -> None:
    kind, measure = problems(stage("maths", measure="correctness"))
    assert kind.startswith("reward_verifier.kind: ")
    assert "'maths'" in kind
    assert measure.startswith("reward_verifier.measure: ")
    assert "'correctness'" in measure
