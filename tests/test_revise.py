"""Claims about revisions by a constitution: what each round mends, what is kept, what is refused."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from stages.judging import templates
from stages.judging.config import GoldJudge, SimulatedJudge
from stages.judging.verdicts import parse_text
from stages.pipeline.records import read_json, read_jsonl, write_jsonl
from stages.revise import ReviseEntry, ReviseStage, run
from stages.world.annotator import AnnotatorConfig
from stages.world.answers import Style, write_answer
from stages.world.tasks import FAMILIES, understand
from stages.world.verifier import verify

CONSTITUTION = Path(__file__).parents[1] / "conf/constitution/default.yaml"


@pytest.fixture
def sampled(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sample in which half of the harmful requests are complied with and look-alikes are answered."""
    monkeypatch.setenv("DVC_STAGE", "revise@cai")
    rng, rows = random.Random(5), []
    for number in range(240):
        family = FAMILIES["harmful" if number % 2 else sorted(FAMILIES)[number // 2 % len(FAMILIES)]]
        prompt = family.ask(rng.choice(family.intents()), "ko" if number % 5 == 0 else "en", rng)
        task = understand(prompt)
        assert task is not None
        text = write_answer(task, Style(rng.choice(["right", "wrong"]), rng.choice(["kind", "rude"]), rng.random() < 0.5), rng)
        rows.append({"id": f"p{number}", "index": 0, "prompt": prompt, "policy": "sft", "finished": True, "tokens": 5,
                     "completion": [{"role": "assistant", "content": text}]})  # fmt: skip
    write_jsonl(project / "artifacts/sample/round1/completions.jsonl", rows)
    return project


def revise(rounds: int = 4, judge: Any = None, skill: float = 0.7) -> dict[str, Any]:
    annotator = AnnotatorConfig(error_rate=0.1, position_bias=0.1, length_bias=0.1, revision_skill=skill, seed=1)
    principles = OmegaConf.to_container(OmegaConf.load(CONSTITUTION))["principles"]  # type: ignore[index,call-overload]
    entry = ReviseEntry("round1", "simulated", "default", principles, rounds, 1, 0, 0.05, 0.1)
    run(ReviseStage(seed=17, threads=1, revise=entry, judge=judge or SimulatedJudge(annotator=annotator)), "cai")
    metrics: dict[str, Any] = read_json("metrics/revise/cai.json")
    return metrics


def test_harm_falls_with_every_round_and_over_refusal_stays(sampled: Path) -> None:
    metrics = revise()
    harmful = [metrics[f"harmful_fraction_{number}"] for number in range(5)]
    assert harmful[0] > 0.3
    assert all(later < earlier for earlier, later in itertools.pairwise(harmful))
    assert harmful[-1] < harmful[0] / 2
    assert metrics["over_refusal_fraction_4"] <= metrics["over_refusal_fraction_0"]
    assert metrics["gold_4"] > metrics["gold_0"] + 0.1


def test_every_round_is_kept_and_the_last_becomes_the_demonstration(sampled: Path) -> None:
    revise(rounds=2)
    rounds = read_jsonl("artifacts/revise/cai/rounds.jsonl")
    assert [row["round"] for row in rounds] == [1] * 240 + [2] * 240
    last = {row["id"]: row["response"] for row in rounds if row["round"] == 2}
    rows = read_jsonl("artifacts/revise/cai/train.jsonl") + read_jsonl("artifacts/revise/cai/validation.jsonl")
    assert {row["id"]: row["completion"][0]["content"] for row in rows} == last
    assert {row["principle"] for row in rounds} == {"harmless", "honest", "helpful", "privacy", "fairness"}
    assert all(verify(row["prompt"], row["response"]) is not None for row in rounds)


def test_a_critic_without_skill_changes_nothing(sampled: Path) -> None:
    metrics = revise(rounds=2, skill=0.0)
    assert metrics["changed_fraction_1"] == metrics["changed_fraction_2"] == 0.0
    assert metrics["gold_2"] == metrics["gold_0"]


def test_a_judge_that_cannot_write_is_refused(sampled: Path) -> None:
    with pytest.raises(ValueError, match="expected a judge that writes"):
        revise(judge=GoldJudge())


def test_a_revision_is_what_follows_the_word_asked_for_and_nothing_else() -> None:
    assert parse_text("Revision: I cannot help.\nTry this.", "revision") == "I cannot help.\nTry this."
    assert parse_text("**Revision:** Yes.", "revision") == "Yes."
    assert parse_text('{"revision": "Yes."}', "revision") == "Yes."
    assert parse_text('```json\n{"revision": "Yes."}\n```', "revision") == "Yes."
    assert parse_text("Revision: **Note:** no.", "revision") == "**Note:** no."
    assert parse_text("Revision:\n* a\n* b", "revision") == "* a\n* b"
    for reply in ("", "Revision:", "Sure! Revision: Yes.", "I would rather not.", '{"critique": "x"}', "[1]"):
        assert parse_text(reply, "revision") is None


def test_the_constitution_says_everything_in_both_languages() -> None:
    principles = OmegaConf.to_container(OmegaConf.load(CONSTITUTION))["principles"]  # type: ignore[index,call-overload]
    assert {"helpful", "harmless", "honest", "privacy", "fairness"} <= set(principles)  # type: ignore[arg-type]
    for principle in principles.values():  # type: ignore[union-attr]
        assert set(principle) == {"judge", "critique", "revision"}
        for texts in principle.values():
            assert set(texts) == {"en", "ko"}
            assert templates.language_of([{"role": "user", "content": texts["ko"]}]) == "ko"
            assert templates.language_of([{"role": "user", "content": texts["en"]}]) == "en"
