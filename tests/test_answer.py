"""Claims about answers: which prompts are answered, how often and in which order, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from plumbline.evaluation.divergence import completion_logps
from plumbline.evaluation.section import EvaluateSection
from plumbline.models.chat import prompt_ids
from plumbline.models.decoding_values import Decoding
from plumbline.models.loading import load_policy
from plumbline.models.tokenizers import train_tokenizer
from plumbline.pipeline.engine import Engine
from plumbline.pipeline.records import read_json, read_jsonl, write_jsonl
from plumbline.pipeline.shard_files import read_table
from stages.answer import AnswerStage, answer_row, run
from tests.interrupting import contents, require_resuming

SHARD_PROMPTS = 2
TEXTS = ["What is 3 plus 4?", "It is 7.", "사과는 무슨 색인가요?", "빨간색이에요."] * 4


def make_policy(folder: Path, seed: int, context_tokens: int = 64) -> None:
    """A random Llama of a few thousand parameters with a tokenizer."""
    import torch

    tokenizer = train_tokenizer(TEXTS, 300)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=context_tokens,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def section(**changes: object) -> EvaluateSection:
    settings: dict[str, object] = {
        "policies": ["sft", "dpo"],
        "against": "sft",
        "judge": "none",
        "reward": "none",
        "max_new_tokens": 8,
    }
    return EvaluateSection(**{**settings, **changes})  # type: ignore[arg-type]


def ask(project: Path, contents: list[str]) -> None:
    rows = [{"id": f"q{n}", "prompt": [{"role": "user", "content": text}]} for n, text in enumerate(contents)]
    write_jsonl(project / "artifacts/data/prompts/test.jsonl", rows)


def answers(project: Path, evaluate: EvaluateSection, engine: Engine | None = None) -> list[dict]:
    engine = engine or Engine()
    run(AnswerStage(seed=3, threads=1, engine=engine, policy="sft", shard_prompts=SHARD_PROMPTS, evaluate=evaluate))
    return read_table(project / "artifacts/answer/sft/completions")


def table_bytes(name: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(Path("artifacts/answer/sft", name).iterdir())}


@pytest.fixture
def world(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_STAGE", "answer@sft")
    make_policy(project / "artifacts/policy/sft", seed=1)
    ask(project, ["What is 3 plus 4?", "사과는 무슨 색인가요?", "What?"])
    return project


def test_every_prompt_has_the_configured_number_of_answers_side_by_side(world: Path) -> None:
    rows = answers(world, section(samples=3))
    assert [(row["id"], row["index"]) for row in rows] == [(f"q{n}", index) for n in range(3) for index in range(3)]
    assert {row["policy"] for row in rows} == {"sft"}


def test_an_answer_is_the_text_of_its_tokens(world: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world / "artifacts/policy/sft")
    for row in answers(world, section()):
        assert row["completion"] == [{"role": "assistant", "content": tokenizer.decode(row["ids"], skip_special_tokens=True)}]
        assert row["tokens"] == len(row["ids"]) <= 8
        assert row["finished"] == (row["ids"][-1] == tokenizer.eos_token_id)


def test_the_same_seed_gives_the_same_bytes(world: Path) -> None:
    answers(world, section())
    first = table_bytes("completions")
    answers(world, section())
    assert [*table_bytes("completions")] == ["000000.parquet", "000001.parquet"]
    assert table_bytes("completions") == first


def test_answers_at_temperature_1_stand_beside_those_at_another_from_the_same_seed(world: Path) -> None:
    answers(world, section(temperature=0.5, samples=3, samples_at_1=2))
    beside = table_bytes("completions_at_1")
    rows = answers(world, section(temperature=1.0, samples=2))
    assert table_bytes("completions") == beside
    assert [(row["id"], row["index"]) for row in rows] == [(f"q{n}", index) for n in range(3) for index in range(2)]


@pytest.mark.parametrize("changes", [{"temperature": 1.0, "samples_at_1": 2}, {"temperature": 0.5, "samples_at_1": 0}])
def test_nothing_is_drawn_twice_at_temperature_1_nor_against_the_users_wish(world: Path, changes: dict[str, Any]) -> None:
    answers(world, section(**changes))
    assert [file.name for file in (world / "artifacts/answer/sft").iterdir()] == ["completions"]


def test_the_model_is_loaded_once_for_both_temperatures(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []
    monkeypatch.setattr("plumbline.models.loading.load_policy", lambda folder: loaded.append(folder) or load_policy(folder))
    answers(world, section(temperature=0.5, samples_at_1=1))
    assert len(loaded) == 1


def test_answers_at_temperature_1_have_their_log_probability(world: Path) -> None:
    rows = answers(world, section(temperature=1.0))
    tokenizer = AutoTokenizer.from_pretrained(world / "artifacts/policy/sft")
    prompts = [prompt_ids(tokenizer, row["prompt"]) for row in rows]
    expected = completion_logps(load_policy(world / "artifacts/policy/sft"), prompts, [row["ids"] for row in rows])
    assert [row["logp"] for row in rows] == pytest.approx(expected, abs=1e-4)
    assert {row["logp"] for row in answers(world, section(temperature=0.5))} == {None}


NARROW: list[dict[str, Any]] = [{"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {"repetition_penalty": 1.1}]


@pytest.mark.parametrize("changes", [{"temperature": 0.7}, *NARROW])
def test_answers_of_any_other_decoding_stand_beside_those_of_the_whole_distribution(world: Path, changes: dict[str, Any]) -> None:
    whole = answers(world, section())
    narrow = answers(world, section(samples_at_1=2, **changes))
    assert {row["logp"] for row in narrow} == {None}
    assert [row["ids"] for row in narrow] != [row["ids"] for row in whole]
    assert read_table(world / "artifacts/answer/sft/completions_at_1") == whole


def test_greedy_answers_are_allowed_once_for_each_prompt(world: Path) -> None:
    rows = answers(world, section(temperature=0.0, samples=1))
    assert {row["logp"] for row in rows} == {None}
    assert all(row["logp"] < 0 for row in read_table(world / "artifacts/answer/sft/completions_at_1"))
    with pytest.raises(ValueError, match=r"evaluate\.samples: expected 1 at temperature 0 \(greedy\), .* found 2"):
        answers(world, section(temperature=0.0, samples=2))


def answered_by(world: Path, generation_config: dict[str, Any], **changes: Any) -> list[dict]:
    """Answers of a policy whose own decoding is in its generation_config.json."""
    (world / "artifacts/policy/sft/generation_config.json").write_text(json.dumps(generation_config))
    return answers(world, section(**changes))


def test_null_decodes_as_the_model_says_and_the_figures_hold_what_it_was(world: Path) -> None:
    stated = answers(world, section(temperature=0.7, top_p=0.9, repetition_penalty=1.2))
    own = {"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.9}
    rows = answered_by(world, own, temperature=None, top_k=0, top_p=None, min_p=None, repetition_penalty=1.2)
    assert rows == stated
    figures = read_json(world / "artifacts/figures/answer/sft.json")
    assert Decoding(**{name: figures[name] for name in Decoding._fields}) == Decoding(0.7, 0, 0.9, 0.0, 1.2)
    assert (figures["answers"], figures["length_tokens"]) == (6, sum(row["tokens"] for row in rows) / 6)


def test_null_of_a_model_that_says_nothing_is_the_policy_itself(world: Path) -> None:
    whole = answers(world, section())
    assert answered_by(world, {}, **dict.fromkeys(Decoding._fields)) == whole  # with logp
    assert not (world / "artifacts/answer/sft/completions_at_1").exists()


def test_several_answers_of_a_model_that_is_greedy_by_itself_are_refused(world: Path) -> None:
    with pytest.raises(ValueError, match=r"answer@sft: expected one completion of each prompt by greedy decoding .* found 2"):
        answered_by(world, {"do_sample": False}, temperature=None)
    assert len(answered_by(world, {"do_sample": False}, temperature=None, samples=1)) == 3


def test_data_without_families_gives_null(world: Path) -> None:
    assert {(row["family"], row["language"]) for row in answers(world, section())} == {(None, None)}


def test_families_of_the_data_are_passed_on() -> None:
    row = {"id": "q", "index": 0, "prompt": [], "completion": [], "finished": True, "tokens": 1, "ids": [1], "intent": "x"}
    kept = answer_row({**row, "family": "fact", "language": "ko"}, "dpo")
    assert (kept["family"], kept["language"], kept["policy"]) == ("fact", "ko", "dpo")
    assert not {"intent", "expects", "answer"} & {*kept}


def test_what_the_data_state_of_a_prompt_is_passed_on() -> None:
    row = {"id": "q", "index": 0, "prompt": [], "completion": [], "finished": True, "tokens": 1, "ids": [1]}
    rules = [{"id": "punctuation:no_comma"}]
    kept = answer_row({**row, "expects": "refusal", "answer": "72", "tests": ["assert f()"], "instructions": rules}, "dpo")
    assert (kept["expects"], kept["answer"], kept["instructions"]) == ("refusal", "72", rules)
    assert "tests" not in kept


def test_instructions_that_nothing_here_can_check_are_said_before_any_answer_is_drawn(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row | {"instructions": [{"id": "punctuation:no_comma"}]} for row in read_jsonl("artifacts/data/prompts/test.jsonl")]
    write_jsonl("artifacts/data/prompts/test.jsonl", rows)
    monkeypatch.setattr("plumbline.checking.following.find_spec", lambda name: None)
    monkeypatch.setattr("stages.answer.Completer", lambda *_, **__: pytest.fail("answers were drawn"))
    with pytest.raises(ValueError, match="ifeval"):
        answers(world, section())


def test_a_prompt_that_leaves_no_room_is_refused_not_cut(world: Path) -> None:
    ask(world, ["What is 3 plus 4? " * 40])
    with pytest.raises(ValueError, match="1 of 1 prompts"):
        answers(world, section())


def test_a_file_without_prompts_is_refused(world: Path) -> None:
    ask(world, [])
    with pytest.raises(ValueError, match="found none"):
        answers(world, section())


def test_a_section_that_cannot_work_is_refused_before_any_work(world: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluate\.samples: expected at least 1, found 0"):
        answers(world, section(samples=0))
    assert not (world / "artifacts/answer").exists()


def test_an_interrupted_run_goes_on_from_its_shards_and_answers_alike(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(world, [f"What is {number} plus 4?" for number in range(7)])
    outputs = ["artifacts/answer/sft", "artifacts/figures/answer/sft.json"]
    require_resuming(monkeypatch, lambda: answers(world, section(temperature=0.5)), outputs, done=3)


@pytest.mark.slow
def test_workers_answer_as_the_stage_itself(world: Path) -> None:
    ask(world, [f"What is {number} plus 4?" for number in range(7)])
    outputs = ["artifacts/answer/sft", "artifacts/figures/answer/sft.json"]
    answers(world, section(temperature=0.5))
    here = contents(outputs)
    answers(world, section(temperature=0.5), Engine(shards="processes", workers=2))
    assert contents(outputs) == here


def test_an_answer_does_not_depend_on_the_shard_that_it_is_in(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(world, [f"What is {number} plus 4?" for number in range(5)])
    small = answers(world, section())
    monkeypatch.setitem(globals(), "SHARD_PROMPTS", 1024)
    whole = answers(world, section())
    assert [row["ids"] for row in small] == [row["ids"] for row in whole]
