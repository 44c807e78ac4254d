"""Safe RLHF's PPO: a multiplier that follows the cost, the objective it makes, resuming, and what is refused."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_tiny import PROMPTS, count_a, tiny_config, tiny_policy, tiny_value_model, trainer_of, word_tokenizer
from test_ppo_align import run_align, save_reward

from stages.methods.ppo import constrained
from stages.methods.ppo.shaping import LagrangeMultiplier
from stages.methods.ppo.trainer import train
from stages.models.rewards import WeightedSum, load_reward
from stages.models.training import save_policy
from stages.pipeline.records import Message, write_json, write_jsonl


def count_letters(prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
    """A cost: one for each `a` and half for each `b`."""
    return [completion.split().count("a") + 0.5 * completion.split().count("b") for completion in completions]


def test_the_multiplier_by_hand() -> None:
    multiplier = LagrangeMultiplier(value=2.0, limit=0.5, learning_rate=0.1, largest=3.0)
    assert multiplier.combine(reward=4.0, cost=0.5) == pytest.approx((4.0 - 2.0 * 0.5) / 3.0)
    multiplier.update(1.5)  # ln λ += 0.1 · 2 · (1.5 − 0.5)
    assert multiplier.value == pytest.approx(2.0 * math.exp(0.2))
    multiplier.update(0.5)  # at the limit it rests
    assert multiplier.value == pytest.approx(2.0 * math.exp(0.2))
    multiplier.update(100.0)
    assert multiplier.value == 3.0
    multiplier.update(-100.0)
    assert multiplier.value == pytest.approx(3.0 / math.e)


def test_scores_are_the_reward_less_lambda_times_the_cost() -> None:
    trainer = trainer_of(tiny_config(cost_limit=0.0, missing_eos_penalty=0.0), cost=count_letters, init_lambda=0.5)
    episodes, _ = trainer.roll_out(0)
    texts = [episode.text.split() for episode in episodes]
    expected = [(text.count("a") - 0.5 * (text.count("a") + 0.5 * text.count("b"))) / 1.5 for text in texts]
    assert trainer.shape(episodes) == pytest.approx(expected)
    assert len({episode.cost for episode in episodes}) > 1


def test_metrics_hold_the_lambda_that_was_used_and_the_cost_beside_the_bare_reward() -> None:
    trainer = trainer_of(tiny_config(cost_limit=0.0), cost=count_letters, init_lambda=0.5)
    episodes, metrics, _ = trainer.step(0)
    assert metrics["lambda"] == 0.5
    assert metrics["cost"] == pytest.approx(sum(episode.cost for episode in episodes) / len(episodes))
    assert metrics["reward"] == pytest.approx(sum(episode.text.split().count("a") for episode in episodes) / len(episodes))
    assert trainer.multiplier is not None
    assert trainer.multiplier.value == pytest.approx(0.5 * math.exp(0.1 * 0.5 * metrics["cost"]))


def cost_at_the_end(limit: float, folder: Path) -> tuple[float, float]:
    """Mean cost and λ over the last quarter of a run whose reward and cost are both the number of `a`s."""
    config = tiny_config(
        episodes=2560, rollout_batch_size=64, minibatch_size=32, micro_batch_size=32, sampling_batch_size=64, learning_rate=5e-3,
        init_kl_coef=0.0, missing_eos_penalty=0.0, schedule="constant", cost_limit=limit, lambda_learning_rate=0.5, checkpoint_every=999,
    )  # fmt: skip
    history = train(
        policy=tiny_policy(), reference=tiny_policy(), value_model=tiny_value_model(), reward=count_a, tokenizer=word_tokenizer(),
        prompts=PROMPTS, config=config, seed=3, checkpoint_folder=folder, log=lambda *_: None, log_samples=lambda *_: None,
        cost=count_a, init_lambda=0.5,
    )  # fmt: skip
    last = history[-len(history) // 4 :]
    return sum(row["cost"] for row in last) / len(last), sum(row["lambda"] for row in last) / len(last)


def test_lambda_adapts_until_the_cost_keeps_to_its_limit(tmp_path: Path) -> None:
    """Reward and cost pull in opposite directions with equal force at λ = 1; a lower limit ends at a lower cost."""
    (low, _), (high, high_lambda) = cost_at_the_end(1.0, tmp_path / "low"), cost_at_the_end(99.0, tmp_path / "high")
    assert low < 2.0
    assert high > 3.5  # a limit that never binds: λ falls and the reward is maximised
    assert high_lambda < 0.1


def test_a_resumed_run_has_the_same_lambda_and_weights(tmp_path: Path) -> None:
    def go(folder: Path, **changes: Any) -> tuple[torch.Tensor, list[dict[str, float]]]:
        policy = tiny_policy()
        history = train(
            policy=policy, reference=tiny_policy(), value_model=tiny_value_model(), reward=count_a, tokenizer=word_tokenizer(),
            prompts=PROMPTS, config=tiny_config(cost_limit=0.2), seed=3, checkpoint_folder=folder, log_samples=lambda *_: None,
            cost=count_letters, init_lambda=0.7, **changes,
        )  # fmt: skip
        return torch.cat([one.detach().flatten() for one in policy.parameters()]), history

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


def test_a_sum_with_a_cost_is_taken_apart_and_its_weight_is_the_first_lambda(artifacts: Path) -> None:
    whole = load_reward(artifacts / "reward/safe")
    reward, cost, init_lambda = constrained(whole, artifacts)
    assert isinstance(reward, WeightedSum)
    assert init_lambda == 0.5
    texts = ["a b", "c", "d d"]
    parts = zip(reward(PROMPTS[:3], texts), cost(PROMPTS[:3], texts), strict=True)
    assert whole(PROMPTS[:3], texts) == pytest.approx([r - 0.5 * c for r, c in parts])


def test_align_keeps_to_a_cost_limit_and_refuses_a_signal_without_a_cost(artifacts: Path) -> None:
    metrics, run = run_align(artifacts, "safe", cost_limit=0.0)
    assert {"cost", "lambda", "reward"} <= set(metrics)
    assert run.steps[0]["lambda"] == 0.5
    for signal in ("rm", "both"):
        with pytest.raises(ValueError, match="negative second_weight"):
            run_align(artifacts, signal, cost_limit=0.0)
