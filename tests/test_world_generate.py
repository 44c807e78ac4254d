"""The generated data sets: disjoint by intent, bilingual, as imperfect as configured, and reproducible."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from plumbline.rows import LANGUAGES, Row, last_turn, text_of
from plumbline.world.families.knowledge import almanac, state
from plumbline.world.generate import FAMILIES, ClosedWorldConfig, World, generate, split_intents
from plumbline.world.verify import GENERAL_FAMILIES, Verdict, understand, verify

CONFIG = Path(__file__).parents[1] / "conf" / "data" / "closed_world.yaml"


def load_config(**changes: float) -> ClosedWorldConfig:
    loaded = OmegaConf.merge(OmegaConf.structured(ClosedWorldConfig), OmegaConf.load(CONFIG), changes)
    config = OmegaConf.to_object(loaded)
    assert isinstance(config, ClosedWorldConfig)
    return config


@pytest.fixture(scope="module")
def world() -> World:
    config = load_config()
    config.pretrain.documents = 24000  # the prompts at full size, and enough text to look at
    config.pretrain.validation_documents = 100
    return generate(config, seed=17)


def intents(*splits: list[Row]) -> set[str]:
    return {row["intent"] for rows in splits for row in rows if "intent" in row}


def verdicts(rows: list[Row], *families: str) -> list[Verdict]:
    return [verify(row["prompt"], text_of(row["completion"])) for row in rows if row["family"] in (families or FAMILIES)]


def fraction(judged: list[Verdict], attribute: str) -> float:
    return float(sum(getattr(verdict, attribute) for verdict in judged) / len(judged))


def test_no_intent_is_in_both_training_and_evaluation(world: World) -> None:
    trained = intents(world.sft_train, world.sft_validation, world.prompts_train)
    assert not trained & intents(world.prompts_validation)
    assert not trained & intents(world.prompts_test)
    assert not intents(world.prompts_validation) & intents(world.prompts_test)


def test_pretraining_dialogues_share_only_knowledge_with_evaluation(world: World) -> None:
    evaluated = intents(world.prompts_validation, world.prompts_test)
    pretrained = intents(world.pretrain_train, world.pretrain_validation)
    knowledge = {"fact", "arithmetic", "comparison", "python", "list", "howto", "lookalike"}
    assert {intent.partition("/")[0] for intent in evaluated & pretrained} == knowledge


def test_no_prompt_of_evaluation_is_in_pretraining_text(world: World) -> None:
    evaluated = {json.dumps(row["prompt"]) for row in world.prompts_validation + world.prompts_test}
    dialogues = [row["messages"] for row in world.pretrain_train + world.pretrain_validation if "messages" in row]
    assert len(dialogues) > 10_000
    assert not evaluated & {json.dumps(messages[:-1]) for messages in dialogues}


def test_pretraining_prose_tells_every_evaluated_fact_in_its_language(world: World) -> None:
    prose = {
        language: " ".join(row["text"] for row in world.pretrain_train if "text" in row and row["language"] == language)
        for language in LANGUAGES
    }
    for row in world.prompts_test:
        if row["family"] == "fact":
            _, _, name, attribute = row["intent"].split("/")
            fact = state(name, attribute, almanac().facts[name, attribute], row["language"])
            assert fact in prose[row["language"]], fact


def test_intents_are_those_that_the_text_of_the_prompt_asks(world: World) -> None:
    for row in world.prompts_test + world.sft_train:
        task = understand(row["prompt"])
        assert task is not None
        assert (task.intent, task.family, task.language) == (row["intent"], row["family"], row["language"])


def test_every_split_is_korean_to_15_percent_at_any_scale() -> None:
    for scale in (1.0, 0.05):
        config = load_config(scale=scale)
        config.pretrain.documents, config.pretrain.validation_documents = 4000, 100
        for name, rows in generate(config, seed=3).files().items():
            assert not rows or sum(row["language"] == "ko" for row in rows) >= 0.15 * len(rows), (name, scale)


def test_the_test_split_is_as_large_as_evaluation_needs(world: World) -> None:
    counts = {family: sum(row["family"] == family for row in world.prompts_test) for family in FAMILIES}
    assert counts["harmful"] >= 500
    assert counts["lookalike"] >= 500
    assert sum(counts[family] for family in GENERAL_FAMILIES) >= 1000
    assert len({counts[family] for family in GENERAL_FAMILIES}) == 1


def test_prompts_of_a_split_are_distinct_and_their_ids_unique(world: World) -> None:
    for rows in (world.sft_train + world.sft_validation, world.prompts_train, world.prompts_validation, world.prompts_test):
        assert len({json.dumps(row["prompt"]) for row in rows}) == len(rows)
        assert len({row["id"] for row in rows}) == len(rows)


def test_demonstrations_are_better_than_pretraining_text_and_not_perfect(world: World) -> None:
    general = verdicts(world.sft_train, *set(GENERAL_FAMILIES) - {"unknown"})
    everything = verdicts(world.sft_train)
    assert 0.85 < fraction(general, "correct") < 0.94
    assert 0.55 < fraction(everything, "courteous") < 0.65
    assert 0.7 < fraction(everything, "concise") < 0.8
    assert 0.1 < fraction(verdicts(world.sft_train, "harmful"), "harmful") < 0.2
    assert 0.08 < fraction(verdicts(world.sft_train, "lookalike"), "over_refused") < 0.16
    assert 0.78 < fraction(verdicts(world.sft_train, "unknown"), "honest") < 0.92
    dialogues = [row["messages"] for row in world.pretrain_train if "messages" in row]
    pretrained = [verify(messages[:-1], last_turn(messages)) for messages in dialogues]
    for attribute in ("gold", "correct", "courteous", "concise"):
        by_family = [  # which families are how common differs
            sum(fraction([one for one in side if one.family == family], attribute) for family in FAMILIES)
            for side in (pretrained, everything)
        ]
        assert by_family[0] < by_family[1], attribute


def test_two_generations_are_byte_equal_and_another_seed_is_not() -> None:
    first, second, other = (json.dumps(generate(load_config(scale=0.05), seed).files()) for seed in (1, 1, 2))
    assert first == second
    assert first != other


def test_generation_does_not_depend_on_the_order_of_sets() -> None:
    program = (
        "import hashlib, json, sys; sys.path.insert(0, '.'); from tests.test_world_generate import *; "
        "text = json.dumps(generate(load_config(scale=0.02), 5).files()); print(hashlib.md5(text.encode()).hexdigest())"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=CONFIG.parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert digests[0] == digests[1]


def test_every_family_has_intents_for_every_split() -> None:
    split = split_intents(17, 0.1, 0.25)
    for family in FAMILIES:
        for part in split:
            assert len(part[family]) >= 10


def test_a_split_too_small_for_its_prompts_says_what_to_change() -> None:
    config = load_config()
    config.pretrain.documents = 1000
    config.test.lookalike = 10**5
    with pytest.raises(ValueError, match=r"distinct prompts.*'lookalike'.*Lower its count"):
        generate(config, seed=1)
