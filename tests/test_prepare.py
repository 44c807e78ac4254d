"""The stage `prepare`: its outputs, byte for byte; its report; the closed world, a hub model's tokenizer and Korean data."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from published_models import write_header

from plumbline.data import gathering, parallel, writing
from plumbline.data.schema import ROLES, FilesData, Policy, Role, typed_data
from plumbline.data.scripts import language
from plumbline.models.architecture import HubModel, ScratchModel
from plumbline.models.chat import encode_demonstrations
from plumbline.models.tokenizers import SMALLEST_VOCABULARY, train_tokenizer
from plumbline.pipeline.composing import CONF, register, require_sound, typed
from plumbline.pipeline.records import read_json, read_jsonl
from plumbline.rows import last_turn, text_of
from stages.prepare import PrepareSection, PrepareStage, run
from tests.preparing import NO_SHARED_DATA, SHARED, lenient, source, write_rows

OUT = Path("scratch/prepare")
FIGURES = OUT / "artifacts/figures/prepare/prepare.json"
PAGE = OUT / "artifacts/data_report/section.html"


def tiny(**settings: Any) -> ScratchModel:
    """A model from scratch; only its tokenizer and context matter here."""
    sizes = {"vocabulary_size": 400, "context_tokens": 256} | settings
    return ScratchModel(**sizes, hidden_size=8, layers=1, heads=1, intermediate_size=8)


def world() -> Any:
    """The closed world's conf."""
    return typed_data(OmegaConf.load(CONF / "data/closed_world.yaml"))


def stage(data: Any, model: Any = None, inputs: Path | str = "in", threads: int = 1, scale: float = 1.0) -> PrepareStage:
    return PrepareStage(
        seed=17, threads=threads, inputs=str(inputs), model=model or tiny(), data=data, prepare=PrepareSection(scale)
    )


def few_rows() -> FilesData:
    """Demonstrations, preferences, labels and prompts of a few rows."""
    write_rows(Path("in/sft.jsonl"), [{"prompt": f"Say {i}.", "response": f"It is {i}."} for i in range(60)])
    pairs = [
        {"prompt": f"Which of {i}?", "chosen": f"{i} it is.", "rejected": f"{i}, or perhaps not, I think."} for i in range(40)
    ]
    write_rows(Path("in/pairs.jsonl"), [*pairs, pairs[0], {**pairs[0], "chosen": "same", "rejected": "same"}])
    write_rows(Path("in/kto.jsonl"), [{"prompt": f"Well, {i}?", "completion": f"{i}!", "label": i % 2 == 0} for i in range(20)])
    return FilesData(
        pretrain=Role([source("sft.jsonl")]),
        sft=Role([source("sft.jsonl")]),
        preferences=Role([source("pairs.jsonl")]),
        unpaired=Role([source("kto.jsonl")]),
        prompts=Role([source("sft.jsonl")]),
        validation_fraction=0.2,
        test_fraction=0.2,
        policy=lenient(near_duplicates="off"),
    )


def digests() -> dict[str, str]:
    return {
        str(path.relative_to(OUT)): hashlib.md5(path.read_bytes()).hexdigest()
        for path in sorted(OUT.rglob("*"))
        if path.is_file() and "runs" not in path.parts
    }


def test_outputs_are_complete_and_the_same_in_every_run_and_with_two_processes(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(stage(few_rows()))
    first = digests()
    splits = {f"artifacts/data/{role}/{split}.jsonl" for role in ROLES for split in ("train", "validation")}
    tokenizer = {f"artifacts/tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")}
    assert set(first) == splits | tokenizer | {
        "artifacts/data/prompts/test.jsonl",
        "artifacts/data_report/section.html",
        "artifacts/figures/prepare/prepare.json",
    }
    monkeypatch.setattr(parallel, "_WORTH_PROCESSES", 2)
    monkeypatch.setattr(gathering, "CHUNK_ROWS", 25)
    monkeypatch.setattr(writing, "CHUNK_ROWS", 25)
    run(stage(few_rows(), threads=2))
    assert digests() == first
    written = b"".join((OUT / name).read_bytes() for name in first)
    assert str(project).encode() not in written  # no path of this machine in what others share


def test_figures_add_up(project: Path) -> None:
    run(stage(few_rows()))
    figures = read_json(FIGURES)
    for role in ROLES:
        dropped = sum(count for name, count in figures.items() if name.startswith(f"{role}.dropped."))
        rows = sum(count for name, count in figures.items() if name.startswith(f"{role}.") and name.endswith(".rows"))
        assert figures[f"{role}.rows_in"] == figures[f"{role}.kept"] + dropped
        assert figures[f"{role}.kept"] == rows
    assert figures["preferences.dropped.identical"] == 1
    assert figures["preferences.dropped.duplicate"] == 1
    assert figures["preferences.train.length_gap_tokens"] < 0  # the rejected answers are the longer ones
    assert figures["preferences.train.chosen_longer_fraction"] == 0


def test_the_report_shows_token_boundaries_and_the_loss_mask(project: Path) -> None:
    run(stage(few_rows()))
    page = PAGE.read_text()
    assert "<summary>sft train</summary>" in page
    shown = page.split("<summary>sft train</summary>")[1].split("</details>")[0]
    prompt, answer = shown.split("&lt;|assistant|&gt;")
    assert 'class="loss"' not in prompt
    assert answer.count('class="loss"') == answer.count("<span")
    assert '<span class="loss">&lt;|end|&gt;</span>' in answer
    assert "preferences train chosen" in page
    assert "preferences train rejected" in page
    assert "pairs.jsonl:42" in page  # the row with identical answers
    assert "http" not in page


def test_text_in_the_report_is_never_markup(project: Path) -> None:
    write_rows(
        Path("in/a.jsonl"), [{"prompt": "<script>alert(1)</script>", "response": "<b>no</b>"}, {"prompt": "<img>", "x": 1}]
    )
    run(stage(FilesData(sft=Role([source("a.jsonl", format="prompt_response", name="<i>a</i>")]), policy=lenient())))
    page = PAGE.read_text()
    for markup in ("<script>", "<img>", "<b>", "<i>a"):
        assert markup not in page


def write_model(folder: Path) -> None:
    """The files of a model but for its tokenizer; of its weights `prepare` reads the header alone."""
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    write_header(folder / "model.safetensors", {"weight": [8]})


def test_a_hub_model_brings_its_own_tokenizer_and_what_it_lacks_is_reported(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = train_tokenizer(["some words of a model"] * 9, 300)
    tokenizer.chat_template = None
    tokenizer.save_pretrained("model")
    write_model(Path("model"))
    run(stage(few_rows(), HubModel(path="model", context_tokens=128)))
    assert "chat template: the model has none" in capsys.readouterr().out
    assert "message['role']" in (OUT / "artifacts/tokenizer/chat_template.jinja").read_text()
    assert read_json(FIGURES)["sft.kept"] > 40


def test_under_dvc_a_model_folder_is_pinned_by_its_content(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_tokenizer(["some words of a model"] * 9, 300).save_pretrained("model")
    write_model(Path("model"))
    monkeypatch.setenv("DVC_STAGE", "prepare")
    with pytest.raises(
        ValueError, match=r"the model's file in conf/model: revision: expected '([0-9a-f]{16})'.* found None"
    ) as caught:
        run(stage(few_rows(), HubModel(path="model", context_tokens=128)))
    revision = str(caught.value).split("expected '")[1][:16]
    run(stage(few_rows(), HubModel(path="model", revision=revision, context_tokens=128)))
    Path("model/model.safetensors").write_text("other weights")
    with pytest.raises(ValueError, match=f"found '{revision}'"):
        run(stage(few_rows(), HubModel(path="model", revision=revision, context_tokens=128)))


def test_a_folder_without_a_model_is_refused(project: Path) -> None:
    with pytest.raises(ValueError, match=r"no causal LM can be trained from 'in': it has no config\.json"):
        run(stage(few_rows(), HubModel(path="in", context_tokens=128)))
    write_model(Path("in"))
    with pytest.raises(
        ValueError, match=r"the model's file in conf/model: path: expected a tokenizer in in, found no tokenizer\.json"
    ):
        run(stage(few_rows(), HubModel(path="in", context_tokens=128)))
    assert not list(OUT.rglob("*.jsonl"))


def test_a_source_that_cannot_be_read_stops_the_stage_before_any_work(project: Path) -> None:
    data = few_rows()
    data.unpaired.sources[0].files = ["missing.jsonl"]
    with pytest.raises(ValueError, match=r"expected a file at 'in/missing.jsonl', found none; .* kto.jsonl"):
        run(stage(data))
    assert not list(OUT.rglob("*.jsonl"))


def test_nothing_to_train_on_is_an_error(project: Path) -> None:
    write_rows(Path("in/a.jsonl"), [{"prompt": "a?", "response": ""}])
    with pytest.raises(ValueError, match="sft: expected rows to train on, found none among 1 rows"):
        run(stage(FilesData(sft=Role([source("a.jsonl", format="prompt_response")]), policy=lenient())))


def test_the_closed_world_comes_through_complete(project: Path) -> None:
    Path("in").mkdir()
    run(stage(world(), tiny(vocabulary_size=1024), scale=0.02))
    figures = read_json(FIGURES)
    for role in ("pretrain", "sft", "prompts"):
        assert figures[f"{role}.rows_in"] == figures[f"{role}.kept"] > 0
    assert figures["sft.train.script.Hangul"] > 0.1
    prompts = read_jsonl(OUT / "artifacts/data/prompts/test.jsonl")
    assert {"id", "prompt", "family", "language"} <= set(prompts[0])
    assert len({row["id"] for row in prompts}) == len(prompts)
    assert read_jsonl(OUT / "artifacts/data/preferences/train.jsonl") == []


def test_a_scale_is_refused_with_data_from_files(project: Path) -> None:
    with pytest.raises(ValueError, match=r"prepare\.scale: expected 1"):
        run(stage(few_rows(), scale=0.5))


def test_every_data_conf_composes_and_its_values_fit(project: Path) -> None:
    register("prepare", PrepareStage)
    Path("x").mkdir()
    with initialize_config_dir(str(CONF), version_base=None):
        for conf in sorted((CONF / "data").glob("*.yaml")):
            config = typed(compose("prepare", overrides=[f"data={conf.stem}", "inputs=x"]))
            assert typed_data(config.data)
            require_sound(config)


def test_korean_demonstrations_reach_sft_with_loss_on_the_answer_and_its_end_only(project: Path) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    Path("in").mkdir()
    run(stage(world(), tiny(vocabulary_size=1024), scale=0.02))
    rows = [row for row in read_jsonl(OUT / "artifacts/data/sft/train.jsonl") if language(text_of(row["completion"])) == "ko"]
    assert len(rows) >= 5
    tokenizer = AutoTokenizer.from_pretrained(OUT / "artifacts/tokenizer")
    sizes = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    trainer = SFTTrainer(
        LlamaForCausalLM(sizes),
        SFTConfig(output_dir="unused", report_to=[], bf16=False, use_cpu=True, max_length=None, completion_only_loss=True),
        train_dataset=Dataset.from_list(encode_demonstrations(tokenizer, rows)),
        processing_class=tokenizer,
    )
    for row, inputs in zip(rows, trainer.train_dataset, strict=True):
        with_loss = [token for token, label in zip(inputs["input_ids"], inputs["labels"], strict=True) if label != -100]
        assert tokenizer.decode(with_loss) == text_of(row["completion"]) + "<|end|>"
        prompt = "".join(f"<|{turn['role']}|>{turn['content']}<|end|>" for turn in row["prompt"])
        assert tokenizer.decode(inputs["input_ids"][: -len(with_loss)]) == prompt + "<|assistant|>"
    shown = visible_text(PAGE.read_text().split("<summary>sft train (ko)</summary>")[1].split("</details>")[0])
    assert any(text_of(row["completion"]) in shown for row in rows)


def visible_text(page: str) -> str:
    """A page without its tags."""
    return "".join(part.split("<")[0] for part in page.split(">"))


def test_tokens_that_are_bytes_of_a_character_are_counted(project: Path) -> None:
    write_rows(
        Path("in/a.jsonl"), [{"prompt": "plain words " * 9, "response": "plain words"}, {"prompt": "뷁", "response": "뷁"}]
    )
    run(stage(FilesData(sft=Role([source("a.jsonl")]), policy=lenient()), tiny(vocabulary_size=SMALLEST_VOCABULARY)))
    figures = read_json(FIGURES)
    tokens = figures["sft.train.prompt_tokens_sum"] + figures["sft.train.completion_tokens_sum"]
    assert figures["sft.train.byte_token_fraction"] == round(6 / tokens, 4)  # without merges a syllable is its three bytes
    assert '<u data-tokens="3">뷁</u>' in PAGE.read_text()


@pytest.mark.skipif(not SHARED.is_dir(), reason=NO_SHARED_DATA)
def test_korean_instructions_come_through_whole(project: Path) -> None:
    data = FilesData(
        sft=Role(
            [
                source("instructions/ko_alpaca_3000.json", name="ko_alpaca", limit=600),
                source("instructions/korean_chatbot_3000.csv", name="chatbot", limit=600),
            ]
        ),
        policy=Policy(personal_data="off"),
    )
    run(stage(data, tiny(vocabulary_size=2048, context_tokens=1024), SHARED))
    figures = read_json(FIGURES)
    assert figures["sft.kept"] >= 1190
    assert figures["sft.train.script.Hangul"] > 0.9
    page = PAGE.read_text()
    assert "원자의 구조를" in visible_text(page)
    assert "\ufffd" not in page  # the bytes of a character are shown together, whatever tokens they took
    prompts = {last_turn(row["prompt"]) for row in read_jsonl(OUT / "artifacts/data/sft/train.jsonl")}
    assert any("3박4일 놀러가고 싶다" in prompt for prompt in prompts)
