"""Rules as a reward: what each kind counts, in either language, and what is refused before any work."""

from pathlib import Path
from typing import Any

import pytest

from stages.judging.config import NoJudge
from stages.models.rewards import load_reward
from stages.pipeline.records import read_json, write_json
from stages.reward import RewardEntry, RewardStage, check_entry, run
from stages.rewards.rules import Rule, RulesReward, complaints, value

ENGLISH = [{"role": "user", "content": "What is 2 + 3?"}]
KOREAN = [{"role": "user", "content": "2 더하기 3은 뭐예요?"}]


@pytest.mark.parametrize(
    ("rule", "completion", "expected"),
    [
        (Rule("length", least=2, most=4), "one two three", 1.0),
        (Rule("length", least=4), "one", 0.25),
        (Rule("length", most=2), "one two three four", 0.5),
        (Rule("length", least=2), "", 0.0),
        (Rule("length", most=5, unit="characters"), "다섯글자다", 1.0),
        (Rule("length", most=1, unit="sentences"), "One. Two! Three?", 1 / 3),
        (Rule("digits"), "It is 5.", 1.0),
        (Rule("digits", least=2), "It is 1,234.5", 0.0),  # one number, whatever its commas
        (Rule("digits"), "It is five.", 0.0),
        (Rule("examples"), "Fruit, for example pears.", 1.0),
        (Rule("examples"), "Fruit, in general.", 0.0),
        (Rule("structure", least=2), "Steps:\n1. Boil\n2. Stir", 1.0),
        (Rule("structure", least=2), "Steps: 1. boil 2. stir", 0.0),
        (Rule("structure"), "# Title", 1.0),
        (Rule("structure"), "a | b", 0.0),
        (Rule("structure"), "```python\nx\n```", 1.0),
        (Rule("courtesy"), "Of course! It is 5.", 1.0),
        (Rule("courtesy", least=2), "Of course! It is 5.", 0.0),
        (Rule("courtesy"), "It is 5.", 0.0),
        (Rule("courtesy", phrases={"en": ["your grace"]}), "Of course!", 0.0),
        (Rule("courtesy", phrases={"en": ["your grace"]}), "It is 5, Your Grace.", 1.0),
        (Rule("forbidden", phrases={"en": ["ass"]}), "First class!", 1.0),  # a word, not a part of one
        (Rule("forbidden", phrases={"en": ["ass"]}), "What an ASS.", 0.0),
        (Rule("forbidden", phrases={"en": ["OpenAI"]}), "저는 OpenAI가 만든 모델이에요.", 0.0),  # with a particle
        (Rule("forbidden", phrases={"ko": ["바보"]}), "이 바보야", 0.0),
        (Rule("pattern", expression=r"^####\s*-?\d+$"), "So it is\n#### 5", 1.0),
        (Rule("pattern", expression=r"^####\s*-?\d+$"), "#### five", 0.0),
        (Rule("pattern", expression="very", most=1), "very very", 0.0),
        (Rule("pattern", expression="very", most=1), "", 1.0),
        (Rule("pattern", expression="very", least=1, most=1), "", 0.0),
    ],
)
def test_a_rule_is_worth_what_is_kept_to(rule: Rule, completion: str, expected: float) -> None:
    assert value(rule, ENGLISH, completion) == pytest.approx(expected)


@pytest.mark.parametrize(("prompt", "completion", "expected"), [
    (KOREAN, "물론이죠! 5예요.", 1.0),
    (KOREAN, "Of course! 5.", 0.0),
    (ENGLISH, "물론이죠! 5예요.", 0.0),
])  # fmt: skip
def test_courtesy_is_that_of_the_language_asked_in(prompt: Any, completion: str, expected: float) -> None:
    assert value(Rule("courtesy"), prompt, completion) == expected


def test_phrases_of_one_language_leave_the_other_as_built_in() -> None:
    assert value(Rule("courtesy", phrases={"en": ["your grace"]}), KOREAN, "고마워요.") == 1.0


def test_the_reward_is_the_weighted_sum_and_explains_itself() -> None:
    reward = RulesReward({"short": Rule("length", weight=2.0, most=2), "digits": Rule("digits", weight=-0.5)})
    assert reward([ENGLISH, ENGLISH], ["five of them exactly", "5 !"]) == pytest.approx([2.0 * 0.5, 2.0 - 0.5])
    assert reward.explain(ENGLISH, "5 !") == {"short": 1.0, "digits": 1.0}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule("lenght", most=2), "expected one of length"),
        (Rule("length"), "expected least, most or both"),
        (Rule("length", least=3, most=2), "3 > 2"),
        (Rule("length", most=2, unit="tokens"), "words, characters, sentences"),
        (Rule("digits", most=2), "most: a rule of kind digits takes least"),
        (Rule("forbidden"), "must not be said"),
        (Rule("forbidden", phrases={"en": [" "]}), "an empty one"),
        (Rule("courtesy", phrases={"fr": ["merci"]}), "'fr'"),
        (Rule("pattern"), "expected a regular expression"),
        (Rule("pattern", expression="("), "no regular expression"),
        (Rule("length", least=-1), "0 or above"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(rule: Rule, message: str) -> None:
    (found,) = complaints({"mine": rule})
    assert found.startswith("mine: ")
    assert message in found


def stage(**changes: Any) -> RewardStage:
    settings = {"kind": "rules", "init": "none", "signal": "none", "second": "none", "judge": "none"} | changes
    return RewardStage(seed=1, threads=1, reward=RewardEntry(**settings))


def test_the_stage_writes_a_folder_that_loads(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "reward@manners")
    for place in ("artifacts/none", "artifacts/policy/none", "artifacts/reward/none"):
        (project / place).mkdir(parents=True)
    run(stage(rules={"short": Rule("length", weight=2.0, most=2), "polite": Rule("courtesy")}), "manners")
    reward = load_reward(project / "artifacts/reward/manners")
    assert reward([ENGLISH, KOREAN], ["Of course!", "5예요"]) == [3.0, 2.0]
    assert read_json("metrics/reward/manners.json") == {"accuracy": None, "n": 0}


def test_no_rules_and_unknown_kinds_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"reward\.mine\.rules:\n- expected at least one rule"):
        check_entry(stage().reward, NoJudge(), "mine")
    with pytest.raises(ValueError, match=r"reward\.mine\.kind: expected one of model"):
        check_entry(stage(kind="rule").reward, NoJudge(), "mine")


def test_ppo_takes_rules_as_a_reward_without_a_model_behind_it(tmp_path: Path) -> None:
    from stages.methods.ppo.models import reward_model_folder
    from stages.models.rewards import held_out_accuracy

    write_json(tmp_path / "reward.json", {"kind": "rules", "rules": {"digits": {"kind": "digits", "weight": 1.0}}})
    assert held_out_accuracy(tmp_path) is None
    assert reward_model_folder(tmp_path) is None
    assert load_reward(tmp_path)([ENGLISH], ["5"]) == [1.0]
