"""What training a model takes: the arithmetic, compared with what training held, and the page that shows it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from aligning import config_of, run_align, write_inputs
from ppo_tiny import tiny_config, tiny_policy, trainer_of, word_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedConfig, Qwen2Config, Qwen3MoeConfig, Trainer

from plumbline.methods.offline.merge import MergeConfig
from plumbline.methods.online.ppo.networks import add_adapter
from plumbline.models import training_memory
from plumbline.models.memory import held_bytes
from plumbline.models.saving import save_policy
from plumbline.models.training_memory import Size, memory_needed, require_memory, size_of
from plumbline.models.training_values import OPTIMISERS
from plumbline.pipeline import processes
from tests.benchmarks import memory_table
from tests.conftest import ROOT

BF16 = Size(parameters=1000, weight_bytes=2, widths=10, embeddings=200)


def test_full_training_takes_16_bytes_a_parameter_and_an_adapter_little_more_than_the_model() -> None:
    full = memory_needed(BF16, "sft")
    assert (full.weights, full.gradients, full.moments, full.memory) == (4000, 4000, 8000, 16_000)
    assert memory_needed(BF16, "dpo").memory == full.memory  # the reference is asked before, and needs no weights of its own
    assert memory_needed(BF16, "sft", bf16=True).memory == 18_000
    adapter = memory_needed(BF16, "sft", lora_rank=4)  # 40 parameters
    assert adapter.memory == 2000 + 40 * 16
    assert full.checkpoints == 3 * 12_000
    assert adapter.checkpoints == 3 * 40 * 12
    assert full.policy == adapter.policy == 2000


def test_moments_in_8_bits_spare_the_embeddings() -> None:
    assert memory_needed(BF16, "sft", optimiser="paged_adamw_8bit").moments == 800 * 2 + 200 * 8
    assert memory_needed(BF16, "sft", optimiser="paged_adamw_8bit", lora_rank=4).moments == 40 * 2


def test_references_and_value_models_come_on_top() -> None:
    assert memory_needed(BF16, "grpo").memory == 16_000 + 2000
    assert memory_needed(BF16, "grpo", reference=False).memory == 16_000
    assert memory_needed(BF16, "ppo").memory == 2 * 16_000 + 2000
    assert memory_needed(BF16, "ppo").checkpoints == 2 * 24_000
    assert memory_needed(BF16, "ppo", lora_rank=4).memory == 2 * (
        2000 + 40 * 16
    )  # the policy without its adapter is the reference


def test_a_copy_in_float32_is_saved_when_gradients_are_gone() -> None:
    assert memory_needed(BF16, "dpo").copy == memory_needed(BF16, "dpo").saving == 0  # the trained weights themselves are written
    kept = memory_needed(BF16, "dpo", kept=True, bf16=True)
    assert (kept.copy, kept.saving, kept.memory) == (4000, 12_000 + 4000, 18_000)
    assert memory_needed(BF16, "grpo", kept=True).saving == 12_000 + 2000 + 4000
    assert memory_needed(BF16, "ppo", kept=True).saving == 2 * 12_000 + 2000 + 4000
    adapter = memory_needed(BF16, "dpo", lora_rank=4)  # 40 parameters; the base in bfloat16 becomes the merged model
    assert (adapter.copy, adapter.saving) == (4000, 40 * 8 + 4000)
    assert memory_needed(BF16, "dpo", lora_rank=4, kept=True).saving == 2000 + 40 * 12 + 4000
    assert memory_needed(BF16, "ppo", lora_rank=4).saving == 40 * 8 + 4000 + 2000 + 40 * 12


@pytest.mark.parametrize(("tied", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_the_size_of_a_folder_is_that_of_its_model_and_of_its_adapter(tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    policy = tiny_policy(tie_word_embeddings=tied)
    count, embeddings = policy.num_parameters(), policy.get_input_embeddings().weight.numel()
    save_policy(policy.to(dtype), word_tokenizer(), tmp_path)
    trained, _ = add_adapter(tiny_policy(), tiny_config(lora_rank=3)).get_nb_trainable_parameters()
    assert size_of(tmp_path) == Size(count, dtype.itemsize, trained // 3, embeddings, 0 if tied else embeddings)


@pytest.mark.parametrize("kind", [MixtralConfig, Qwen3MoeConfig])
def test_an_adapter_of_a_mixture_of_experts_has_at_least_what_the_arithmetic_says(kind: Any, tmp_path: Path) -> None:
    """Experts are saved one by one, and adapted together, with a higher rank where two of their layers are one."""
    config = kind(
        vocab_size=11, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path)
    trained, _ = add_adapter(policy, tiny_config(lora_rank=3)).get_nb_trainable_parameters()
    widths = size_of(tmp_path).widths
    assert 0 < widths <= trained // 3


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_training_holds_what_the_arithmetic_says(
    method: str, lora_rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, held = write_inputs(tmp_path), {}
    save_policy(tiny_policy().to(torch.bfloat16), word_tokenizer(), folder / "policy/sft")
    step = Trainer.training_step

    def watching(self: Trainer, *arguments: Any, **named: Any) -> Any:
        result = step(self, *arguments, **named)
        optimiser: Any = self.optimizer
        held["weights"] = sum(parameter.nbytes for parameter in self.model.parameters())
        held["gradients"] = sum(one.grad.nbytes for one in self.model.parameters() if one.grad is not None)
        states = [value for state in optimiser.state.values() for name, value in state.items() if name != "step"]
        held["moments"] = sum(value.nbytes for value in states)
        reference = getattr(self, "ref_model", None)
        held["reference"] = 0 if reference is None else sum(one.nbytes for one in reference.parameters())
        return result

    monkeypatch.setattr(Trainer, "training_step", watching)
    run_align(folder, method, lora_rank=lora_rank)
    need = memory_needed(size_of(folder / "policy/sft"), method, lora_rank=lora_rank)
    assert held == {name: getattr(need, name) for name in held}


def test_ppo_holds_what_the_arithmetic_says(tmp_path: Path) -> None:
    """But for the value model's head of 16 weights and a bias."""
    save_policy(tiny_policy(), word_tokenizer(), tmp_path)
    trainer = trainer_of(tiny_config())
    trainer.step(0)
    states = [value for state in trainer.updater.optimiser.state.values() for name, value in state.items() if name != "step"]
    need = memory_needed(size_of(tmp_path), "ppo")
    assert held_bytes(trainer.policy, trainer.reference, trainer.value_model) == need.memory + 17 * 16
    assert sum(value.nbytes for value in states) == 2 * need.moments + 17 * 8


def test_a_model_that_cannot_fit_is_refused_with_the_arithmetic_and_the_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy(tiny_policy(), word_tokenizer(), tmp_path)
    require_memory(config_of("sft"), "sft", tmp_path)
    monkeypatch.setattr(training_memory, "total_memory", lambda device: 1000)
    with pytest.raises(
        ValueError, match=r"sft: expected weights and optimiser of at most 0\.0 GiB.* parameters \(weights 0\.0, gradients"
    ) as error:
        require_memory(config_of("sft"), "sft", tmp_path)
    for remedy in ("lora_rank to 16 (", "optimiser to paged_adamw_8bit (", "micro_batch_size", "gradient_checkpointing"):
        assert remedy in str(error.value)
    with pytest.raises(ValueError, match="To train it, take a smaller model;"):
        require_memory(tiny_config(lora_rank=2), "ppo", tmp_path)
    require_memory(MergeConfig(weight=0.5), "merge", tmp_path)  # which trains nothing


@pytest.mark.parametrize(("device", "needed"), [("cpu", 6480), ("cuda", 4000)])
def test_a_policy_that_could_not_be_saved_in_the_machines_memory_is_refused_before_training(
    device: str, needed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, what is trained is not in the machine's memory."""
    there = {"cuda": 10_000, "cpu": needed}
    monkeypatch.setattr(training_memory, "size_of", lambda _: BF16)
    monkeypatch.setattr(training_memory, "total_memory", there.__getitem__)
    monkeypatch.setattr("plumbline.models.loading.device", lambda: device)
    config = config_of("dpo", lora_rank=4, keep_steps=[2])
    require_memory(config, "dpo", tmp_path)
    there["cpu"] -= 1
    with pytest.raises(ValueError, match=r"dpo: expected at most .* while a policy is saved, .* set keep_steps to \[\], take a"):
        require_memory(config, "dpo", tmp_path)
    monkeypatch.setattr(processes, "count_here", lambda: 2)  # the other process holds its 2000 + 40 * 12 bytes meanwhile
    there["cpu"] = needed + 2480 - 1
    if device == "cpu":
        with pytest.raises(ValueError, match="while a policy is saved"):
            require_memory(config, "dpo", tmp_path)
        there["cpu"] += 1
    require_memory(config, "dpo", tmp_path)


def test_checkpoints_are_announced_if_they_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_policy(tiny_policy(), word_tokenizer(), tmp_path)
    require_memory(config_of("sft"), "sft", tmp_path)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(training_memory, "size_of", lambda _: Size(10**8, 2))
    require_memory(config_of("sft"), "sft", tmp_path)
    assert capsys.readouterr().out.startswith(
        "sft: checkpoints take up to 3.4 GiB of disk, the policy 0.2; "
    )  # 3 · 12 · 10⁸ bytes


# ---- the page -----------------------------------------------------------------------------------------------------------

CONFIGS: dict[str, PreTrainedConfig] = {
    "0.5B": Qwen2Config(
        vocab_size=151936, hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        intermediate_size=4864, tie_word_embeddings=True,
    ),
    "1.5B": Qwen2Config(
        vocab_size=151936, hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        intermediate_size=8960, tie_word_embeddings=True,
    ),
    "8B": LlamaConfig(
        vocab_size=128256, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14336, tie_word_embeddings=False,
    ),
}  # fmt: skip
"""Qwen2.5-0.5B, Qwen2.5-1.5B and Llama-3.1-8B."""


@pytest.mark.parametrize("name", [*CONFIGS])
def test_the_sizes_in_the_table_are_those_of_the_models(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
    layers = [module for path, module in model.named_modules() if isinstance(module, torch.nn.Linear) and path != "lm_head"]
    widths = sum(layer.in_features + layer.out_features for layer in layers)
    assert memory_table.SIZES[name] == Size(model.num_parameters(), 2, widths, model.get_input_embeddings().weight.numel())


def test_the_page_on_memory_shows_what_the_function_computes() -> None:
    page = (ROOT / "docs/memory.md").read_text(encoding="utf-8")
    assert memory_table.with_table(page) == page, "run: python tests/benchmarks/memory_table.py"


def test_the_arithmetic_knows_every_optimiser() -> None:
    assert {memory_needed(BF16, "sft", optimiser=optimiser).moments for optimiser in OPTIMISERS} == {8000, 3200}
