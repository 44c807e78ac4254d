"""What is wrong with a model from elsewhere is said by `check`, in one sentence that names the file of conf/model, and again by its stages."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from ppo_tiny import llama_config
from published_models import COMMIT, PARAMS, complaints, edit_json, save_model, write_headers
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    LlamaForSequenceClassification,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from plumbline.hub_models import wrong_models
from plumbline.models.architecture import HubModel, load_hub_model
from plumbline.models.size import parameter_count
from plumbline.models.tokenizers import SMALLEST_VOCABULARY, train_tokenizer
from plumbline.pipeline.digests import pin_problems
from stages.prepare import existing_tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 269060552\n"
TINY: dict[str, Any] = {"vocab_size": 11, "d_model": 8, "num_layers": 1, "num_heads": 1, "d_kv": 8, "d_ff": 8}
BART: dict[str, Any] = {
    "vocab_size": 11, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8,
    "encoder_attention_heads": 1, "decoder_attention_heads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "sound")


def shard(folder: Path) -> None:
    """Saves the weights in several files."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="4KB")
    assert len([*folder.glob("model-*.safetensors")]) > 2


def add_adapter(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)


# ---- folders that nothing can be made of --------------------------------------------------------------------------------


def gguf_alone(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "model-q4.gguf").write_bytes(b"GGUF")


def gguf_with_config(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-q4.gguf")


def adapter_alone(folder: Path) -> None:
    add_adapter(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()


def adapter_with_config(folder: Path) -> None:
    add_adapter(folder)
    (folder / "model.safetensors").unlink()


def classifier(folder: Path) -> None:
    LlamaForSequenceClassification(llama_config(11, num_labels=2)).save_pretrained(folder)


def without_head(folder: Path) -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(folder)


def missing_shard(folder: Path) -> None:
    shard(folder)
    next(folder.glob("model-00002-of-*.safetensors")).unlink()


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def truncated_shard(folder: Path) -> None:
    shard(folder)
    file = next(folder.glob("model-00002-of-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])


def without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()


def larger_tokenizer(folder: Path) -> None:
    train_tokenizer(["some words of another model"] * 9, 270).save_pretrained(folder)


def unknown_vocabulary(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", model={"type": "Future"})


def template(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text) and None


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def configured(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "GGUF alone": (gguf_alone, "it holds GGUF files"),
    "GGUF with a config": (gguf_with_config, "it holds GGUF files"),
    "an adapter alone": (adapter_alone, "it is an adapter (LoRA) of "),
    "an adapter with a config": (adapter_with_config, "it is an adapter (LoRA) of "),
    "an adapter beside a whole model": (add_adapter, "it holds an adapter (LoRA) beside a whole model"),
    "an empty folder": (lambda folder: [file.unlink() for file in folder.iterdir()] and None, "it has no config.json"),
    "a classifier": (classifier, "it is a LlamaForSequenceClassification, not a causal LM: its output layer would be drawn"),
    "a model without a head": (without_head, "it is a BertModel, not a causal LM: its output layer would be drawn"),
    "a head of another name": (configured(architectures=["MyLlamaForRewards"]), "it is a MyLlamaForRewards, not a causal LM: its output layer"),
    "T5": (lambda folder: T5ForConditionalGeneration(T5Config(**TINY)).save_pretrained(folder), "it is a T5ForConditionalGeneration, an encoder"),
    "BART": (
        lambda folder: BartForConditionalGeneration(BartConfig(**BART)).save_pretrained(folder),
        "it is a BartForConditionalGeneration, an encoder",
    ),
    "an encoder of images": (
        configured(model_type="vit", architectures=["ViTModel"]),
        "it is a ViTModel, for which transformers has no causal LM",
    ),
    "quantised weights": (configured(quantization_config={"quant_method": "gptq"}), "its weights are quantised (gptq)"),
    "a quantisation that is not a mapping": (configured(quantization_config=["gptq"]), "its weights are quantised (method unknown)"),
    "a kind of the future": (
        configured(model_type="future9", architectures=["FutureForCausalLM"]),
        "does not know its kind (future9). Update transformers",
    ),
    "a kind with code of its own": (
        configured(model_type="mine", architectures=["MineForCausalLM"], auto_map={"AutoModelForCausalLM": "mine.Mine"}),
        "it comes with code of its own, which is not run here",
    ),
    "no kind": (configured(model_type=None), "its config.json names no model_type"),
    "a config that is a list": (written("config.json", "[]"), "its config.json cannot be read: expected a mapping, found list"),
    "a config that is empty": (written("config.json", ""), "its config.json cannot be read: Expecting value"),
    "a config that is an empty mapping": (written("config.json", "{}"), "its config.json names no model_type"),
    "a config that is not JSON": (written("config.json", "a: 1"), "its config.json cannot be read: Expecting value"),
    "a value of another type": (configured(hidden_size="wide"), "its config.json cannot be read ("),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "it has no model.safetensors"),
    "a missing shard": (missing_shard, "1 are missing (first: model-00002-of-"),
    "a cut shard": (truncated_shard, "its model-00002-of-"),
    "cut weights": (truncated, "its model.safetensors cannot be read ("),
    "weights that are none": (written("model.safetensors", "<html>"), "its model.safetensors cannot be read ("),
    "an index that is a list": (
        lambda folder: ((folder / "model.safetensors").rename(folder / "model.safetensors.index.json").write_text("[]") and None),
        "its model.safetensors.index.json cannot be read: expected a mapping",
    ),
    "weights as a pointer": (written("model.safetensors", POINTER), "it holds pointers of Git LFS instead of model.safetensors. Run `git lfs pull`"),
    "a tokenizer as a pointer": (written("tokenizer.json", POINTER), "it holds pointers of Git LFS instead of tokenizer.json"),
    "no tokenizer": (without_tokenizer, "found no tokenizer.json and no other vocabulary"),
    "a tokenizer that is not JSON": (written("tokenizer.json", "<html>"), "its tokenizer.json cannot be read: Expecting value"),
    "a tokenizer without its parts": (written("tokenizer.json", "{}"), "that loads, found one that does not"),
    "a vocabulary of the future": (unknown_vocabulary, "that loads, found one that does not"),
    "values of a tokenizer that are a list": (
        written("tokenizer_config.json", "[]"),
        "its tokenizer_config.json cannot be read: expected a mapping",
    ),
    "a tokenizer without an end": (lambda folder: edit_json(folder / "tokenizer_config.json", eos_token=None), "eos_token: expected an end-of-"),
    "another model's tokenizer": (larger_tokenizer, "expected an embedding for each token, found 261 rows in the model and ids up to 269"),
    "a broken template": (template("{% for m in messages %}{{ m["), "cannot render a conversation (roles: user assistant): "),
    "a template that refuses all": (template("{{ raise_exception('no') }}"), "cannot render a conversation (roles: user assistant): no. Correct"),
}  # fmt: skip
"""Kinds of folders: what makes one of a sound folder, and what is said of it."""


@pytest.mark.parametrize("kind", [*WRONG])
def test_a_folder_of_which_no_policy_can_be_made_is_refused_by_check_and_by_prepare(
    kind: str, sound: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    make, reason = WRONG[kind]
    make(folder)
    (complaint,) = complaints(folder)
    assert complaint.startswith("conf/model/mine.yaml: ")
    assert reason in complaint
    assert len(complaint) < 700
    with pytest.raises(ValueError, match="the model's file in conf/model: ") as refused:
        existing_tokenizer(HubModel(path=str(folder), size="tiny"))
    assert str(refused.value) == complaint.replace("conf/model/mine.yaml", "the model's file in conf/model")


def with_vision(folder: Path) -> None:
    """Qwen3.5, which reads images: its causal LM is the part that reads text."""
    text = {
        "vocab_size": SMALLEST_VOCABULARY + 9, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
        "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "tie_word_embeddings": True,
    }  # fmt: skip
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
        "num_position_embeddings": 16,
    }
    config = Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=True)
    Qwen3_5ForConditionalGeneration(config).save_pretrained(folder)


def pointers_beside(folder: Path) -> None:
    """Weights of other libraries, cloned without their content, which are not read."""
    for name in ("tf_model.h5", "flax_model.msgpack", "pytorch_model.bin", "model.onnx"):
        (folder / name).write_text(POINTER)


RIGHT: dict[str, Callable[[Path], None]] = {
    "as it is": lambda folder: None,
    "in several files": shard,
    "with GGUF files beside": lambda folder: (folder / "model-q4.gguf").write_bytes(b"GGUF") and None,
    "without a template": lambda folder: (folder / "chat_template.jinja").unlink(),
    "with a class of another name": configured(architectures=["MyLlamaForCausalLM"]),
    "without the name of its class": configured(architectures=None),
    "with code of its own for a kind that is known": configured(auto_map={"AutoModelForCausalLM": "mine.Mine"}),
    "without a precision": configured(dtype=None, torch_dtype=None),
    "with eyes": with_vision,
    "with pointers to weights that are not read": pointers_beside,
    "with files of Git": lambda folder: (folder / ".gitattributes").write_text("*.safetensors filter=lfs") and None,
}


@pytest.mark.parametrize("kind", [*RIGHT])
def test_a_folder_that_loads_is_not_refused(kind: str, sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    RIGHT[kind](folder)
    assert complaints(folder) == []
    assert existing_tokenizer(HubModel(path=str(folder), size="tiny")) is not None


def test_of_a_model_that_reads_images_the_text_part_is_loaded_and_counted(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    with_vision(folder)
    model = load_hub_model(HubModel(path=str(folder), size="tiny"))
    assert type(model).__name__ == "Qwen3_5ForCausalLM"
    assert parameter_count(str(folder), None) == model.num_parameters()


# ---- paths --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "revision", "complaint"),
    [
        ("models/smollm2", None, "expected a folder at models/smollm2, or a hub id with its commit as revision; found neither. Copy"),
        ("smollm2", None, "expected a folder at smollm2, or a hub id with its commit as revision; found neither. Copy"),
        ("models/smollm2", "0123456789abcdef", "because the revision 0123456789abcdef is the digest of a folder"),
        ("/models/smollm2", COMMIT, "expected a folder at /models/smollm2, found none. Copy the model there, or correct"),
        ("./smollm2", COMMIT, "expected a folder at ./smollm2, found none"),
        ("../models/smollm2", COMMIT, "expected a folder at ../models/smollm2, found none"),
        ("models/small/smollm2", COMMIT, "expected a folder at models/small/smollm2, found none"),
        ("models/smollm2/", COMMIT, "expected a folder at models/smollm2/, found none"),
        ("my models/smollm2", COMMIT, "expected a folder at my models/smollm2, found none"),
        ("~/smollm2", COMMIT, "in which ~ is not expanded. Write /home/someone/smollm2"),
        ("https://hub.example/owner/name/tree/main", COMMIT, "Write the id alone: owner/name"),
        ("a.gguf", COMMIT, "found the file a.gguf. GGUF files are for llama.cpp"),
        ("there/model.safetensors", COMMIT, "found the file there/model.safetensors. Name the folder there"),
        ("there/modle", None, "Did you mean 'there/model'?"),
    ],
)  # fmt: skip
def test_what_is_no_folder_is_called_a_hub_id_only_if_it_could_be_one(
    path: str, revision: str | None, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "there/model").mkdir(parents=True)
    for name in ("a.gguf", "there/model.safetensors"):
        (tmp_path / name).write_bytes(b"")
    (message,) = complaints(path, revision)
    assert message.startswith("conf/model/mine.yaml: path: ")
    assert complaint in message
    assert "hf download" not in message
    with pytest.raises(ValueError, match=r"the model's file in conf/model: path: "):
        existing_tokenizer(HubModel(path=path, revision=revision))


def test_a_judge_that_is_not_there_is_complained_of_under_its_own_key() -> None:
    (complaint,) = pin_problems("judges/critic", None, "model")
    assert complaint.startswith("model: expected a folder at judges/critic, or a hub id")


# ---- the hub ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which may not be asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    return tmp_path / "hub/models--owner--name/snapshots"


def test_a_hub_id_that_is_not_in_the_cache_is_refused_if_the_hub_may_not_be_asked(cache: Path) -> None:
    (complaint,) = complaints("owner/name", COMMIT)
    assert complaint.startswith(
        "conf/model/mine.yaml: path: no causal LM can be trained from 'owner/name': it is not in the local cache"
    )
    assert f"`hf download owner/name --revision {COMMIT}`" in complaint
    (cache / COMMIT).mkdir(parents=True)
    (complaint,) = complaints("owner/name", "f" * 40)
    assert f"The cache has the revision {COMMIT}" in complaint


def test_a_hub_id_that_was_loaded_already_may_be_missing(cache: Path) -> None:
    configs: dict[Any, Any] = {
        ("prepare", None): SimpleNamespace(model=HubModel(path="owner/name", revision=COMMIT, size="tiny"))
    }
    judge = SimpleNamespace(backend="transformers", model="owner/judge", revision=COMMIT)
    configs["evaluate", None] = SimpleNamespace(judge=judge)
    params, loaded = PARAMS | {"evaluate": {"judge": "local"}}, {("prepare", None), ("pretrain", None)}
    assert len([*wrong_models(configs, params, {("prepare", None)})]) == 2
    assert "conf/judge/local.yaml" in next(iter(wrong_models(configs, params, loaded)))
    assert [*wrong_models(configs, params, loaded | {("evaluate", None)})] == []


def test_a_hub_id_in_the_cache_is_checked_as_a_folder_is(cache: Path, sound: Path) -> None:
    shutil.copytree(sound, cache / COMMIT)
    assert complaints("owner/name", COMMIT) == []
    edit_json(cache / COMMIT / "config.json", quantization_config={"quant_method": "awq"})
    assert "its weights are quantised (awq)" in complaints("owner/name", COMMIT)[0]


def test_what_the_hub_may_still_give_is_not_complained_of(cache: Path, sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("plumbline.models.model_files._tensors_on_hub", lambda *_: None)  # no connection
    assert complaints("owner/name", COMMIT) == []
    (cache / COMMIT).mkdir(parents=True)
    shutil.copy(sound / "config.json", cache / COMMIT)
    assert complaints("owner/name", COMMIT) == []  # weights and tokenizer may come
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.copy(sound / name, cache / COMMIT)
    assert complaints("owner/name", COMMIT) == []  # the end-of-turn token may come
    edit_json(cache / COMMIT / "config.json", model_type="future9")
    assert "does not know its kind" in complaints("owner/name", COMMIT)[0]


# ---- what else the files tell -------------------------------------------------------------------------------------------


def test_answers_as_long_as_the_models_own_context_are_refused(sound: Path) -> None:
    """64 positions, of which the prompt takes at least one."""
    configs: dict[Any, Any] = {("prepare", None): SimpleNamespace(model=HubModel(path=str(sound), size="tiny"))}
    configs["answer", None] = SimpleNamespace(evaluate=SimpleNamespace(max_new_tokens=64))
    expected = "params.yaml: evaluate.max_new_tokens: expected fewer than the model's own context in tokens, 64, found 64"
    assert [*wrong_models(configs, PARAMS)] == [expected]
    assert complaints(sound, sample={"max_new_tokens": 64}) == [expected.replace("evaluate", "sample")]
    assert complaints(sound, sample={"max_new_tokens": 63}) == []


def test_a_judge_may_be_quantised_or_an_adapter_but_not_a_classifier(sound: Path, tmp_path: Path) -> None:
    def judged(make: Callable[[Path], None]) -> list[str]:
        folder = tmp_path / "judge"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        make(folder)
        judge = SimpleNamespace(backend="transformers", model=str(folder), revision=None)
        configs: dict[Any, Any] = {("prepare", None): SimpleNamespace(model=HubModel(path=str(sound), size="tiny"))}
        configs["evaluate", None] = SimpleNamespace(judge=judge)
        return [*wrong_models(configs, PARAMS | {"evaluate": {"judge": "local"}})]

    assert judged(WRONG["quantised weights"][0]) == judged(add_adapter) == judged(adapter_alone) == []
    (complaint,) = judged(classifier)
    assert complaint.startswith("conf/judge/local.yaml: model: no causal LM can be loaded from ")
    assert "it is a LlamaForSequenceClassification" in complaint


def test_weights_are_not_read(tmp_path: Path) -> None:
    """A file of 40 GB is a hole on the disk; reading it would take a minute."""
    folder = write_headers(
        tmp_path / "large", {"model.embed_tokens.weight": [11, 16], "model.layers.0.weight": [20_000_000, 1000]}
    )
    assert (folder / "model.safetensors").stat().st_size > 4e10
    (complaint,) = complaints(folder)
    assert "size: expected" in complaint
