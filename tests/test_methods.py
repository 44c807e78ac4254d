"""Claims about the trainers that stand on TRL, by their own conf files: from folders to a folder, the same bytes again and after a crash."""

import csv
import importlib
import itertools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from ppo_tiny import PROMPTS, tiny_policy, word_tokenizer
from transformers import AutoModelForCausalLM, Trainer

from stages.methods.dpo import displacement, validate, weighted_losses
from stages.methods.kto import read_labels, unpaired
from stages.methods.sft import require_fit
from stages.models.completions import log_samples
from stages.models.groups import group_history, last_means, prompts_in_order, prompts_of, reward_functions
from stages.models.groups import validate as validate_groups
from stages.models.loading import context_of, rows_in_cache
from stages.models.training import save_policy, train
from stages.pipeline.records import write_json, write_jsonl
from stages.pipeline.tracking import Run
from tests.conftest import ROOT
from tests.test_sandbox import needs_bubblewrap

PREFERENCES = ("dpo", "orpo", "kto")
REWARDS = ("grpo", "rloo")
SMALL: dict[str, Any] = {"batch_size": 8, "micro_batch_size": 4, "max_steps": 4, "evaluate_every": 2, "learning_rate": 1e-3}
SMALL_GROUPS: dict[str, Any] = {"num_generations": 4, "rollout_batch_size": 8, "max_new_tokens": 6, "min_reward_accuracy": 0.0}
FIGURES = {
    "sft": {"validation_loss"},
    "dpo": {"validation_loss", "validation_margin", "chosen_logps_change", "rejected_logps_change", "both_fell"},
    "orpo": {"validation_loss", "sft_loss", "log_odds_ratio"},
    "kto": {"validation_loss", "validation_margin", "kl_estimate", "desirable_fraction"},
    "grpo": {"reward", "score", "kl_k3_per_token", "entropy", "length_tokens", "end_of_turn_fraction", "equal_groups_fraction"},
    "rloo": {"reward", "score", "kl_k1_per_token", "entropy", "length_tokens", "end_of_turn_fraction", "clip_fraction"},
}


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": PROMPTS[i % len(PROMPTS)], "chosen": says("a " * (1 + i % 3)), "rejected": says("c d" if i % 2 else "d d d")}
        for i in range(count)
    ]


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """A policy, preferences, demonstrations and a reward: the verifier, which finds no task in these prompts and says 0."""
    save_policy(tiny_policy(), word_tokenizer(), tmp_path / "policy/sft")
    for split, count in (("train", 16), ("validation", 6)):
        write_jsonl(tmp_path / f"label/round1/{split}.jsonl", pairs(count))
        demonstrations = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs(count)]
        write_jsonl(tmp_path / f"data/sft/{split}.jsonl", demonstrations)
        prompts = [{"id": str(i), "prompt": prompt} for i, prompt in enumerate(PROMPTS)]
        write_jsonl(tmp_path / f"data/prompts/{split}.jsonl", prompts)
    write_json(tmp_path / "reward/gold/reward.json", {"kind": "verifier"})
    return tmp_path


def config_of(method: str, **changes: Any) -> Any:
    """A method's conf file in its schema, shrunk."""
    schema = importlib.import_module(f"stages.methods.{method}").SCHEMAS[f"{method}_schema"]
    values = OmegaConf.load(ROOT / f"conf/method/{method}.yaml")
    del values["defaults"]
    small = SMALL | (SMALL_GROUPS if method in REWARDS else {}) | {"init": "sft", "signal": "x"} | changes
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values, small))


def run_align(artifacts: Path, method: str, name: str = "new", **changes: Any) -> dict[str, float]:
    from stages.models.training import make_deterministic

    signal = {"sft": "data/sft", **dict.fromkeys(REWARDS, "reward/gold")}.get(method, "label/round1")
    make_deterministic(3, 1)
    (artifacts / "checkpoints").mkdir(exist_ok=True)
    metrics: dict[str, float] = importlib.import_module(f"stages.methods.{method}").align(
        config_of(method, **changes),
        init=artifacts / "policy/sft",
        signal=artifacts / signal,
        data=artifacts / "data",
        output=artifacts / "policy" / name,
        checkpoints=artifacts / "checkpoints",
        curve=artifacts / f"{name}.csv",
        run=Run(),
        seed=3,
    )
    shutil.rmtree(artifacts / "checkpoints")
    return metrics


@pytest.fixture
def count_a(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that these words can earn: a point for each `a`."""
    from stages.models import rewards

    monkeypatch.setattr(
        rewards, "load_reward", lambda *_: lambda prompts, completions: [float(c.count("a")) for c in completions]
    )


def outputs(artifacts: Path, name: str = "new") -> list[bytes]:
    return [(artifacts / "policy" / name / "model.safetensors").read_bytes(), (artifacts / f"{name}.csv").read_bytes()]


class Crashed(Exception):
    pass


def crash_after(step: int) -> Callable[..., Any]:
    original = Trainer._maybe_log_save_evaluate

    def saving(self: Trainer, *arguments: Any, **named: Any) -> Any:
        result = original(self, *arguments, **named)
        if self.state.global_step == step:
            raise Crashed
        return result

    return saving


def recorded_steps(patch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are trained from now on, as trainers count them."""
    steps: list[int] = []
    original = Trainer.training_step

    def recording(self: Trainer, *arguments: Any, **named: Any) -> Any:
        steps.append(self.state.global_step)
        return original(self, *arguments, **named)

    patch.setattr(Trainer, "training_step", recording)
    return steps


@pytest.mark.parametrize("method", ["sft", *PREFERENCES, *REWARDS])
def test_the_same_seed_gives_the_same_bytes_also_after_a_crash(
    artifacts: Path, method: str, count_a: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = run_align(artifacts, method)
    assert set(metrics) >= FIGURES[method]
    rows = list(csv.DictReader((artifacts / "new.csv").open()))
    assert rows[-1]["step"] == "4"
    assert not any("second" in name or "time" in name for name in rows[0])  # what differs from run to run stays out of outputs
    before = AutoModelForCausalLM.from_pretrained(artifacts / "policy/sft")
    after = AutoModelForCausalLM.from_pretrained(artifacts / "policy/new")
    assert after.state_dict().keys() == before.state_dict().keys()
    assert not torch.equal(after.lm_head.weight, before.lm_head.weight)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_maybe_log_save_evaluate", crash_after(3))
        with pytest.raises(Crashed):
            run_align(artifacts, method, "resumed")
    assert (artifacts / "checkpoints/checkpoint-2").is_dir()
    with monkeypatch.context() as patch:
        steps = recorded_steps(patch)
        run_align(artifacts, method, "resumed")
    assert min(steps) == 2  # the first two are the checkpoint's
    assert outputs(artifacts, "resumed") == outputs(artifacts)


def test_packing_refuses_what_it_would_cut(artifacts: Path) -> None:
    write_jsonl(artifacts / "data/sft/train.jsonl", [{"prompt": PROMPTS[0], "completion": says("a " * 80)}])
    with pytest.raises(ValueError, match=r"sft: packing: 1 of 1 rows are longer than the model's context of 64 tokens"):
        run_align(artifacts, "sft", packing=True)
    with pytest.raises(ValueError, match="sft: packing: expected a model with a longest context"):
        require_fit([[1]], None)


def test_packed_rows_give_the_step_that_single_rows_give(artifacts: Path) -> None:
    """16 rows in one batch, padded, and the same rows packed, each of which sees itself alone: the same policy after a step."""
    one_step = {"batch_size": 16, "micro_batch_size": 16, "max_steps": 1, "warmup_fraction": 0.0}
    single = run_align(artifacts, "sft", "single", **one_step)
    packed = run_align(artifacts, "sft", "packed", packing=True, **one_step)
    folders = [artifacts / "policy" / name for name in ("single", "packed")]
    first, second = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)
    assert packed["validation_loss"] == pytest.approx(single["validation_loss"], abs=1e-4)


# ---- what a user gets wrong, and models from elsewhere ---------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo"])
def test_a_signal_of_another_kind_or_without_rows_is_named(artifacts: Path, method: str) -> None:
    signal = artifacts / ("data/sft" if method == "sft" else "label/round1")
    write_jsonl(signal / "validation.jsonl", [])
    with pytest.raises(ValueError, match=rf"{method}: expected rows of prompt, .*validation.jsonl, found none"):
        run_align(artifacts, method)
    write_jsonl(signal / "train.jsonl", [{"prompt": PROMPTS[0], "label": True}])
    with pytest.raises(ValueError, match=rf"{method}: expected rows of prompt, .*found one of prompt, label without"):
        run_align(artifacts, method)


def test_several_gpus_in_one_process_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one process sees 2 GPUs"):
        train(SimpleNamespace(args=SimpleNamespace(n_gpu=2)), tmp_path)  # type: ignore[arg-type]


def test_the_best_checkpoint_needs_a_validation_to_choose_by(artifacts: Path) -> None:
    with pytest.raises(ValueError, match="evaluate_every 5 lies behind the last of 4 steps"):
        run_align(artifacts, "sft", keep="best", evaluate_every=5)


@pytest.mark.parametrize("method", ["sft", *PREFERENCES])
def test_small_steps_are_not_rounded_away_in_a_model_saved_in_bfloat16(artifacts: Path, method: str) -> None:
    """At 1e-6 most weights would not move by a last bit of bfloat16."""
    save_policy(tiny_policy().to(torch.bfloat16), word_tokenizer(), artifacts / "policy/sft")
    run_align(artifacts, method, learning_rate=1e-6, weight_decay=0.0)
    before, after = (AutoModelForCausalLM.from_pretrained(artifacts / "policy" / name).state_dict() for name in ("sft", "new"))
    moved = torch.cat([(after[name].float() != before[name].float()).flatten() for name in before if "proj" in name])
    assert moved.float().mean() > 0.9


def test_samples_are_shown_of_prompts_that_leave_room(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt too long to answer must not end a stage whose training is done."""
    tables: list[Any] = []
    monkeypatch.setattr(Run, "log_table", lambda self, name, rows: tables.append(rows))
    run = Run()
    monkeypatch.setattr(run, "id", "1")
    long = [{"role": "user", "content": "a " * 60}]
    log_samples(run, artifacts / "policy/sft", [{"prompt": long}, {"prompt": PROMPTS[0]}], seed=1, max_new_tokens=8)
    log_samples(run, artifacts / "policy/sft", [{"prompt": long}], seed=1, max_new_tokens=8)
    assert [[row["prompt"] for row in rows] for rows in tables] == [[PROMPTS[0][-1]["content"]]]


def test_a_large_model_is_sampled_in_fewer_rows_side_by_side() -> None:
    assert rows_in_cache(tiny_policy(), tokens=100, most=512) == 512
    large = tiny_policy()
    large.config.update({"num_hidden_layers": 28, "num_key_value_heads": 4, "head_dim": 128})
    assert rows_in_cache(large, tokens=800, most=512) == 8 * 2**30 // (2 * 28 * 4 * 128 * 4 * 800)
    assert rows_in_cache(large, tokens=10**6, most=512) == 1


def test_the_context_is_that_of_the_text_part_and_may_have_no_end() -> None:
    from transformers import BloomConfig, Gemma3Config

    assert context_of(Gemma3Config(text_config={"max_position_embeddings": 77})) == 77
    assert context_of(BloomConfig()) is None


# ---- LoRA ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", *PREFERENCES, *REWARDS])
def test_an_adapter_is_merged_and_kept_beside_if_asked_for(artifacts: Path, method: str, count_a: None) -> None:
    from peft import PeftModel

    run_align(artifacts, method, lora_rank=2, lora_output="adapter")
    merged = AutoModelForCausalLM.from_pretrained(artifacts / "policy/new")
    base = AutoModelForCausalLM.from_pretrained(artifacts / "policy/sft")
    assert merged.state_dict().keys() == base.state_dict().keys()
    ids = torch.tensor([[2, 9, 4, 3, 5, 6, 4]])
    with torch.no_grad():
        before, after = base(ids).logits, merged(ids).logits
        adapted = PeftModel.from_pretrained(base, artifacts / "policy/new/adapter")(ids).logits
    assert not torch.allclose(before, after, atol=1e-4)
    assert torch.allclose(adapted, after, atol=1e-5)
    assert torch.equal(merged.lm_head.weight, AutoModelForCausalLM.from_pretrained(artifacts / "policy/sft").lm_head.weight)
    run_align(artifacts, method, "other", lora_rank=2)
    assert outputs(artifacts, "other") == outputs(artifacts)
    assert not (artifacts / "policy/other/adapter").exists()


def test_an_unknown_lora_output_is_refused(artifacts: Path) -> None:
    with pytest.raises(ValueError, match="expected merged or adapter, found 'both'"):
        run_align(artifacts, "sft", lora_output="both")


# ---- DPO ----------------------------------------------------------------------------------------------------------------


def test_dpo_losses_and_their_weights() -> None:
    assert weighted_losses(config_of("dpo")) == {"sigmoid": 1.0, "sft": 1.0}
    assert weighted_losses(config_of("dpo", loss="hinge", sft_weight=0.0)) == {"hinge": 1.0}
    mpo = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}
    assert weighted_losses(config_of("dpo", loss_weights=mpo)) == mpo


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"loss": "sigmoidal"}, "loss 'sigmoidal': expected one of sigmoid, hinge"),
        ({"loss_weights": {"hing": 1.0}}, "loss 'hing'"),
        ({"loss": "sft"}, "method: sft"),
        ({"label_smoothing": 0.1}, "sigmoid, sft do not read it; those that do: robust"),
        ({"loss": "robust", "label_smoothing": 0.5}, "expected a share in"),
        ({"loss": "exo_pair"}, "expected label_smoothing above 0"),
        ({"f_divergence": "kl"}, "f_divergence 'kl'"),
        ({"f_divergence": "js_divergence", "loss": "aot"}, "not defined for aot"),
        ({"length_alpha": 2.0}, "length_alpha 2.0"),
        ({"loss": "aot", "policy_weighting": True}, "not with aot"),
    ],
)
def test_a_dpo_config_that_would_be_ignored_or_fail_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        validate(config_of("dpo", **changes))


@pytest.mark.parametrize(
    ("chosen", "rejected", "warned"), [(-0.2, -0.5, True), (0.1, -0.5, False), (-0.5, -0.2, False), (0.5, 0.1, False)]
)
def test_both_likelihoods_falling_while_the_margin_grows_is_told(chosen: float, rejected: float, warned: bool) -> None:
    message = displacement({"eval_rewards/chosen": chosen, "eval_rewards/rejected": rejected}, beta=0.1)
    assert (message is not None) is warned
    if message:
        assert "grew to 3 nats" in message
        assert "chosen one's by 2, the rejected one's by 5" in message


def test_dpo_warns_once_and_counts_it(artifacts: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`c` and `d` become rare in training; in validation they stand on both sides, on the rejected one more often."""
    pair = {"prompt": PROMPTS[0], "chosen": says("a a"), "rejected": says("c d c d")}
    write_jsonl(artifacts / "label/round1/train.jsonl", [pair] * 8)
    write_jsonl(artifacts / "label/round1/validation.jsonl", [pair | {"chosen": says("c d")}] * 2)
    with caplog.at_level(logging.WARNING, logger="stages.methods.dpo"):
        metrics = run_align(artifacts, "dpo", max_steps=12, learning_rate=1e-2, sft_weight=0.0, beta=0.05)
    warnings = [record.getMessage() for record in caplog.records if record.name == "stages.methods.dpo"]
    assert metrics["both_fell"] == 1.0
    assert metrics["rejected_logps_change"] < metrics["chosen_logps_change"] < 0
    assert len(warnings) == 1
    assert "both log-probabilities fell" in warnings[0]


# ---- KTO ----------------------------------------------------------------------------------------------------------------


def test_pairs_are_split_into_a_good_and_a_bad_answer() -> None:
    pair, label = pairs(1)[0], {"prompt": PROMPTS[1], "completion": says("b"), "label": False, "score": 3.0}
    assert [*unpaired([pair, label])] == [
        {"prompt": pair["prompt"], "completion": pair["chosen"], "label": True},
        {"prompt": pair["prompt"], "completion": pair["rejected"], "label": False},
        {"prompt": PROMPTS[1], "completion": says("b"), "label": False},
    ]


def test_kto_trains_the_same_on_pairs_and_on_the_labels_that_they_are(artifacts: Path) -> None:
    metrics = run_align(artifacts, "kto")
    assert metrics["desirable_fraction"] == 0.5
    for split, count in (("train", 16), ("validation", 6)):
        write_jsonl(artifacts / f"label/round1/{split}.jsonl", unpaired(pairs(count)))
    run_align(artifacts, "kto", "labels")
    assert outputs(artifacts, "labels") == outputs(artifacts)


def test_rows_of_a_pair_are_not_left_beside_each_other(tmp_path: Path) -> None:
    """Or a prompt's other completion would stand for a mismatched one."""
    rows = [{**row, "prompt": [{"role": "user", "content": str(number)}]} for number, row in enumerate(pairs(50))]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    order = [row["prompt"] for row in read_labels(tmp_path / "rows.jsonl", seed=1)]
    assert sum(one == other for one, other in itertools.pairwise(order)) < 5
    assert order == [row["prompt"] for row in read_labels(tmp_path / "rows.jsonl", seed=1)]
    assert order != [row["prompt"] for row in read_labels(tmp_path / "rows.jsonl", seed=2)]


def test_labels_of_one_kind_are_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [row for row in unpaired(pairs(3)) if row["label"]])
    with pytest.raises(ValueError, match="found 3 and 0"):
        read_labels(tmp_path / "rows.jsonl", seed=1)


def test_kto_needs_more_than_one_row_in_a_forward_pass(artifacts: Path) -> None:
    with pytest.raises(ValueError, match="micro_batch_size 1"):
        run_align(artifacts, "kto", micro_batch_size=1)
    run_align(artifacts, "kto", micro_batch_size=1, loss="apo_zero_unpaired", max_steps=1)


# ---- groups -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", REWARDS)
def test_the_reward_rises(artifacts: Path, method: str, count_a: None) -> None:
    settings: dict[str, Any] = {
        "rollout_batch_size": 32,
        "batch_size": 32,
        "micro_batch_size": 32,
        "learning_rate": 2e-2,
        "beta": 0.0,
    }
    run_align(artifacts, method, max_steps=16, missing_eos_penalty=0.0, **settings)
    rows = list(csv.DictReader((artifacts / "new.csv").open()))
    rewards = [float(row["reward"]) for row in rows]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 1


def test_a_rollout_is_split_into_steps_and_gone_over_again(artifacts: Path, count_a: None) -> None:
    settings: dict[str, Any] = {"rollout_batch_size": 16, "iterations": 2, "evaluate_every": 4, "max_steps": 8}
    run_align(artifacts, "grpo", **settings)
    lengths = [row["length_tokens"] for row in csv.DictReader((artifacts / "new.csv").open())]
    assert [bool(length) for length in lengths] == [True, False, False, False] * 2  # sampled at the first of each four


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_generations": 1}, "num_generations 1: expected at least 2"),
        ({"rollout_batch_size": 12}, "no multiple of batch_size 8: set it to 16"),
        ({"num_generations": 3}, "no multiple of num_generations 3: set it to 9"),
        ({"rollout_batch_size": 16, "evaluate_every": 3}, "a multiple of the 2 steps made on a rollout, such as 4"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"keep": "best"}, "keep best"),
        ({"beta": -0.1}, "beta -0.1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        validate_groups(config_of("grpo", **changes), "grpo")


def test_an_unknown_choice_is_refused(artifacts: Path) -> None:
    with pytest.raises(ValueError, match="loss 'ppo': expected one of grpo, dapo"):
        run_align(artifacts, "grpo", loss="ppo")


def test_a_poor_reward_model_is_refused(artifacts: Path) -> None:
    write_json(artifacts / "reward/gold/reward.json", {"kind": "model", "accuracy": 0.55})
    for method in REWARDS:
        with pytest.raises(ValueError, match=rf"{method}: .*0\.600.*0\.550"):
            run_align(artifacts, method, min_reward_accuracy=0.6)


def test_epochs_count_passes_over_the_prompts_where_max_steps_does_not_say() -> None:
    config = config_of("grpo", max_steps=-1, epochs=2.0, rollout_batch_size=16)  # 4 prompts a rollout, 2 steps each
    assert config.steps(10) == 10
    assert config_of("grpo", max_steps=7).steps(10) == 7


def test_every_pass_has_every_prompt_in_an_order_of_its_own() -> None:
    first = prompts_in_order(PROMPTS, 20, seed=3)
    assert [sorted(map(str, first[at : at + 8])) for at in (0, 8)] == [sorted(map(str, PROMPTS))] * 2
    assert first[:8] != first[8:16]
    assert first == prompts_in_order(PROMPTS, 30, seed=3)[:20]


@pytest.mark.parametrize("method", REWARDS)
def test_only_prompts_of_the_families_that_are_named_are_answered(
    artifacts: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.models import rewards

    asked: list[Any] = []

    def reward(prompts: list[Any], completions: list[str]) -> list[float]:
        asked.extend(prompts)
        return [0.0] * len(prompts)

    monkeypatch.setattr(rewards, "load_reward", lambda *_: reward)
    rows = [{"id": str(i), "prompt": prompt, "family": "sums" if i < 2 else "facts"} for i, prompt in enumerate(PROMPTS)]
    write_jsonl(artifacts / "data/prompts/train.jsonl", rows)
    run_align(artifacts, method, families=["sums"])
    assert {str(prompt) for prompt in asked} == {str(prompt) for prompt in PROMPTS[:2]}
    with pytest.raises(ValueError, match=rf"{method}: families: no prompt is of code; there are facts, sums"):
        run_align(artifacts, method, families=["sums", "code"])


def test_families_are_compared_as_text_and_a_prompt_without_one_is_of_none() -> None:
    rows = [{"prompt": PROMPTS[0], "family": 3}, {"prompt": PROMPTS[1], "family": None}, {"prompt": PROMPTS[2]}]
    assert prompts_of(rows, ["3"], "grpo") == PROMPTS[:1]
    assert prompts_of(rows, [], "grpo") == PROMPTS[:3]
    with pytest.raises(ValueError, match="no prompt is of None; there are 3"):
        prompts_of(rows, ["None"], "grpo")
    with pytest.raises(ValueError, match="there are none that has a family"):
        prompts_of(rows[1:], ["sums"], "grpo")


@pytest.mark.parametrize("method", REWARDS)
def test_too_few_prompts_are_refused_and_not_waited_for(artifacts: Path, method: str) -> None:
    with pytest.raises(ValueError, match=rf"{method}: {len(PROMPTS)} prompts, 4 times each, do not fill a rollout of 64"):
        run_align(artifacts, method, max_steps=-1, rollout_batch_size=64, batch_size=64)
    write_jsonl(artifacts / "data/prompts/train.jsonl", [])
    with pytest.raises(ValueError, match=f"{method}: expected rollout prompts, found none"):
        run_align(artifacts, method)


@needs_bubblewrap
@pytest.mark.parametrize("method", REWARDS)
def test_programs_are_executed_for_their_reward(artifacts: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a group's answers are programs that pass: what was executed decides the reward, and the outcomes are logged."""
    from stages.rewards.code import CodeReward

    checks = [{"prompt": prompt, "tests": ["assert f(2) == 4"]} for prompt in PROMPTS]
    write_jsonl(artifacts / "reward/gold/references.jsonl", checks)
    limits = {"seconds": 5.0, "memory_mib": 512, "processes": 8, "scratch_mib": 16}
    write_json(artifacts / "reward/gold/reward.json", {"kind": "code", "isolation": "bubblewrap", "limits": limits})
    original = CodeReward.__call__

    def answered(self: CodeReward, prompts: Any, completions: list[str]) -> list[float]:
        programs = ["def f(x):\n    return x * x" if i % 2 else text for i, text in enumerate(completions)]
        return original(self, prompts, programs)

    logged: dict[str, float] = {}
    monkeypatch.setattr(CodeReward, "__call__", answered)
    monkeypatch.setattr(Run, "log_metrics", lambda self, metrics, step=None: logged.update(metrics))
    metrics = run_align(artifacts, method, max_steps=2)
    assert metrics["reward"] == pytest.approx(0.5)
    assert logged["verifier_passed"] == 8
    assert sum(value for name, value in logged.items() if name.startswith("verifier_")) == 16


@pytest.mark.parametrize("method", REWARDS)
def test_what_became_of_checks_is_logged(artifacts: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [{"prompt": prompt, "answer": "1"} for prompt in PROMPTS]
    write_jsonl(artifacts / "reward/gold/references.jsonl", answers)
    write_json(artifacts / "reward/gold/reward.json", {"kind": "math"})
    logged: dict[str, float] = {}
    monkeypatch.setattr(Run, "log_metrics", lambda self, metrics, step=None: logged.update(metrics))
    run_align(artifacts, method, max_steps=2)
    assert logged["verifier_missing"] == 16  # two rollouts of eight; the words are no numbers


def test_a_completion_that_does_not_end_is_fined() -> None:
    rewards, unfinished = reward_functions(lambda prompts, completions: [2.0] * len(completions), (4,), 0.5)
    assert rewards(prompts=PROMPTS[:2], completions=[says("a"), says("b")], completion_ids=[[5, 4], [6]]) == [2.0, 2.0]
    assert unfinished(prompts=PROMPTS[:2], completions=[says("a"), says("b")], completion_ids=[[5, 4], [6]]) == [0.0, -0.5]


def test_a_reward_that_is_no_number_stops_the_run_and_nothing_takes_its_place() -> None:
    rewards, _ = reward_functions(lambda prompts, completions: [1.0, float("nan")], (4,), 0.5)
    with pytest.raises(FloatingPointError, match="nan for 'b d' as an answer to 'r q'"):
        rewards(prompts=PROMPTS[:2], completions=[says("a"), says("b d")], completion_ids=[[5], [6]])


def test_figures_are_means_of_the_last_tenth_or_the_last_there_is() -> None:
    history = [
        {"step": float(step), "reward": float(step)} | ({"length_tokens": 7.0} if step == 3 else {}) for step in range(1, 21)
    ]
    assert last_means(history) == {"reward": 19.5, "length_tokens": 7.0}
    assert group_history([{"step": 1, "kl": 0.5, "completions/clipped_ratio": 0.25, "clip_ratio/low_min": 0.0}], kl="kl_k1") == [
        {"step": 1, "kl_k1": 0.5, "end_of_turn_fraction": 0.75}
    ]


# ---- what is configured reaches TRL -------------------------------------------------------------------------------------

TOLD: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # method: TRL's class, values that are no defaults, and what TRL is to be told
    "sft": (
        "trl.SFTConfig",
        {"packing": True, "epochs": 5, "schedule": "constant", "warmup_fraction": 0.3, "weight_decay": 0.02, "adam_beta2": 0.9,
         "max_grad_norm": 0.5, "max_steps": 7, "evaluate_every": 3, "batch_size": 12, "micro_batch_size": 4, "learning_rate": 2e-5,
         "gradient_checkpointing": True, "keep": "best"},
        {"packing": True, "max_length": 64, "num_train_epochs": 5, "lr_scheduler_type": "constant", "warmup_steps": 0.3,
         "weight_decay": 0.02, "adam_beta2": 0.9, "max_grad_norm": 0.5, "max_steps": 7, "eval_steps": 3, "save_steps": 3,
         "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "learning_rate": 2e-5, "activation_checkpointing": True,
         "load_best_model_at_end": True, "completion_only_loss": True},
    ),
    "dpo": (
        "trl.DPOConfig",
        {"beta": 0.3, "loss": "robust", "sft_weight": 0.5, "loss_weights": {"hinge": 0.25}, "label_smoothing": 0.2,
         "f_divergence": "alpha_divergence", "f_alpha": 0.7, "length_alpha": 0.4, "discopop_tau": 0.06, "policy_weighting": True},
        {"beta": 0.3, "loss_type": ["robust", "sft", "hinge"], "loss_weights": [1.0, 0.5, 0.25], "label_smoothing": 0.2,
         "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7, "ld_alpha": 0.4, "discopop_tau": 0.06,
         "use_weighting": True, "precompute_ref_log_probs": True, "max_length": None},
    ),
    "kto": (
        "trl.KTOConfig",
        {"beta": 0.3, "loss": "apo_zero_unpaired", "desirable_weight": 1.2, "undesirable_weight": 0.8},
        {"beta": 0.3, "loss_type": "apo_zero_unpaired", "desirable_weight": 1.2, "undesirable_weight": 0.8, "max_length": None},
    ),
    "orpo": ("trl.experimental.orpo.ORPOConfig", {"beta": 0.3}, {"beta": 0.3}),
    "grpo": (
        "trl.GRPOConfig",
        {"num_generations": 2, "rollout_batch_size": 16, "iterations": 3, "evaluate_every": 6, "max_new_tokens": 5, "temperature": 0.7,
         "mask_truncated": True, "loss": "dapo", "scale_rewards": "batch", "importance_sampling": "sequence", "beta": 0.2,
         "unbiased_kl": True, "epsilon": 0.1, "epsilon_high": 0.3, "entropy_coefficient": 0.01},
        {"num_generations": 2, "generation_batch_size": 16, "num_iterations": 3, "max_completion_length": 5, "temperature": 0.7,
         "mask_truncated_completions": True, "loss_type": "dapo", "scale_rewards": "batch", "importance_sampling_level": "sequence",
         "beta": 0.2, "use_bias_correction_kl": True, "epsilon": 0.1, "epsilon_high": 0.3, "entropy_coef": 0.01, "top_k": 0, "top_p": 1.0},
    ),
    "rloo": (
        "trl.RLOOConfig",
        {"num_generations": 2, "beta": 0.2, "normalise_advantages": True, "clip_score": 3.0, "epsilon": 0.1, "temperature": 0.7},
        {"num_generations": 2, "beta": 0.2, "normalize_advantages": True, "reward_clip_range": (-3.0, 3.0), "epsilon": 0.1, "temperature": 0.7},
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", TOLD)
def test_what_is_configured_reaches_trl(artifacts: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, values, expected = TOLD[method]
    told: dict[str, Any] = {}

    def record(**arguments: Any) -> None:
        told.update(arguments)
        raise Crashed

    monkeypatch.setattr(target, record)
    with pytest.raises(Crashed):
        run_align(artifacts, method, **values)
    assert {name: told[name] for name in expected} == expected
