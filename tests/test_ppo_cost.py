"""Safe RLHF's PPO: a multiplier that follows the cost, the objective that it weighs, resuming, and what is refused."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from bigram import POLICY, REFERENCE, bigram
from ppo_tiny import PROMPTS, tiny_config, tiny_policy, trainer_of, word_tokenizer
from test_ppo_align import run_align, save_reward

from plumbline.methods.online.ppo import constrained
from plumbline.methods.online.ppo.shaping import LagrangeMultiplier
from plumbline.methods.online.ppo.trainer import train
from plumbline.models.saving import save_policy
from plumbline.pipeline.records import write_json, write_jsonl
from plumbline.rewards.reward import WeightedSum, load_reward
from plumbline.rows import Message


def count_letters(prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
    """A cost of one for each `a` and a half for each `b`."""
    return [completion.split().count("a") + 0.5 * completion.split().count("b") for completion in completions]


def test_the_multiplier_by_hand() -> None:
    multiplier = LagrangeMultiplier(value=2.0, limit=0.5, learning_rate=0.1, largest=3.0)
    assert multiplier.combine(reward=4.0, cost=0.5) == pytest.approx((4.0 - 2.0 * 0.5) / 3.0)
    multiplier.update(1.5)  # ln λ grows by 0.1 · 2 · (1.5 − 0.5)
    assert multiplier.value == pytest.approx(2.0 * math.exp(0.2))
    multiplier.update(0.5)  # at the limit it stays
    assert multiplier.value == pytest.approx(2.0 * math.exp(0.2))
    multiplier.update(100.0)
    assert multiplier.value == 3.0
    multiplier.update(-100.0)
    assert multiplier.value == pytest.approx(3.0 / math.e)


def test_scores_are_the_reward_less_lambda_times_the_cost() -> None:
    """Under the table, completions differ: the first token is `a` one time in two."""
    trainer = trainer_of(
        tiny_config(cost_limit=0.0, missing_eos_penalty=0.0), policy=bigram(POLICY), reference=bigram(REFERENCE),
        cost=count_letters, init_lambda=0.5,
    )  # fmt: skip
    episodes, _ = trainer.roll_out(0)
    texts = [episode.text.split() for episode in episodes]
    expected = [(text.count("a") - 0.5 * (text.count("a") + 0.5 * text.count("b"))) / 1.5 for text in texts]
    assert trainer.shape(episodes) == pytest.approx(expected)
    assert len({episode.cost for episode in episodes}) > 1


def test_metrics_hold_the_lambda_that_was_used_the_cost_and_the_plain_reward() -> None:
    trainer = trainer_of(tiny_config(cost_limit=0.0), cost=count_letters, init_lambda=0.5)
    episodes, metrics, _ = trainer.step(0)
    assert metrics["lambda"] == 0.5
    assert metrics["cost"] == pytest.approx(sum(episode.cost for episode in episodes) / len(episodes))
    assert metrics["reward"] == pytest.approx(sum(episode.text.split().count("a") for episode in episodes) / len(episodes))
    assert trainer.multiplier is not None
    assert trainer.multiplier.value == pytest.approx(0.5 * math.exp(0.1 * 0.5 * metrics["cost"]))


def test_lambda_grows_above_the_limit_and_falls_below_it() -> None:
    """Every completion costs 1: with a limit of 0 the factor is e^(0.1 · λ), with a limit of 2 it is e^(−0.1 · λ)."""
    for limit, sign in ((0.0, 1), (2.0, -1)):
        trainer = trainer_of(tiny_config(cost_limit=limit, update_epochs=1), cost=cost_of_one, init_lambda=0.5)
        first, second = trainer.step(0)[1]["lambda"], trainer.step(1)[1]["lambda"]
        assert (first, second) == pytest.approx((0.5, 0.5 * math.exp(sign * 0.1 * 0.5)))


def cost_of_one(prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
    return [1.0] * len(completions)


def test_a_resumed_run_has_the_same_lambda_and_weights(tmp_path: Path) -> None:
    def go(folder: Path, log: Any) -> tuple[torch.Tensor, list[dict[str, float]]]:
        trainer = trainer_of(tiny_config(cost_limit=0.2), cost=count_letters, init_lambda=0.7)
        history = train(trainer, folder, log=log, log_samples=lambda *_: None)
        return torch.cat([one.detach().flatten() for one in trainer.policy.parameters()]), history

    def crash(step: int, *_: Any) -> None:
        if step == 2:
            raise KeyboardInterrupt

    whole, history = go(tmp_path / "whole", log=lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", log=crash)
    resumed, resumed_history = go(tmp_path / "cut", log=lambda *_: None)
    assert torch.equal(resumed, whole)
    assert resumed_history == history
    assert len({row["lambda"] for row in history}) == len(history)


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    save_policy(tiny_policy(), word_tokenizer(), tmp_path / "policy/sft")
    save_reward(tmp_path / "reward/rm", 0.8)
    save_reward(tmp_path / "reward/cost", 0.7, seed=1)
    for name, weight in (("safe", -0.5), ("both", 0.5)):
        parts = [{"reward": "rm", "weight": 2.0}, {"reward": "cost", "weight": weight}]
        write_json(tmp_path / f"reward/{name}/reward.json", {"kind": "sum", "parts": parts})
    write_jsonl(tmp_path / "data/prompts/train.jsonl", [{"id": str(i), "prompt": prompt} for i, prompt in enumerate(PROMPTS)])
    return tmp_path


def test_a_sum_with_a_cost_is_split_and_its_weight_is_the_first_lambda(artifacts: Path) -> None:
    whole = load_reward(artifacts / "reward/safe")
    reward, cost, init_lambda = constrained(whole, artifacts)
    assert isinstance(reward, WeightedSum)
    assert init_lambda == 0.5
    texts = ["a b", "c", "d d"]
    parts = zip(reward(PROMPTS[:3], texts), cost(PROMPTS[:3], texts), strict=True)
    assert whole(PROMPTS[:3], texts) == pytest.approx([r - 0.5 * c for r, c in parts])


def test_align_takes_a_cost_limit_and_refuses_a_reward_without_a_cost(artifacts: Path) -> None:
    figures, run = run_align(artifacts, "safe", cost_limit=0.0)
    assert {"cost", "lambda", "reward"} <= set(figures)
    assert run.steps[0]["lambda"] == 0.5
    for reward in ("rm", "both"):
        with pytest.raises(ValueError, match=r"cost_limit: .* negative second_weight"):
            run_align(artifacts, reward, cost_limit=0.0)
