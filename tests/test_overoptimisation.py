"""Claims about the stage `overoptimisation`: its figures follow from the answers that it writes, and KL from what both policies say of them."""

import csv
import itertools
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_tiny import PROMPTS, tiny_policy, word_tokenizer
from test_answer import section
from transformers import AutoModelForCausalLM

import stages.check
import stages.overoptimisation
from plumbline.models import chat
from plumbline.models.chat import prompt_ids
from plumbline.models.completions import Completer
from plumbline.models.saving import save_policy
from plumbline.pipeline.params import load_params
from plumbline.pipeline.records import read_json, read_jsonl, write_json, write_jsonl
from plumbline.pipeline.shard_files import read_shard
from plumbline.rows import Message, Row, text_of
from stages.overoptimisation import OveroptimisationEntry, OveroptimisationStage, run, some_prompts
from tests.conftest import ROOT
from tests.interrupting import contents, judge_calls, require_resuming

LETTERS = {"proxy": "a", "gold": "b"}
"""What the two rewards count."""
OUTPUTS = [
    f"artifacts/{name}"
    for name in ("curves/overoptimisation/ppo.csv", "figures/overoptimisation/ppo.json", "overoptimisation/ppo")
]


class Counting:
    """A reward that counts a letter, and asks about each answer as a judge would."""

    def __init__(self, letter: str) -> None:
        self.letter, self.ledger = letter, {"judge_calls": 0}

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        self.ledger["judge_calls"] += len(completions)
        return [float(text.split().count(self.letter)) for text in completions]


def counting(folder: Path, _: str = "") -> Counting:
    return Counting(LETTERS[folder.name])


@pytest.fixture
def measured(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A start, two policies of a training, two rewards and prompts."""
    monkeypatch.setenv("DVC_STAGE", "overoptimisation@ppo")
    monkeypatch.setattr(stages.overoptimisation, "load_reward", counting)
    save_policy(tiny_policy(2), word_tokenizer(), Path("artifacts/policy/sft"))
    for step, seed in ((4, 5), (12, 9)):
        save_policy(tiny_policy(seed), word_tokenizer(), Path(f"artifacts/steps/ppo/{step}"))
    write_json("artifacts/steps/ppo/steps.json", {"steps": [4, 12]})
    for name in LETTERS:
        write_json(f"artifacts/reward/{name}/reward.json", {"kind": "rules"})
    write_jsonl("artifacts/data/prompts/test.jsonl", [{"id": f"p{n}", "prompt": prompt} for n, prompt in enumerate(PROMPTS)])
    return project


def stage(**changes: Any) -> OveroptimisationStage:
    settings: dict[str, Any] = {
        "init": "sft",
        "steps": "none",
        "proxy": "proxy",
        "gold": "gold",
        "prompts": 0,
        "answers": 4,
        "batch_size": 64,
        "shard_prompts": 3,
    }
    return OveroptimisationStage(
        seed=1, threads=1, overoptimisation=OveroptimisationEntry(**(settings | changes)), evaluate=section(max_new_tokens=6)
    )


def table() -> list[dict[str, float]]:
    with Path("artifacts/curves/overoptimisation/ppo.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def answers() -> list[dict[str, Any]]:
    return read_jsonl("artifacts/overoptimisation/ppo/answers.jsonl")


def test_best_of_n_follows_from_the_answers(measured: Path) -> None:
    """For n = 2 by every pair of a prompt's four answers; an equal reward is worth the mean of both."""
    run(stage(), "ppo")
    rows, held = table(), answers()
    assert [row["n"] for row in rows] == [1, 2, 4]
    assert [row["kl"] for row in rows] == pytest.approx([0, math.log(2) - 1 / 2, math.log(4) - 3 / 4], abs=1e-6)
    assert rows[2]["sqrt_kl"] == pytest.approx((math.log(4) - 3 / 4) ** 0.5, abs=1e-6)
    for row in held:
        assert (row["proxy"], row["gold"]) == tuple(text_of(row["completion"]).split().count(letter) for letter in "ab")
    by_prompt = [[row for row in held if row["id"] == f"p{n}"] for n in range(len(PROMPTS))]
    for name in LETTERS:
        chosen = []
        for of_prompt in by_prompt:
            for pair in itertools.combinations(of_prompt, 2):
                best = [one[name] for one in pair if one["proxy"] == max(each["proxy"] for each in pair)]
                chosen.append(sum(best) / len(best))
        every = [row[name] for row in held]
        assert rows[1][f"{name}_gain"] == pytest.approx((np.mean(chosen) - np.mean(every)) / np.std(every), abs=1e-5)
    assert rows[0]["proxy_gain"] == rows[0]["gold_gain"] == 0
    assert rows[2]["proxy_gain"] > rows[1]["proxy_gain"] > 0


def log_probability(policy: Path, row: dict[str, Any], ids: list[int]) -> float:
    """log π of an answer by a plain forward pass."""
    asked = prompt_ids(word_tokenizer(), row["prompt"])
    with torch.no_grad():
        logps = AutoModelForCausalLM.from_pretrained(policy)(torch.tensor([asked + ids])).logits[0].log_softmax(-1)
    return sum(float(logps[len(asked) - 1 + position, token]) for position, token in enumerate(ids))


def test_along_training_gains_and_kl_are_of_each_kept_policys_own_answers(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids: dict[tuple[int, str, int], list[int]] = {}
    original = stages.overoptimisation.drawn

    def recording(config: Any, policy: Path, prompts: Path, step: int, folder: Path) -> list[Path]:
        files: list[Path] = original(config, policy, prompts, step, folder)
        ids.update({(step, row["id"], row["index"]): row["ids"] for file in files for row in read_shard(file)})
        return files

    monkeypatch.setattr(stages.overoptimisation, "drawn", recording)
    run(stage(steps="ppo", answers=2), "ppo")
    rows, held = table(), answers()
    assert [row["step"] for row in rows] == [0, 4, 12]
    assert rows[0]["kl"] == rows[0]["proxy_gain"] == rows[0]["gold_gain"] == 0
    start = [row for row in held if row["step"] == 0]
    for row in rows[1:]:
        step = int(row["step"])
        own = [one for one in held if one["step"] == step]
        assert len(own) == 2 * len(PROMPTS)
        for name in LETTERS:
            gain = (np.mean([one[name] for one in own]) - np.mean([one[name] for one in start])) / np.std(
                [one[name] for one in start]
            )
            assert row[f"{name}_gain"] == pytest.approx(gain, abs=1e-5)
        ratios = [
            log_probability(Path(f"artifacts/steps/ppo/{step}"), one, ids[step, one["id"], one["index"]])
            - log_probability(Path("artifacts/policy/sft"), one, ids[step, one["id"], one["index"]])
            for one in own
        ]
        assert row["kl"] == pytest.approx(np.mean(ratios), abs=1e-4)
    figures = read_json("artifacts/figures/overoptimisation/ppo.json")
    assert (figures["points"], figures["prompts"], figures["gold_explained"]) == (3, len(PROMPTS), None)
    assert figures["kl"] == pytest.approx(rows[2]["kl"])
    assert not any("ids" in one for one in held)


def test_a_second_run_writes_the_same_bytes(measured: Path) -> None:
    run(stage(prompts=5), "ppo")
    first = contents(OUTPUTS)
    run(stage(prompts=5), "ppo")
    assert contents(OUTPUTS) == first
    assert len({row["id"] for row in answers()}) == 5


@pytest.mark.parametrize(
    ("steps", "done"),
    [
        pytest.param("none", 2, id="best of n, drawing"),
        pytest.param("none", 7, id="best of n, scoring"),
        pytest.param("ppo", 4, id="training, drawing from the second policy"),
        pytest.param("ppo", 20, id="training, scoring"),
        pytest.param("ppo", 34, id="training, estimating KL"),
    ],
)
def test_an_interrupted_run_goes_on_from_its_shards(
    measured: Path, monkeypatch: pytest.MonkeyPatch, steps: str, done: int
) -> None:
    require_resuming(monkeypatch, lambda: run(stage(steps=steps), "ppo"), OUTPUTS, done)
    asked = len(answers())
    assert judge_calls() == {f"overoptimisation@ppo {name}_judge_calls": asked for name in LETTERS}


def test_a_run_that_has_all_answers_loads_no_policy_to_draw_them(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stages.overoptimisation, "scored", _failing)
        with pytest.raises(ZeroDivisionError):
            run(stage(), "ppo")
    monkeypatch.setattr(Completer, "__init__", _failing)
    monkeypatch.setattr(chat, "prompt_ids", _failing)
    run(stage(), "ppo")
    assert len(answers()) == len(PROMPTS) * 4


def _failing(*_: object, **__: object) -> None:
    raise ZeroDivisionError


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import stages.overoptimisation
from plumbline.models.completions import Completer
from test_overoptimisation import counting, stage

complete, calls = Completer.complete, []

def until_the_fifth(completer, prompts, first=0):
    rows = complete(completer, prompts, first)
    calls.append(first)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return rows

Completer.complete = until_the_fifth
stages.overoptimisation.load_reward = counting
stages.overoptimisation.run(stage(steps="ppo"), "ppo")
"""


def test_a_run_that_was_killed_loses_one_shard_and_ends_in_the_same_bytes(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the policy after 4 steps answers the second of three parts of the prompts."""
    run(stage(steps="ppo"), "ppo")
    undisturbed = contents(OUTPUTS)
    script = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"))
    environment = os.environ | {"DVC_STAGE": "overoptimisation@ppo", "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = Path(".checkpoints").glob("overoptimisation@ppo-*/answers/*/00000?")
    assert sorted(f"{shard.parent.name}/{shard.name}" for shard in kept) == ["0/000000", "0/000001", "0/000002", "4/000000"]
    drawn: list[tuple[str, int]] = []
    complete = Completer.complete

    def recording(completer: Completer, prompts: list[Row], first: int = 0) -> list[list[Row]]:
        drawn.append((completer.bar.desc.split(",")[1].strip(), first))
        return complete(completer, prompts, first)

    monkeypatch.setattr(Completer, "complete", recording)
    run(stage(steps="ppo"), "ppo")
    assert drawn == [("step 4", 3), ("step 4", 6), ("step 12", 0), ("step 12", 3), ("step 12", 6)]
    assert contents(OUTPUTS) == undisturbed
    assert [*Path(".checkpoints").glob("overoptimisation@ppo-*")] == []


def test_an_answer_does_not_depend_on_the_shard_that_it_is_in(measured: Path) -> None:
    run(stage(steps="ppo", shard_prompts=1), "ppo")
    small, of_small = answers(), table()
    run(stage(steps="ppo", shard_prompts=1024), "ppo")
    assert answers() == small
    for row, other in zip(table(), of_small, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


def test_an_entry_that_kept_nothing_says_what_to_do(measured: Path) -> None:
    write_json("artifacts/steps/dpo/steps.json", {"steps": []})
    with pytest.raises(
        ValueError,
        match=r"expected policies of several steps in artifacts/steps/dpo, found none\. Name the steps in `keep_steps`",
    ):
        run(stage(steps="dpo"), "ppo")


def test_values_that_do_not_fit() -> None:
    assert stage(answers=1).overoptimisation.problems()[0].startswith("answers: expected 2 or more with steps: none")
    assert stage(answers=1, steps="ppo").overoptimisation.problems() == []
    assert stage(prompts=-1).overoptimisation.problems() == ["prompts: expected 0 or above, found -1"]
    assert stage(shard_prompts=0).overoptimisation.problems() == ["shard_prompts: expected at least 1, found 0"]


def test_prompts_are_drawn_from_the_whole_split_in_its_order(tmp_path: Path) -> None:
    rows = [{"id": str(number)} for number in range(1000)]
    file = tmp_path / "prompts.jsonl"
    write_jsonl(file, rows)
    some = [int(row["id"]) for row in some_prompts(file, 100, seed=3)]
    assert len(some) == 100
    assert some == sorted(some)
    assert 400 < sum(some) / 100 < 600  # the first hundred have a mean of 49.5
    assert [*some_prompts(file, 0, seed=3)] == [*some_prompts(file, 5000, seed=3)] == rows


def test_a_recipe_whose_entry_keeps_no_steps_is_refused(project: Path) -> None:
    recipe = load_params()
    recipe["reward_verifier"] = {"gold": {"kind": "closed_world"}}
    entry = {"init": "sft", "steps": "ppo", "proxy": "rm", "gold": "gold"}
    recipe["overoptimisation"] = {"ppo": entry, "best": entry | {"steps": "none", "answers": 8}}
    del recipe["rl"]["ppo"]["keep_steps"]
    (error,) = stages.check.recipe_errors(recipe)
    assert error.startswith(
        "params.yaml: overoptimisation.ppo.steps: expected an entry that keeps its policy during training, found ppo."
    )
    assert "rl.ppo.keep_steps" in error
    recipe["rl"]["ppo"]["keep_steps"] = [4, 8]
    assert stages.check.recipe_errors(recipe) == []
    entry["steps"] = "pppo"
    (error,) = stages.check.recipe_errors(recipe)
    assert error.startswith("params.yaml: overoptimisation.ppo.steps: there is no 'pppo'. Did you mean 'ppo'?")
