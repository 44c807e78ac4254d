"""Completions during training: they show the policy change, they change nothing, and they stay within their share of the time."""

import shutil
from pathlib import Path
from typing import Any

import aligning
import pytest
from aligning import outputs, run_align, write_inputs
from ppo_tiny import PROMPTS, tiny_policy, word_tokenizer
from test_ppo_align import artifacts as ppo_artifacts  # noqa: F401
from test_ppo_align import run_align as run_ppo

from plumbline.models import watching
from plumbline.models.watching import TABLE, Watch, due_steps, spread
from plumbline.pipeline.records import write_jsonl
from plumbline.pipeline.tracking import Run
from plumbline.rows import last_turn


class Watched(Run):
    """A run that keeps the table of samples as it was last logged."""

    id = "a run"
    rows: list[dict[str, Any]]

    def log_table(self, name: str, rows: Any) -> None:
        if name == TABLE:
            self.rows = list(rows)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    return write_inputs(tmp_path)


def test_the_first_and_the_last_step_are_always_due() -> None:
    assert due_steps(100, 5) == [0, 25, 50, 75, 100]
    assert due_steps(2, 5) == [0, 1, 2]
    assert due_steps(1, 2) == [0, 1]


@pytest.mark.parametrize(
    ("method", "rank"), [("sft", 0), ("dpo", 0), ("dpo", 2), ("kto", 0), ("orpo", 0), ("grpo", 0), ("rloo", 2)]
)
def test_watching_leaves_the_weights_and_the_curve_as_they_are(
    inputs: Path, method: str, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_align(inputs, method, "unwatched", lora_rank=rank)
    watched = Watched()
    monkeypatch.setattr(aligning, "Run", lambda: watched)
    run_align(inputs, method, "watched", lora_rank=rank)
    assert outputs(inputs, "watched") == outputs(inputs, "unwatched")
    steps = list(dict.fromkeys(row["step"] for row in watched.rows))
    assert steps[0] == 0
    assert steps[-1] >= 4
    prompts = [row["prompt"] for row in watched.rows]
    assert prompts == sorted(prompts, key=prompts.index)  # the steps of a prompt stand together
    assert len(set(prompts)) == min(4, len({last_turn(prompt) for prompt in PROMPTS}))


def test_ppo_is_watched_too_and_its_weights_stay_as_they_are(ppo_artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    run_ppo(ppo_artifacts)
    weights = (ppo_artifacts / "policy/ppo/model.safetensors").read_bytes()
    looks: list[int] = []
    original = Watch._look

    def looking(self: Watch, step: int, model: Any) -> None:
        looks.append(step)
        original(self, step, model)

    monkeypatch.setattr(Watch, "_look", looking)
    monkeypatch.setattr("test_ppo_align.Recorder.id", "a run", raising=False)
    shutil.rmtree(ppo_artifacts / "checkpoints")  # or it would resume at its end
    run_ppo(ppo_artifacts)
    assert (ppo_artifacts / "policy/ppo/model.safetensors").read_bytes() == weights
    assert looks[0] == 0
    assert looks[-1] == 4


def test_between_the_first_and_the_last_step_watching_waits_until_it_may_cost_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look takes 1 s and a step 10 s: at 3 % of the time, the next look may come after 34 s."""
    now = 0.0
    monkeypatch.setattr(watching.time, "perf_counter", lambda: now)
    looks: list[int] = []

    def look(self: Watch, step: int, model: Any) -> None:
        looks.append(step)
        self._spent += 1.0

    monkeypatch.setattr(Watch, "_look", look)
    monkeypatch.setattr(watching, "due_steps", lambda steps, _: [*range(steps + 1)])
    watch = Watch(Run(), word_tokenizer(), [], 10)
    for step in range(11):
        watch.at(step, None)
        now += 10.0
    assert looks == [0, 4, 7, 10]


def test_completions_are_those_of_the_model_at_that_step_and_fit_its_context() -> None:
    run = Watched()
    watch = Watch(run, word_tokenizer(), PROMPTS[:2], 8)
    model = tiny_policy().train()
    watch.at(0, model)
    assert model.training
    assert [row["step"] for row in run.rows] == [0, 0]
    assert all(0 < row["tokens"] <= 64 for row in run.rows)


@pytest.mark.parametrize(
    ("count", "chosen"), [(0, []), (1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (8, [1, 3, 5, 7]), (400, [50, 150, 250, 350])]
)
def test_the_prompts_are_spread_over_the_whole_file(tmp_path: Path, count: int, chosen: list[int]) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": asked(str(number))} for number in range(count)])
    assert [last_turn(prompt) for prompt in spread(tmp_path / "rows.jsonl", 4)] == [*map(str, chosen)]


def test_a_prompt_of_several_rows_is_watched_once_and_rows_without_prompts_are_passed_over(tmp_path: Path) -> None:
    rows = [{"text": "plain"}, *({"prompt": asked(name)} for name in "aabacaab")]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert [last_turn(prompt) for prompt in spread(tmp_path / "rows.jsonl", 4)] == ["a", "b", "c"]
    assert [last_turn(prompt) for prompt in spread(tmp_path / "rows.jsonl", 1)] == ["b"]


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_without_mlflow_nothing_is_sampled(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "_look", lambda *_: pytest.fail("sampled"))
    run_align(inputs, "sft")
