"""Rewards of every kind: the digest of the code in reward.json, and `make score`."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ppo_tiny import llama_config, word_tokenizer
from transformers import LlamaForSequenceClassification

from plumbline.graph import REPEATED
from plumbline.judging.judges import SimulatedJudge
from plumbline.pipeline import sources
from plumbline.pipeline.records import read_json, write_json, write_jsonl
from plumbline.rewards.judged import described
from plumbline.rewards.reward import KINDS, describe, load_reward
from plumbline.tools import score
from plumbline.world.annotate import AnnotatorConfig
from tests.test_sandbox import needs_bubblewrap

# ---- the digest of the code -----------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the library to edit, which digests are taken of."""
    shutil.copytree(sources.ROOT / "plumbline", tmp_path / "plumbline", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    sources.direct_imports.cache_clear()
    yield tmp_path
    sources.direct_imports.cache_clear()


def code_of(kind: str, folder: Path) -> str:
    describe(folder, kind)
    return str(read_json(folder / "reward.json")["code"])


RUNS_ON = {
    "model": "models/chat.py",
    "rules": "rows.py",
    "judge": "judging/templates.py",
    "closed_world": "world/verify.py",
    "math": "checking/algebra.py",
    "code": "checking/inside.py",
    "instructions": "checking/instructions.py",
    "refusals": "checking/expectations.py",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_of_a_rewards_code_changes_with_every_file_that_its_kind_runs_on_and_no_other(copied: Path, kind: str) -> None:
    reward = copied / "reward"
    before = code_of(kind, reward)
    files = sources.files_of([KINDS[kind]])
    modules = {file.relative_to(copied / "plumbline").as_posix() for file in files}
    assert {RUNS_ON[kind], f"{KINDS[kind].partition('.')[2].replace('.', '/')}.py"} <= modules
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content + b"\n# edited\n")
        assert code_of(kind, reward) != before, file
        file.write_bytes(content)
    unrelated = copied / "plumbline/report/page.py"
    unrelated.write_bytes(unrelated.read_bytes() + b"\n# edited\n")
    assert code_of(kind, reward) == before


# ---- score ----------------------------------------------------------------------------------------------------------

QUESTION = "What is 2 + 3?"


def run_score(monkeypatch: pytest.MonkeyPatch, reward: str, response: str, prompt: str = QUESTION) -> None:
    monkeypatch.setattr(sys, "argv", ["score", reward, prompt, response])
    score.main()


@pytest.fixture
def rewards(project: Path) -> Path:
    """A reward of every kind that needs no model, under its kind's name."""
    prompt = [{"role": "user", "content": QUESTION}]
    limits = {"seconds": 60.0, "memory_mib": 512, "processes": 8, "scratch_mib": 16}
    folder = project / "artifacts/reward"
    descriptions: dict[str, dict[str, Any]] = {
        "rules": {"rules": {"short": {"kind": "length", "weight": 3.0, "most": 2}, "digits": {"kind": "digits", "weight": -0.5}}},
        "closed_world": {"measure": "correct"},
        "math": {},
        "code": {"isolation": "bubblewrap", "limits": limits},
        "sum": {"parts": [{"reward": "rules", "weight": 1.0}, {"reward": "math", "weight": 10.0}]},
    }
    for kind, values in descriptions.items():
        write_json(folder / kind / "reward.json", {"kind": kind, **values})
    write_jsonl(folder / "math/references.jsonl", [{"prompt": prompt, "answer": "5"}])
    write_jsonl(folder / "code/references.jsonl", [{"prompt": prompt, "tests": ["assert add(2, 3) == 5"]}])
    return folder


def test_score_prints_the_reward_of_a_response_and_explains_rules(
    rewards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = {}
    for kind in ("rules", "closed_world", "math", "sum"):
        run_score(monkeypatch, kind, "It is 5.")
        printed[kind] = capsys.readouterr().out.splitlines()
    assert printed == {
        "rules": ["1.5000", "  0.67 × 3  short", "  1.00 × -0.5  digits"],
        "closed_world": ["1.0000"],
        "math": ["1.0000"],
        "sum": ["11.5000"],
    }


@needs_bubblewrap
def test_score_runs_a_program(rewards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_score(monkeypatch, "code", "def add(a, b):\n    return a + b")
    assert capsys.readouterr().out == "1.0000\n"


def test_score_asks_a_reward_model_or_a_judge(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What either gives the text is what is printed."""
    tokenizer, folder = word_tokenizer(), project / "artifacts/reward"
    LlamaForSequenceClassification(llama_config(len(tokenizer), num_labels=1)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    describe(folder / "model", "model")
    faultless = AnnotatorConfig(error_rate=0.0, position_bias=0.0, length_bias=0.0, revision_skill=1.0, seed=1)
    describe(folder / "judge", "judge", **described(SimulatedJudge(annotator=faultless), "simulated", 1))
    for kind, prompt, response in (("model", "q", "a b"), ("judge", QUESTION, "It is 5.")):
        run_score(monkeypatch, kind, response, prompt)
        expected = load_reward(folder / kind)([[{"role": "user", "content": prompt}]], [response])[0]
        assert float(capsys.readouterr().out) == pytest.approx(expected, abs=1e-3), kind


def test_score_says_in_one_line_what_is_missing(rewards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="score: expected a prompt"):
        run_score(monkeypatch, "rules", "5", prompt="")
    with pytest.raises(SystemExit, match=r"score: expected a reference .*'What is 9 \+ 9\?'"):
        run_score(monkeypatch, "math", "18", prompt="What is 9 + 9?")
    with pytest.raises(SystemExit) as unknown:
        run_score(monkeypatch, "rm", "It is 5.")
    assert str(unknown.value).startswith("score: expected a reward at artifacts/reward/rm")
    sections = [stage for stage, kind in REPEATED.items() if kind.folder == "reward"]
    assert len(sections) == 5
    assert [section for section in sections if section not in str(unknown.value)] == []
