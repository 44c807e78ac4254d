"""Claims about revisions by a constitution: what each round improves, what is kept, what is refused."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from plumbline.judging.judges import GoldJudge, NoJudge, SimulatedJudge
from plumbline.judging.verdicts import parse_text
from plumbline.pipeline.records import read_json, read_jsonl
from plumbline.pipeline.shard_files import write_table
from plumbline.rows import assistant, language_of, text_of
from plumbline.world.annotate import AnnotatorConfig
from plumbline.world.answers import Style, write_answer
from plumbline.world.families.catalog import FAMILIES, understand
from stages.revise import ReviseEntry, ReviseStage, run
from tests.interrupting import require_resuming

CONSTITUTION = Path(__file__).parents[1] / "conf/judge/constitutional.yaml"
PRINCIPLES = yaml.safe_load(CONSTITUTION.read_text(encoding="utf-8"))["principles"]


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
                     "completion": assistant(text)})  # fmt: skip
    write_table(project / "artifacts/sample/round1", rows, 100)
    return project


def revise(rounds: int = 4, judge: Any = None, skill: float = 0.7) -> dict[str, Any]:
    """Runs the stage and returns its metrics."""
    annotator = AnnotatorConfig(error_rate=0.1, position_bias=0.1, length_bias=0.1, revision_skill=skill, seed=1)
    entry = ReviseEntry(
        sample="round1",
        judge="constitutional",
        rounds=rounds,
        responses=1,
        prompts=0,
        unread_fraction=0.05,
        validation_fraction=0.1,
    )
    judge = judge or SimulatedJudge(annotator=annotator, principles=PRINCIPLES)
    run(ReviseStage(seed=17, threads=1, revise=entry, judge=judge), "cai")
    metrics: dict[str, Any] = read_json("artifacts/figures/revise/cai.json")
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
    rounds = read_jsonl("artifacts/rounds/cai.jsonl")
    assert [row["round"] for row in rounds] == ([1] * 100 + [2] * 100) * 2 + [1] * 40 + [2] * 40  # shard by shard
    last = {row["id"]: row["response"] for row in rounds if row["round"] == 2}
    rows = read_jsonl("artifacts/revise/cai/train.jsonl") + read_jsonl("artifacts/revise/cai/validation.jsonl")
    assert {row["id"]: text_of(row["completion"]) for row in rows} == last
    assert {row["principle"] for row in rounds} == set(PRINCIPLES)


def test_a_critic_without_skill_changes_nothing(sampled: Path) -> None:
    metrics = revise(rounds=2, skill=0.0)
    assert metrics["changed_fraction_1"] == metrics["changed_fraction_2"] == 0.0
    assert metrics["gold_2"] == metrics["gold_0"]


def test_a_judge_that_cannot_write_is_refused(sampled: Path) -> None:
    with pytest.raises(ValueError, match="expected a judge that writes"):
        revise(judge=GoldJudge(principles=PRINCIPLES))


def test_a_judge_without_principles_is_refused(sampled: Path) -> None:
    with pytest.raises(ValueError, match=r"revise\.judge: expected a judge with principles"):
        revise(judge=NoJudge())


def test_more_unreadable_revisions_than_the_limit_stop_the_stage(sampled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plumbline.world.annotate.SimulatedAnnotator.respond", lambda self, messages: "I would rather not.")
    with pytest.raises(ValueError, match=r"revise\.cai: expected at most 0\.05 .* found 1\.000"):
        revise(rounds=1)
    assert not Path("artifacts/revise/cai/train.jsonl").exists()
    assert len(read_jsonl("artifacts/rounds/cai.jsonl")) == 240


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
    assert {"helpful", "harmless", "honest", "privacy", "fairness"} <= set(PRINCIPLES)
    for principle in PRINCIPLES.values():
        assert set(principle) == {"judge", "critique", "revision"}
        for texts in principle.values():
            assert {language: language_of(text) for language, text in texts.items()} == {"en": "en", "ko": "ko"}


def test_an_interrupted_run_goes_on_from_its_shards(sampled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = ["artifacts/revise/cai", "artifacts/rounds/cai.jsonl", "artifacts/figures/revise/cai.json"]
    require_resuming(monkeypatch, lambda: revise(rounds=1), outputs, done=2)
