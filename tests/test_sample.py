"""Claims about samples: which prompts are sampled, and what a sample of demonstrations holds."""

import json
from pathlib import Path
from typing import Any

import pytest
from ppo_tiny import PROMPTS, tiny_policy, word_tokenizer

from plumbline.models import chat
from plumbline.models.chat import prompt_ids
from plumbline.models.completions import FITTING, Completer, fitting_of
from plumbline.models.decoding_values import Decoding
from plumbline.models.saving import save_policy
from plumbline.pipeline.engine import Engine
from plumbline.pipeline.records import read_json, write_jsonl
from plumbline.pipeline.shard_files import read_shard, read_table
from plumbline.rows import Row, assistant
from stages import sample
from stages.sample import SampleEntry, SampleStage
from tests.interrupting import Interrupted, contents, require_resuming, require_surviving_a_kill
from tests.ray_cluster import cluster  # noqa: F401  a fixture

DEMONSTRATION = assistant("a b a b a b a b")  # longer than a sampled completion can be


@pytest.fixture
def world(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a policy, rollout prompts and demonstrations, as under DVC."""
    monkeypatch.setenv("DVC_STAGE", "sample@one")
    save_policy(tiny_policy(), word_tokenizer(), project / "artifacts/policy/sft")
    rows: list[Row] = [{"id": f"p{number}", "prompt": prompt} for number, prompt in enumerate(PROMPTS)]
    write_jsonl(project / "artifacts/data/prompts/train.jsonl", rows)
    demonstrations = [{**row, "id": f"s{number}", "completion": DEMONSTRATION} for number, row in enumerate(rows)]
    write_jsonl(project / "artifacts/data/sft/train.jsonl", demonstrations)
    return project


def draw(entry: str, engine: Engine | None = None, **changes: Any) -> list[Row]:
    settings: dict[str, Any] = {"policy": "sft", "of": "rollout", "n": 2, "prompts": 0, "min_p": 0.0}
    config = SampleEntry(**{**settings, "max_new_tokens": 6, "batch_size": 8, "shard_prompts": 1024, **changes})
    sample.run(SampleStage(seed=3, threads=1, engine=engine or Engine(), sample=config), entry)
    return read_table(Path(f"artifacts/sample/{entry}"))


def test_the_rollout_prompts_are_sampled_n_times_each_in_order(world: Path) -> None:
    rows = draw("one", prompts=3)
    assert [(row["id"], row["index"]) for row in rows] == [(f"p{number}", index) for number in range(3) for index in range(2)]
    assert {row["policy"] for row in rows} == {"sft"}
    assert [row["prompt"] for row in rows[::2]] == PROMPTS[:3]


def test_a_sample_of_demonstrations_has_each_demonstration_before_the_policys_completions(world: Path) -> None:
    rows = draw("spin", of="demonstrations", n=1)
    assert [(row["id"], row["index"], row["policy"]) for row in rows] == [
        (f"s{number}", index, policy) for number in range(len(PROMPTS)) for index, policy in enumerate(("demonstrations", "sft"))
    ]
    assert all(row["completion"] == DEMONSTRATION and row["finished"] and "ids" not in row for row in rows[::2])
    assert all(row["completion"] != DEMONSTRATION for row in rows[1::2])


def test_a_narrower_decoding_draws_other_completions_and_the_figures_hold_it(world: Path) -> None:
    whole = draw("one")
    narrow = draw("one", top_k=2, repetition_penalty=1.2)
    assert [row["ids"] for row in narrow] != [row["ids"] for row in whole]
    figures = read_json("artifacts/figures/sample/one.json")
    assert Decoding(**{name: figures[name] for name in Decoding._fields}) == Decoding(1.0, top_k=2, repetition_penalty=1.2)
    assert figures["completions"] == len(narrow) == 2 * len(PROMPTS)


def test_null_is_what_the_policy_says_itself(world: Path) -> None:
    stated = draw("one", temperature=0.5, top_p=0.8)
    file = world / "artifacts/policy/sft/generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"temperature": 0.5, "top_p": 0.8}))
    assert draw("one", temperature=None, top_p=None) == stated
    assert draw("one") != stated


def test_several_greedy_completions_of_a_prompt_are_refused(world: Path) -> None:
    assert len(draw("one", temperature=0.0, n=1)) == len(PROMPTS)
    with pytest.raises(ValueError, match=r"sample\.n: expected 1 at temperature 0 \(greedy\), .* found 2"):
        draw("one", temperature=0.0)


def test_another_source_of_prompts_is_refused_before_any_work(world: Path) -> None:
    with pytest.raises(ValueError, match=r"sample\.of: expected one of rollout, demonstrations, found 'sft'"):
        draw("one", of="sft")
    assert not (world / "artifacts/sample").exists()


def test_an_interrupted_run_goes_on_from_its_shards(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = ["artifacts/sample/spin", "artifacts/figures/sample/spin.json"]
    require_resuming(monkeypatch, lambda: draw("spin", of="demonstrations", shard_prompts=2), outputs, done=2)


@pytest.mark.slow
def test_workers_draw_what_the_stage_draws_itself(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = ["artifacts/sample/spin", "artifacts/figures/sample/spin.json"]
    draw("spin", of="demonstrations", shard_prompts=2)
    here = contents(outputs)
    monkeypatch.setattr(sample, "Completer", lambda *_, **__: pytest.fail("the stage's process loaded the policy"))
    draw("spin", Engine(shards="processes", workers=2), of="demonstrations", shard_prompts=2)
    assert contents(outputs) == here


@pytest.mark.slow
def test_workers_on_a_cluster_draw_the_same(world: Path, cluster: Any) -> None:  # noqa: F811
    outputs = ["artifacts/sample/one", "artifacts/figures/sample/one.json"]
    draw("one", shard_prompts=2)
    here = contents(outputs)
    draw("one", Engine(shards="ray", workers=2), shard_prompts=2)
    assert contents(outputs) == here


def test_a_run_that_was_killed_loses_one_shard_and_ends_in_the_same_bytes(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = ["artifacts/sample/one", "artifacts/figures/sample/one.json"]
    code = 'from test_sample import draw; draw("one", shard_prompts=2)'
    require_surviving_a_kill(monkeypatch, lambda: draw("one", shard_prompts=2), code, outputs, done=2)


def test_prompts_are_measured_once_however_often_a_run_goes_on(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenising ten million takes hours."""
    tokenised: list[Any] = []
    monkeypatch.setattr(chat, "prompt_ids", lambda tokenizer, prompt: tokenised.append(prompt) or prompt_ids(tokenizer, prompt))
    complete, calls = Completer.complete, []

    def failing(completer: Completer, prompts: list[Row], first: int = 0) -> list[list[Row]]:
        calls.append(first)
        if calls == [0, 2]:
            raise Interrupted
        return complete(completer, prompts, first)

    monkeypatch.setattr(Completer, "complete", failing)
    with pytest.raises(Interrupted):
        draw("one", shard_prompts=2)
    assert tokenised == [*PROMPTS, *PROMPTS[:2]]
    tokenised.clear()
    draw("one", shard_prompts=2)
    assert tokenised == PROMPTS[2:]


@pytest.mark.parametrize("cut_short", ["", '{"prompts": 5, "lon', "{}"])
def test_lengths_of_prompts_that_cannot_be_read_are_measured_again(world: Path, cut_short: str) -> None:
    """As a power cut may leave them."""
    rows = [{"id": f"p{number}", "prompt": prompt} for number, prompt in enumerate(PROMPTS)]
    (world / FITTING).write_text(cut_short, encoding="utf-8")
    whole = fitting_of(world / "artifacts/policy/sft", rows, 6, "sample@one")
    assert fitting_of(world / "artifacts/policy/sft", rows, 6, "sample@one", world) == whole
    assert read_json(world / FITTING) == whole._asdict()


def test_whoever_computes_a_shard_reads_its_prompts_alone(world: Path) -> None:
    """The stage's process has measured all of them."""
    whole = draw("one", shard_prompts=2)
    settings = SampleEntry(
        policy="sft", of="rollout", n=2, prompts=0, temperature=1.0, min_p=0.0, max_new_tokens=6, batch_size=8, shard_prompts=2
    )
    rows = [{"id": f"p{number}", "prompt": prompt} for number, prompt in enumerate(PROMPTS)]
    fitting = fitting_of(world / "artifacts/policy/sft", rows, 6, "sample@one")
    sample.PROMPTS.unlink()
    with sample.completing(SampleStage(seed=3, threads=1, sample=settings), fitting, "sample@one") as compute:
        (world / "shard").mkdir()
        compute(1, rows[2:4], world / "shard")
    assert read_shard(world / "shard" / sample.TABLE) == whole[4:8]


def test_a_completion_does_not_depend_on_the_shard_that_it_is_in(world: Path) -> None:
    assert [row["ids"] for row in draw("one", shard_prompts=1)] == [row["ids"] for row in draw("one")]
