"""Rules as a reward: what each kind counts, in either language, and what is refused before any work."""

from pathlib import Path

import pytest

from plumbline.pipeline.composing import problems
from plumbline.pipeline.records import read_json
from plumbline.rewards.reward import held_out_accuracy, load_reward
from plumbline.rewards.rules import Rule, RulesReward, value
from stages.reward_rules import RewardRulesEntry, RewardRulesStage, run

ENGLISH = [{"role": "user", "content": "What is 2 + 3?"}]
KOREAN = [{"role": "user", "content": "2 더하기 3은 뭐예요?"}]

VALUES = [
    (Rule("length", least=2, most=4), "one two three", 1.0),
    (Rule("length", least=4), "one", 0.25),
    (Rule("length", most=2), "one two three four", 0.5),
    (Rule("length", least=2), "", 0.0),
    (Rule("length", most=5, unit="characters"), "다섯글자다", 1.0),
    (Rule("length", most=1, unit="sentences"), "One. Two! Three?", 1 / 3),
    (Rule("digits"), "It is 5.", 1.0),
    (Rule("digits", least=2), "It is 1,234.5", 0.0),  # one number, with a comma
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
    (Rule("forbidden", phrases={"en": ["ass"]}), "First class!", 1.0),  # a whole word, not part of one
    (Rule("forbidden", phrases={"en": ["ass"]}), "What an ASS.", 0.0),
    (Rule("forbidden", phrases={"en": ["OpenAI"]}), "저는 OpenAI가 만든 모델이에요.", 0.0),  # followed by a particle
    (Rule("forbidden", phrases={"ko": ["바보"]}), "이 바보야", 0.0),
    (Rule("forbidden", phrases={"ko": ["ㅋㅋ"]}), "ㅋㅋㅋ", 0.0),  # letters that are not syllables are Hangul too
    (Rule("pattern", expression=r"^####\s*-?\d+$"), "So it is\n#### 5", 1.0),
    (Rule("pattern", expression=r"^####\s*-?\d+$"), "#### five", 0.0),
    (Rule("pattern", expression="very", most=1), "very very", 0.0),
    (Rule("pattern", expression="very", most=1), "", 1.0),
    (Rule("pattern", expression="very", least=1, most=1), "", 0.0),
]


def test_a_rules_value_is_how_far_a_completion_keeps_it() -> None:
    values = [(rule, completion, value(rule, ENGLISH, completion)) for rule, completion, _ in VALUES]
    assert values == [(rule, completion, pytest.approx(expected)) for rule, completion, expected in VALUES]


def test_courtesy_is_that_of_the_prompts_language() -> None:
    assert value(Rule("courtesy"), KOREAN, "물론이죠! 5예요.") == 1.0
    assert value(Rule("courtesy"), KOREAN, "Of course! 5.") == 0.0
    assert value(Rule("courtesy"), ENGLISH, "물론이죠! 5예요.") == 0.0


def test_phrases_for_one_language_leave_the_built_in_ones_of_the_other() -> None:
    assert value(Rule("courtesy", phrases={"en": ["your grace"]}), KOREAN, "고마워요.") == 1.0


def test_the_reward_is_the_weighted_sum_and_explains_itself() -> None:
    reward = RulesReward({"short": Rule("length", weight=2.0, most=2), "digits": Rule("digits", weight=-0.5)})
    assert reward([ENGLISH, ENGLISH], ["five of them exactly", "5 !"]) == pytest.approx([2.0 * 0.5, 2.0 - 0.5])
    assert reward.explain(ENGLISH, "5 !") == {"short": 1.0, "digits": 1.0}


# ---- the stage ------------------------------------------------------------------------------------------------------


def stage(**rules: Rule) -> RewardRulesStage:
    return RewardRulesStage(seed=1, threads=1, reward_rules=RewardRulesEntry(thinking_marks="all", rules=rules))


MISTAKES = [
    (Rule("lenght", most=2), "kind: expected one of length"),
    (Rule("length"), "least, most: expected at least one"),
    (Rule("length", least=3, most=2), "least: expected at most `most`, found 3 above 2"),
    (Rule("length", most=2, unit="tokens"), "unit: expected one of words, characters, sentences"),
    (Rule("digits", most=2), "most: expected only least"),
    (Rule("forbidden"), "phrases: "),
    (Rule("forbidden", phrases={"en": [" "]}), "phrases: "),
    (Rule("courtesy", phrases={"fr": ["merci"]}), "phrases: expected lists by language (en, ko), found 'fr'"),
    (Rule("pattern"), "expression: "),
    (Rule("pattern", expression="("), "expression: expected a regular expression, found '('"),
    (Rule("length", least=-1), "least, most: expected 0 or above"),
]


def test_each_mistake_in_a_rule_is_one_problem_under_its_key() -> None:
    complaints = [problems(stage(mine=rule)) for rule, _ in MISTAKES]
    assert [len(of_one) for of_one in complaints] == [1] * len(MISTAKES)
    unlike = [
        (complaint, start)
        for (complaint,), (_, start) in zip(complaints, MISTAKES, strict=True)
        if not complaint.startswith(f"reward_rules.rules.mine.{start}")
    ]
    assert unlike == []


def test_a_reward_without_rules_is_refused_before_any_work(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "reward_rules@manners")
    with pytest.raises(ValueError, match=r"reward_rules\.rules: expected at least one"):
        run(stage(), "manners")
    assert not (project / "artifacts").exists()


def test_the_stage_writes_a_folder_that_loads_and_has_no_model_behind_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plumbline.methods.online.ppo.networks import reward_model_folder

    monkeypatch.setenv("DVC_STAGE", "reward_rules@manners")
    run(stage(short=Rule("length", weight=2.0, most=2), polite=Rule("courtesy")), "manners")
    folder = project / "artifacts/reward/manners"
    assert load_reward(folder)([ENGLISH, KOREAN], ["Of course!", "5예요"]) == [3.0, 2.0]
    assert read_json(folder / "reward.json")["kind"] == "rules"
    assert held_out_accuracy(folder) is None  # so no method's gate refuses it
    assert reward_model_folder(folder) is None
