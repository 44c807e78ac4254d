"""PPO from folders to a folder: the gate, the value model's first weights, and a policy that other programs can load."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_tiny import PROMPTS, llama_config, tiny_config, tiny_policy, word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForSequenceClassification

from plumbline.methods.job import OnlineJob
from plumbline.methods.online.ppo import align, networks
from plumbline.methods.online.ppo.networks import ValueModel, collate, load_value_model
from plumbline.methods.online.ppo.trainer import PpoTrainer
from plumbline.models.saving import save_policy
from plumbline.pipeline.records import write_json, write_jsonl
from plumbline.pipeline.tracking import Run
from plumbline.rewards.reward import held_out_accuracy, require_accuracy
from plumbline.rows import last_turn


class Recorder(Run):
    """A run that keeps what is logged."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}
        self.tables: dict[str, Any] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        assert step is not None
        self.steps[step] = dict(metrics)

    def extend_table(self, name: str, rows: Any) -> None:
        self.tables.setdefault(name, []).extend(rows)


def save_reward(folder: Path, accuracy: float, words: list[str] | None = None, seed: int = 0) -> LlamaForSequenceClassification:
    tokenizer = word_tokenizer(words) if words else word_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(llama_config(len(tokenizer), num_labels=1)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "reward.json", {"kind": "model", "accuracy": accuracy})
    return model


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    save_policy(tiny_policy(), word_tokenizer(), tmp_path / "policy/sft")
    save_reward(tmp_path / "reward/rm", 0.8)
    save_reward(tmp_path / "reward/cost", 0.7, seed=1)
    parts = [{"reward": "rm", "weight": 1.0}, {"reward": "cost", "weight": -0.5}]
    write_json(tmp_path / "reward/blend/reward.json", {"kind": "sum", "parts": parts})
    write_json(tmp_path / "reward/gold/reward.json", {"kind": "closed_world", "measure": "gold"})
    write_jsonl(tmp_path / "data/prompts/train.jsonl", [{"id": str(i), "prompt": prompt} for i, prompt in enumerate(PROMPTS)])
    return tmp_path


def run_align(artifacts: Path, reward: str = "rm", **changes: Any) -> tuple[dict[str, float], Recorder]:
    run = Recorder()
    job = OnlineJob(
        init=artifacts / "policy/sft",
        reward=artifacts / "reward" / reward,
        prompts=artifacts / "data/prompts/train.jsonl",
        output=artifacts / "policy/ppo",
        checkpoints=artifacts / "checkpoints",
        curve=artifacts / "curve.csv",
        run=run,
        seed=3,
    )
    return align(tiny_config(**changes), job), run


NAMES = {
    "reward", "score", "kl_k1", "kl_k3", "entropy", "clip_fraction", "ratio_mean", "ratio_max", "approx_kl", "value_loss",
    "explained_variance", "length_tokens", "end_of_turn_fraction", "beta",
}  # fmt: skip


@pytest.mark.parametrize(("reward", "lora_rank"), [("rm", 0), ("blend", 0), ("rm", 2)])
def test_align_writes_a_policy_folder_a_curve_and_the_figures(artifacts: Path, reward: str, lora_rank: int) -> None:
    figures, run = run_align(artifacts, reward, lora_rank=lora_rank)
    assert set(figures) >= NAMES
    assert set(run.steps) == {0, 1, 2, 3}
    assert set(run.steps[0]) >= NAMES | {"tokens_per_second", "samples_per_second", "generation_seconds", "update_seconds"}
    rows = list(csv.DictReader((artifacts / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert not any("second" in name for name in rows[0])  # values that differ from run to run stay out
    assert list(dict.fromkeys(row["step"] for row in run.tables["rollouts"])) == [0, 2, 3]
    policy = AutoModelForCausalLM.from_pretrained(artifacts / "policy/ppo")
    before = AutoModelForCausalLM.from_pretrained(artifacts / "policy/sft")
    assert policy.state_dict().keys() == before.state_dict().keys()
    assert not torch.equal(policy.lm_head.weight, before.lm_head.weight) or lora_rank
    tokenizer = AutoTokenizer.from_pretrained(artifacts / "policy/ppo")
    assert tokenizer.chat_template == word_tokenizer().chat_template


def test_an_adapter_is_kept_besides_the_merged_policy_if_configured(artifacts: Path) -> None:
    from peft import PeftModel

    run_align(artifacts, lora_rank=2, lora_output="adapter", learning_rate=1e-2)
    base = AutoModelForCausalLM.from_pretrained(artifacts / "policy/sft")
    ids = torch.tensor([[2, 9, 4, 3, 5, 6, 4]])
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(artifacts / "policy/ppo")(ids).logits
        assert (base(ids).logits - merged).abs().max() > 1e-3
        adapted = PeftModel.from_pretrained(base, artifacts / "policy/ppo/adapter")(ids).logits
        assert (adapted - merged).abs().max() < 1e-4


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_policy_in_bfloat16_is_trained_in_float32_against_a_reference_as_it_was_saved(
    artifacts: Path, lora_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an adapter, the base keeps the precision in which it was saved, and is held only once."""
    save_policy(tiny_policy().to(torch.bfloat16), word_tokenizer(), artifacts / "policy/sft")
    reward_model = LlamaForSequenceClassification.from_pretrained(artifacts / "reward/rm", dtype=torch.bfloat16)
    reward_model.save_pretrained(artifacts / "reward/rm")
    loaded: list[networks.Networks] = []
    original = networks.load_networks
    monkeypatch.setattr(networks, "load_networks", lambda *given: loaded.append(original(*given)) or loaded[-1])
    types: set[str] = set()
    monkeypatch.setattr(PpoTrainer, "save", lambda self, _: types.update(types_of(self)))
    run_align(artifacts, lora_rank=lora_rank)
    (parts,) = loaded
    assert types == ({"trained float32", "read bfloat16"} if lora_rank else {"trained float32"})
    assert parts.reference is None if lora_rank else parts.reference.dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(artifacts / "policy/ppo").dtype == torch.bfloat16


def types_of(trainer: PpoTrainer) -> set[str]:
    """The precision of policy and value model, of what is trained and of what is read."""
    parameters = [*trainer.policy.parameters(), *trainer.value_model.parameters()]
    return {f"{'trained' if one.requires_grad else 'read'} {str(one.dtype).removeprefix('torch.')}" for one in parameters}


def test_only_prompts_of_the_given_families_are_answered(artifacts: Path) -> None:
    rows = [{"id": str(i), "prompt": prompt, "family": "sums" if i < 2 else "facts"} for i, prompt in enumerate(PROMPTS)]
    write_jsonl(artifacts / "data/prompts/train.jsonl", rows)
    _, run = run_align(artifacts, families=["sums"])
    answered = {row["prompt"] for table in run.tables.values() for row in table}
    assert answered == {last_turn(prompt) for prompt in PROMPTS[:2]}


def test_two_runs_write_the_same_bytes(artifacts: Path) -> None:
    run_align(artifacts)
    outputs = [artifacts / "policy/ppo/model.safetensors", artifacts / "curve.csv"]
    first = [path.read_bytes() for path in outputs]
    shutil.rmtree(artifacts / "checkpoints")
    run_align(artifacts)
    assert [path.read_bytes() for path in outputs] == first


def test_a_poor_reward_model_is_refused_with_its_accuracy(artifacts: Path) -> None:
    save_reward(artifacts / "reward/rm", 0.55)
    with pytest.raises(ValueError, match=r"0\.600.*0\.550"):
        run_align(artifacts)
    with pytest.raises(ValueError, match=r"0\.550"):  # a sum is as good as its worst part
        run_align(artifacts, "blend")
    assert not (artifacts / "policy/ppo").exists()


def test_a_reward_model_at_the_limit_and_a_reward_without_a_model_pass_the_gate(artifacts: Path) -> None:
    require_accuracy(0.6, 0.6, artifacts, "ppo")
    require_accuracy(None, 0.6, artifacts, "ppo")
    assert held_out_accuracy(artifacts / "reward/gold") is None
    assert held_out_accuracy(artifacts / "reward/blend") == 0.7


def test_the_value_model_starts_as_the_reward_model(artifacts: Path) -> None:
    """Its value before a token is the reward of the text that ends there."""
    value_model = load_value_model(artifacts / "reward/rm", artifacts / "policy/sft", word_tokenizer())
    reward_model = LlamaForSequenceClassification.from_pretrained(artifacts / "reward/rm")
    with torch.no_grad():
        values = value_model(collate([[5, 6, 7]], [[8, 9]], 0, torch.device("cpu")))
        expected = [float(reward_model(torch.tensor([ids])).logits) for ids in ([5, 6, 7], [5, 6, 7, 8])]
    assert values.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("reward", ["gold", "foreign"])
def test_without_a_reward_model_that_reads_its_ids_the_value_model_starts_as_the_policy(artifacts: Path, reward: str) -> None:
    save_reward(artifacts / "reward/foreign", 0.8, words=["d", "c", "b", "a", "r", "q"])
    value_model = load_value_model(artifacts / "reward" / reward, artifacts / "policy/sft", word_tokenizer())
    assert isinstance(value_model, ValueModel)
    assert torch.equal(value_model.backbone.embed_tokens.weight, tiny_policy().model.embed_tokens.weight)
    assert not value_model.head.weight.any()


def test_prompts_that_leave_no_room_are_refused(artifacts: Path) -> None:
    with pytest.raises(ValueError, match="max_new_tokens 63"):
        run_align(artifacts, max_new_tokens=63)
