"""The precision of a model: float32 where all of it is trained, its own where it is read, and its own where it is written."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from aligning import GROUPS, run_align, write_inputs
from ppo_tiny import tiny_policy, word_tokenizer
from safetensors.torch import load_file
from transformers import Trainer

from plumbline.models.architecture import HubModel, load_hub_model
from plumbline.models.loading import load_policy, saved_dtype
from plumbline.models.saving import save_policy
from plumbline.pipeline.records import read_json

OFFLINE = ("sft", "dpo", "kto", "orpo")


def inputs(folder: Path, dtype: torch.dtype) -> Path:
    """What methods learn from, and a policy in this precision."""
    write_inputs(folder)
    shutil.rmtree(folder / "policy/sft")
    save_policy(tiny_policy().to(dtype), word_tokenizer(), folder / "policy/sft")
    return folder


def dtypes(folder: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}


class Seen:
    """What trainers held in their steps, and the weights that they ended with."""

    weights: set[tuple[str, torch.dtype]]
    references: set[torch.dtype | None]
    last: dict[str, torch.Tensor]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Filled in by the trainings of a test."""
    watched = Seen()
    watched.weights, watched.references = set(), set()
    step, train = Trainer.training_step, Trainer.train

    def watching(self: Trainer, *arguments: Any, **named: Any) -> Any:
        for name, parameter in self.model.named_parameters():
            watched.weights.add(("adapter" if "lora_" in name else "base", parameter.dtype))
        reference = getattr(self, "ref_model", None)
        watched.references.add(None if reference is None else reference.dtype)
        return step(self, *arguments, **named)

    def ending(self: Trainer, *arguments: Any, **named: Any) -> Any:
        result = train(self, *arguments, **named)
        watched.last = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        return result

    monkeypatch.setattr(Trainer, "training_step", watching)
    monkeypatch.setattr(Trainer, "train", ending)
    return watched


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("method", OFFLINE)
def test_all_weights_are_trained_in_float32_and_written_in_the_models_own_precision(
    method: str, dtype: torch.dtype, seen: Seen, tmp_path: Path
) -> None:
    folder = inputs(tmp_path, dtype)
    run_align(folder, method)
    assert seen.weights == {("base", torch.float32)}
    assert seen.references == {None}  # those that need a reference have asked it before
    assert saved_dtype(folder / "policy/new") == dtype
    assert read_json(folder / "policy/new/config.json")["dtype"] == str(dtype).removeprefix("torch.")
    written = load_file(folder / "policy/new/model.safetensors")
    for name, weight in seen.last.items():
        assert torch.equal(written[name], weight.to(dtype)), name
    assert any(
        not torch.equal(weight.to(dtype), tiny_policy().state_dict()[name].to(dtype)) for name, weight in seen.last.items()
    )


@pytest.mark.parametrize("method", [*OFFLINE, *GROUPS])
def test_the_base_below_an_adapter_stays_as_it_was_saved_and_is_the_reference(method: str, seen: Seen, tmp_path: Path) -> None:
    folder = inputs(tmp_path, torch.bfloat16)
    run_align(folder, method, lora_rank=2, lora_alpha=4)
    assert seen.weights == {("base", torch.bfloat16), ("adapter", torch.float32)}
    assert seen.references == {None}
    assert dtypes(folder / "policy/new") == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", GROUPS)
def test_a_reference_with_weights_of_its_own_is_read_as_it_was_saved(
    method: str, dtype: torch.dtype, seen: Seen, tmp_path: Path
) -> None:
    folder = inputs(tmp_path, dtype)
    run_align(folder, method)
    assert seen.weights == {("base", torch.float32)}
    assert seen.references == {dtype}
    assert dtypes(folder / "policy/new") == {dtype}


def test_a_policy_is_sampled_in_its_own_precision(tmp_path: Path) -> None:
    assert load_policy(inputs(tmp_path, torch.bfloat16) / "policy/sft").dtype == torch.bfloat16


@pytest.mark.parametrize(("wanted", "expected"), [(None, torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)])
def test_a_hub_model_is_loaded_as_saved_or_as_dtype_says(
    wanted: str | None, expected: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inputs(tmp_path, torch.bfloat16) / "policy")
    assert load_hub_model(HubModel(path="sft", dtype=wanted)).dtype == expected


def test_another_dtype_is_refused_with_those_that_exist() -> None:
    (problem,) = [line for line in HubModel(path="sft", dtype="bf16").problems() if line.startswith("dtype")]
    assert problem == "dtype: expected null (as saved) or one of float32, bfloat16, float16, found 'bf16'"
