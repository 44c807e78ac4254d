"""Claims about the methods that learn from rows, with their own conf files: from folders to a policy, and the same bytes again."""

import csv
import json
import os
import re
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from aligning import (
    GROUPS,
    ROWS,
    Crashed,
    config_of,
    crash_after,
    outputs,
    recorded_steps,
    run_align,
    write_inputs,
)
from ppo_tiny import PROMPTS, tiny_policy, word_tokenizer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Trainer
from trl import SFTConfig

from plumbline.methods.offline.sft import require_fit
from plumbline.models import training_values
from plumbline.models.determinism import make_deterministic
from plumbline.models.loading import context_of, rounded_away
from plumbline.models.saving import save_policy
from plumbline.models.training import train, trainer_arguments
from plumbline.pipeline.records import write_jsonl
from plumbline.rewards import reward as rewards
from plumbline.rows import assistant
from tests.conftest import ROOT

OFFLINE = ("sft", "dpo", "orpo", "kto")
FIGURES = {
    "sft": {"validation_loss"},
    "dpo": {"validation_loss", "validation_margin", "chosen_logps_change", "rejected_logps_change", "both_fell"},
    "orpo": {"validation_loss", "sft_loss", "log_odds_ratio"},
    "kto": {"validation_loss", "validation_margin", "kl_estimate", "desirable_fraction"},
    "grpo": {"reward", "score", "kl_k3_per_token", "entropy", "length_tokens", "end_of_turn_fraction", "equal_groups_fraction"},
    "rloo": {"reward", "score", "kl_k1_per_token", "entropy", "length_tokens", "end_of_turn_fraction", "clip_fraction"},
}


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return write_inputs(tmp_path)


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that differs within every group, whatever the policy samples."""
    monkeypatch.setattr(
        rewards, "load_reward", lambda *_: lambda prompts, completions: [float(i) for i in range(len(completions))]
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def table_of_methods(page: str) -> str:
    """The table of methods in docs/methods.md."""
    return page.partition("## The methods")[2].split("\n\n")[1]


def test_the_table_of_methods_names_every_method() -> None:
    methods = {file.stem for file in (ROOT / "conf/method").glob("*.yaml")}
    table = table_of_methods((ROOT / "docs/methods.md").read_text(encoding="utf-8"))
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == methods


# ---- every method -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*OFFLINE, *GROUPS])
def test_the_same_seed_gives_the_same_bytes_also_after_a_crash(
    artifacts: Path, method: str, ranked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crashed after step 5, with the last checkpoint at step 4, which is in the middle of the second epoch of rows."""
    figures = run_align(artifacts, method, max_steps=6)
    assert set(figures) >= FIGURES[method]
    rows = list(csv.DictReader((artifacts / "new.csv").open()))
    assert rows[-1]["step"] == "6"
    assert not any("second" in name or "time" in name for name in rows[0])  # values that differ from run to run stay out
    before, after = weights(artifacts / "policy/sft"), weights(artifacts / "policy/new")
    assert after.keys() == before.keys()
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_maybe_log_save_evaluate", crash_after(5))
        with pytest.raises(Crashed):
            run_align(artifacts, method, "resumed", max_steps=6)
    assert (artifacts / "checkpoints/checkpoint-4").is_dir()
    with monkeypatch.context() as patch:
        steps = recorded_steps(patch)
        run_align(artifacts, method, "resumed", max_steps=6)
    assert min(steps) == 4  # the first four are in the checkpoint
    assert outputs(artifacts, "resumed") == outputs(artifacts)


def test_sft_without_epochs_keeps_the_policy_byte_for_byte(artifacts: Path) -> None:
    shutil.copytree(artifacts / "policy/sft", artifacts / "policy/sft/adapter")
    assert run_align(artifacts, "sft", max_steps=-1, epochs=0) == {}
    before, after = (
        {file.name: file.read_bytes() for file in (artifacts / "policy" / name).glob("*.*")} for name in ("sft", "new")
    )
    assert after == before
    assert not (artifacts / "policy/new/adapter").exists()  # of another policy
    assert (artifacts / "new.csv").read_text() == "step\n"
    assert config_of("sft", max_steps=-1, epochs=0).problems() == []
    (complaint,) = config_of("dpo", max_steps=-1, epochs=0).problems()
    assert complaint.startswith("epochs: expected above 0 unless max_steps says how long, found 0")


@pytest.mark.parametrize("method", [*OFFLINE, *GROUPS])
def test_an_adapter_is_merged_and_also_kept_if_configured(artifacts: Path, method: str, ranked: None) -> None:
    from peft import PeftModel

    run_align(artifacts, method, lora_rank=2, lora_output="adapter", learning_rate=1e-2)
    merged = AutoModelForCausalLM.from_pretrained(artifacts / "policy/new")
    base = AutoModelForCausalLM.from_pretrained(artifacts / "policy/sft")
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert torch.equal(merged.lm_head.weight, base.lm_head.weight)
    ids = torch.tensor([[2, 9, 4, 3, 5, 6, 4]])
    with torch.no_grad():
        before, after = base(ids).logits, merged(ids).logits
        adapted = PeftModel.from_pretrained(base, artifacts / "policy/new/adapter")(ids).logits
    assert (before - after).abs().max() > 1e-3
    assert (adapted - after).abs().max() < 1e-4
    targets = json.loads((artifacts / "policy/new/adapter/adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)  # and not in the order of a set, which differs from process to process
    run_align(artifacts, method, "other", lora_rank=2, learning_rate=1e-2)
    assert outputs(artifacts, "other") == outputs(artifacts)
    assert not (artifacts / "policy/other/adapter").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", OFFLINE)
def test_small_steps_on_bfloat16_weights_are_kept_in_float32_and_said_to_be_lost_in_bfloat16(
    artifacts: Path, method: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    """At 1e-6 most weights do not move by a last bit of bfloat16."""
    save_policy(tiny_policy().to(torch.bfloat16).to(dtype), word_tokenizer(), artifacts / "policy/sft")
    run_align(artifacts, method, learning_rate=1e-6, weight_decay=0.0)
    before, after = weights(artifacts / "policy/sft"), weights(artifacts / "policy/new")
    moved = torch.cat([(after[name].float() != before[name].float()).flatten() for name in before if "proj" in name])
    assert (moved.float().mean() > 0.9) == (dtype == torch.float32)
    assert ("of what training changed is smaller than a last digit of bfloat16" in caplog.text) == (dtype == torch.bfloat16)


def test_steps_that_bfloat16_can_hold_are_written_without_a_warning(artifacts: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_policy(tiny_policy().to(torch.bfloat16), word_tokenizer(), artifacts / "policy/sft")
    run_align(artifacts, "sft", learning_rate=1e-2)
    assert "of what training changed" not in caplog.text


def test_the_part_of_a_change_that_is_rounded_away(tmp_path: Path) -> None:
    """Between 1 and 2, a bfloat16 is a multiple of 1/128: of changes by 1/128, 1/512 and 1/64 + 1/512, both times the 1/512 is lost."""
    save_file({"w": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    weights = {"w": torch.tensor([1 + 1 / 128, 1 + 1 / 512, 1 + 1 / 64 + 1 / 512]), "head": torch.ones(2)}
    expected = 2 / ((512 / 128) ** 2 + 1 + (512 / 64 + 1) ** 2)
    assert rounded_away(weights, tmp_path, torch.bfloat16) == pytest.approx(expected)
    assert rounded_away({"w": torch.ones(3)}, tmp_path, torch.bfloat16) == 0


@pytest.mark.parametrize("method", [*OFFLINE, *GROUPS])
def test_bf16_trains_on_a_cpu_and_keeps_float32_weights(artifacts: Path, method: str, ranked: None) -> None:
    run_align(artifacts, method, bf16=True, max_steps=2)
    before, after = weights(artifacts / "policy/sft"), weights(artifacts / "policy/new")
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo"])
def test_a_signal_of_another_kind_or_without_rows_is_named(artifacts: Path, method: str) -> None:
    signal = artifacts / ("data/sft" if method == "sft" else "label/round1")
    write_jsonl(signal / "validation.jsonl", [])
    with pytest.raises(ValueError, match=rf"{method}: expected rows of prompt, .*validation.jsonl, found none"):
        run_align(artifacts, method)
    shutil.rmtree(artifacts / "checkpoints")  # other rows are another computation
    write_jsonl(signal / "train.jsonl", [{"prompt": PROMPTS[0], "label": True}])
    with pytest.raises(ValueError, match=rf"{method}: expected rows of prompt, .*found one of prompt, label without"):
        run_align(artifacts, method)


def test_several_gpus_in_one_process_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one GPU for each process, found 2"):
        train(SimpleNamespace(args=SimpleNamespace(n_gpu=2)), tmp_path)  # type: ignore[arg-type]


def test_the_best_checkpoint_needs_a_validation_to_choose_by(artifacts: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluate_every: .* steps, 4, with keep: best, found 5"):
        run_align(artifacts, "sft", keep="best", evaluate_every=5, checkpoint_every=5)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, None),
        (
            {"batch_size": 6},
            "batch_size: expected a multiple of micro_batch_size 4, found 6. Set micro_batch_size to 3, or batch_size to 8",
        ),
        ({"micro_batch_size": 0}, "batch_size, micro_batch_size: expected at least 1"),
        ({"optimiser": "adam"}, "optimiser: expected one of adamw, paged_adamw_8bit, found 'adam'"),
        ({"schedule": "linaer"}, "schedule: expected one of constant, linear, cosine, found 'linaer'"),
        ({"checkpoint_every": 0}, "checkpoint_every: expected at least 1"),
        ({"evaluate_every": 0}, "evaluate_every: expected at least 1"),
        ({"keep": "first"}, "keep: expected last or best, found 'first'"),
        ({"keep": "best", "checkpoint_every": 3}, "checkpoint_every: expected a multiple of evaluate_every 2"),
        ({"lora_output": "both"}, "lora_output: expected merged or adapter, found 'both'"),
    ],
)
def test_values_of_training_that_do_not_fit_are_named(changes: dict[str, Any], complaint: str | None) -> None:
    problems = config_of("sft", **changes).problems()
    assert len(problems) == (complaint is not None)
    assert complaint is None or problems[0].startswith(complaint)


def test_the_8_bit_optimiser_needs_its_library_and_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eight_bit, usual = config_of("sft", optimiser="paged_adamw_8bit"), config_of("sft")
    monkeypatch.setattr(training_values, "find_spec", lambda name: None)
    assert [problem[:54] for problem in eight_bit.problems()] == ["optimiser: expected the library bitsandbytes for paged"]
    monkeypatch.setattr(training_values, "find_spec", lambda name: name)
    assert eight_bit.problems() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="expected a GPU for paged_adamw_8bit, found none"):
        trainer_arguments(eight_bit, tmp_path, 1)
    assert "optim" not in trainer_arguments(usual, tmp_path, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert trainer_arguments(eight_bit, tmp_path, 1)["optim"] == "paged_adamw_8bit"


def test_a_gpu_multiplies_in_tf32_and_sums_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    make_deterministic(1, 1)
    assert (chosen, os.environ["CUBLAS_WORKSPACE_CONFIG"]) == ([], ":4096:8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    make_deterministic(1, 1)
    assert chosen == ["high"]


def test_the_context_is_that_of_the_text_part_and_may_be_unlimited() -> None:
    from transformers import BloomConfig, Gemma3Config

    assert context_of(Gemma3Config(text_config={"max_position_embeddings": 77})) == 77
    assert context_of(BloomConfig()) is None


# ---- SFT ----------------------------------------------------------------------------------------------------------------


def test_packing_refuses_rows_that_it_would_cut(artifacts: Path) -> None:
    write_jsonl(artifacts / "data/sft/train.jsonl", [{"prompt": PROMPTS[0], "completion": assistant("a " * 80)}])
    with pytest.raises(ValueError, match=r"sft: packing: expected rows of at most 64 tokens, .* found 1 of 1"):
        run_align(artifacts, "sft", packing=True)
    with pytest.raises(ValueError, match="sft: packing: expected a model with a limited context"):
        require_fit([[1]], None)


def test_packed_rows_give_the_step_that_single_rows_give(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows in one padded batch, and the same rows packed so that each attends to itself only: one step, the same gradient.

    The step is plain gradient descent. Adam would turn the rounding of a gradient near 0 into a whole step.
    """
    monkeypatch.setattr("trl.SFTConfig", partial(SFTConfig, optim="sgd"))
    one_step = {
        "batch_size": ROWS["train"],
        "micro_batch_size": ROWS["train"],
        "max_steps": 1,
        "warmup_fraction": 0.0,
        "learning_rate": 0.1,
        "max_grad_norm": 1e9,
    }
    single = run_align(artifacts, "sft", "single", **one_step)
    packed = run_align(artifacts, "sft", "packed", packing=True, **one_step)
    before, first, second = (weights(artifacts / "policy" / name) for name in ("sft", "single", "packed"))
    assert max(float((first[name] - before[name]).abs().max()) for name in first) > 1e-2
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)
    assert packed["validation_loss"] == pytest.approx(single["validation_loss"], abs=1e-4)
