"""Models that no causal LM can be trained from are refused before any work, each with what it is and what to do."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import errors
from peft import LoraConfig, get_peft_model
from ppo_tiny import llama_config
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)

from plumbline.models import suitability
from plumbline.models.architecture import HubModel, load_hub_model
from plumbline.models.suitability import require_suitable, unreachable


def save(folder: Path, **changes: Any) -> Path:
    """A small Llama in a folder, with changes of its config.json."""
    LlamaForCausalLM(llama_config(300)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match="the model's file in conf/model: path: ") as refused:
        load_hub_model(HubModel(path=str(folder)))
    return str(refused.value)


def test_a_causal_lm_is_suitable_and_loads_whole(tmp_path: Path) -> None:
    assert isinstance(load_hub_model(HubModel(path=str(save(tmp_path)))), LlamaForCausalLM)


@pytest.mark.parametrize("kind", [LlamaForSequenceClassification, LlamaForTokenClassification])
def test_a_model_with_another_head_is_refused_and_not_given_a_random_one(tmp_path: Path, kind: Any) -> None:
    kind(llama_config(300, num_labels=2)).save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).lm_head is not None  # transformers only warns
    assert f"it is a {kind.__name__}, not a causal LM" in refusal(tmp_path)


def test_a_model_without_any_head_is_refused(tmp_path: Path) -> None:
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(
        tmp_path
    )
    assert "it is a BertModel, not a causal LM" in refusal(tmp_path)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_quantised_weights_are_refused(tmp_path: Path, method: str) -> None:
    assert f"its weights are quantised ({method})" in refusal(save(tmp_path, quantization_config={"quant_method": method}))


def test_an_adapter_is_refused_with_the_name_of_its_base(tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(save(tmp_path / "base"))
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    said = refusal(tmp_path / "adapter")
    assert f"it is an adapter (LoRA) of {tmp_path / 'base'}" in said
    assert "merge_and_unload()" in said


@pytest.mark.parametrize(("files", "reason"), [(["model-q4.gguf"], "it holds GGUF files"), ([], "it has no config.json")])
def test_a_folder_of_another_format_is_refused(tmp_path: Path, files: list[str], reason: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"GGUF")
    assert reason in refusal(tmp_path)


def test_a_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("<html>")
    assert "its config.json cannot be read: Expecting value" in refusal(tmp_path)


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path: Path) -> None:
    save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = sorted(name for name in weights if "mlp" in name)[0]
    save_file({name: value for name, value in weights.items() if name != lost}, tmp_path / "model.safetensors", {"format": "pt"})
    assert f"without 1 of them (first: {lost})" in refusal(tmp_path)


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    LlamaForCausalLM(llama_config(300, tie_word_embeddings=True)).save_pretrained(tmp_path)
    model = load_hub_model(HubModel(path=str(tmp_path)))
    assert torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)  # type: ignore[union-attr]


def of_the_hub(kind: type[Exception]) -> Exception:
    """An error as transformers raises it: an OSError because of one of the hub's."""
    response: Any = SimpleNamespace(headers={}, status_code=401, request=None, url="", text="", json=dict)
    cause = kind("x", response=response) if issubclass(kind, errors.HfHubHTTPError) else kind("x")
    try:
        raise OSError("We couldn't connect") from cause
    except OSError as error:
        return error


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        (errors.GatedRepoError, "Accept them on its page, then run `hf auth login`"),
        (errors.RepositoryNotFoundError, "Check the id"),
        (errors.RevisionNotFoundError, "it has no revision abc. Take a commit"),
        (errors.LocalEntryNotFoundError, "`hf download owner/name --revision abc`"),
        (errors.OfflineModeIsEnabled, "unset HF_HUB_OFFLINE"),
    ],
)
def test_a_hub_that_gives_no_model_is_explained(kind: type[Exception], remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise of_the_hub(kind)

    monkeypatch.setattr(suitability, "_fetched_files", fail)
    with pytest.raises(ValueError, match="no causal LM can be trained from 'owner/name'") as refused:
        require_suitable("owner/name", "abc")
    assert remedy in str(refused.value)
    assert unreachable(ValueError("another"), "owner/name", "abc") is None


def test_a_hub_id_that_is_not_in_the_cache_is_refused_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="it is not in the local cache, and the hub cannot be reached"):
        require_suitable("nobody/nothing-here", "0" * 40)
