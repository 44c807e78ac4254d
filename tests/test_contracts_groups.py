"""What we rely on in TRL's group trainers: losses and whole steps of GRPO and RLOO, derived by hand (tests/bigram.py)."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from aligning import config_of
from bigram import (
    CHOSEN,
    LN2,
    OTHER_PROMPT,
    POLICY,
    PROMPT,
    REFERENCE,
    REJECTED,
    SIZE,
    TOKENIZER,
    WIDTH,
    bigram,
    logp,
    save_bigram,
    sequence_logp,
    weights,
)
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from plumbline.methods.online.groups import group_arguments
from plumbline.models.chat import completion_ids, prompt_ids
from plumbline.rows import text_of


def group_trainer(tmp_path: Path, method: str, reward: Any = None, **changes: Any) -> Any:
    """A trainer of P with Q as reference, with our own arguments."""
    cls, args = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[method]
    config = replace(config_of(method), num_generations=4, rollout_batch_size=8, batch_size=8, micro_batch_size=8, beta=0.1,
                     max_new_tokens=5, weight_decay=0.0, max_grad_norm=1e9, schedule="constant", warmup_fraction=0.0, learning_rate=1.0)  # fmt: skip
    model = bigram(POLICY)
    model.name_or_path = model.config._name_or_path = str(save_bigram(REFERENCE, tmp_path / "reference"))
    return cls(
        model=model,
        reward_funcs=[reward or (lambda completions, **_: [0.0] * len(completions))],
        args=args(**group_arguments(config, tmp_path / "checkpoints", 1, 1) | {"optim": "sgd"} | changes),
        train_dataset=Dataset.from_list([{"prompt": PROMPT}, {"prompt": OTHER_PROMPT}]),
        processing_class=TOKENIZER,
    )


def group_batch() -> dict[str, torch.Tensor]:
    """The chosen completion with advantage 1 and the rejected one with −1, sampled from Q: ratios 2, 1, 1 and ½, 1."""
    start = prompt_ids(TOKENIZER, PROMPT)
    completions = [completion_ids(TOKENIZER, PROMPT, text) for text in (CHOSEN, REJECTED)]
    sampled = [[logp(REFERENCE, b, t) for b, t in zip([start[-1], *tokens], tokens, strict=False)] for tokens in completions]
    width = max(map(len, completions))
    return {
        "prompt_ids": torch.tensor([start] * 2),
        "prompt_mask": torch.ones(2, len(start), dtype=torch.long),
        "completion_ids": torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in completions]),
        "completion_mask": torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in completions]),
        "advantages": torch.tensor([1.0, -1.0]),
        "num_items_in_batch": torch.tensor(5),
        "old_per_token_logps": torch.tensor([logps + [0.0] * (width - len(logps)) for logps in sampled]),
        "ref_per_token_logps": torch.tensor([logps + [0.0] * (width - len(logps)) for logps in sampled]),
        "old_logps": torch.tensor([sum(logps) for logps in sampled]),
    }


# Clipped at ε = 0.2: −(1.2 + 1 + 1) for the chosen, 0.8 + 1 for the rejected. k3 = q/p − ln q/p − 1 at the first tokens, else 0.
POLICY_CHOSEN, POLICY_REJECTED = -3.2, 1.8
KL_CHOSEN, KL_REJECTED = LN2 - 1 / 2, 1 - LN2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss_type": "grpo"}, ((POLICY_CHOSEN + 0.1 * KL_CHOSEN) / 3 + (POLICY_REJECTED + 0.1 * KL_REJECTED) / 2) / 2),
        ({"loss_type": "dapo"}, (POLICY_CHOSEN + POLICY_REJECTED + 0.1 * (KL_CHOSEN + KL_REJECTED)) / 5),
        ({"loss_type": "bnpo"}, (POLICY_CHOSEN + POLICY_REJECTED + 0.1 * (KL_CHOSEN + KL_REJECTED)) / 5),
        ({"loss_type": "dr_grpo"}, (POLICY_CHOSEN + POLICY_REJECTED + 0.1 * (KL_CHOSEN + KL_REJECTED)) / (2 * 5)),
        # a ratio for each answer: 2^⅓ → 1.2 and 2^−½ → 0.8
        ({"loss_type": "grpo", "importance_sampling_level": "sequence"},
         (-1.2 + 0.1 * KL_CHOSEN / 3 + 0.8 + 0.1 * KL_REJECTED / 2) / 2),
        # the KL times the unclipped ratio
        ({"loss_type": "grpo", "use_bias_correction_kl": True},
         ((POLICY_CHOSEN + 0.1 * 2 * KL_CHOSEN) / 3 + (POLICY_REJECTED + 0.1 * KL_REJECTED / 2) / 2) / 2),
        # only the upper bound
        ({"loss_type": "grpo", "epsilon_high": 0.5, "beta": 0.0}, (-3.5 / 3 + POLICY_REJECTED / 2) / 2),
    ],
)  # fmt: skip
def test_grpo_loss(tmp_path: Path, changes: dict[str, Any], expected: float) -> None:
    trainer = group_trainer(tmp_path, "grpo", **{"use_bias_correction_kl": False} | changes)
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, group_batch()).item() == pytest.approx(expected, rel=1e-5)


def test_rloo_loss(tmp_path: Path) -> None:
    """One ratio for each answer, 2 and ½, clipped: −(1.2 − 0.8) / 2."""
    trainer = group_trainer(tmp_path, "rloo")
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, group_batch()).item() == pytest.approx(-0.2, rel=1e-5)


class Recorder:
    """A reward of one point for each `a` and a tenth for each token, which records what it scores."""

    def __init__(self) -> None:
        self.ids: list[list[int]] = []
        self.texts: list[str] = []

    def __call__(self, prompts: Any, completions: Any, completion_ids: list[list[int]], **_: Any) -> list[float]:
        self.ids += completion_ids
        self.texts += [text_of(completion) for completion in completions]
        return [self.points(ids) for ids in completion_ids]

    def points(self, ids: list[int]) -> float:
        return ids.count(TOKENIZER.convert_tokens_to_ids("a")) + len(ids) / 10


def grpo_weights(rewards: list[float], ids: list[list[int]], start: int) -> list[list[float]]:
    """−dL/d log p of each token: (A − β (1 − q/p)) / (n·length), where A is the reward, standardised within its group (n − 1)."""
    rows = []
    for row, tokens in enumerate(ids):
        group = rewards[row // 4 * 4 : row // 4 * 4 + 4]
        mean = sum(group) / 4
        deviation = math.sqrt(sum((value - mean) ** 2 for value in group) / 3)
        advantage = (rewards[row] - mean) / (deviation + 1e-4)
        pairs = zip([start, *tokens], tokens, strict=False)
        slopes = [1 - math.exp(logp(REFERENCE, b, t) - logp(POLICY, b, t)) for b, t in pairs]
        rows.append([(advantage - 0.1 * slope) / (8 * len(tokens)) for slope in slopes])
    return rows


def rloo_weights(rewards: list[float], ids: list[list[int]], start: int) -> list[list[float]]:
    """−dL/d log p of each token: (R − mean of the other three R) / n, with R the reward less β times the answer's log-ratio."""
    ratios = [sequence_logp(POLICY, start, tokens) - sequence_logp(REFERENCE, start, tokens) for tokens in ids]
    totals = [reward - 0.1 * ratio for reward, ratio in zip(rewards, ratios, strict=True)]
    rows = []
    for row, tokens in enumerate(ids):
        group = totals[row // 4 * 4 : row // 4 * 4 + 4]
        rows.append([(totals[row] - (sum(group) - totals[row]) / 3) / 8] * len(tokens))
    return rows


@pytest.mark.parametrize(("method", "weights_of"), [("grpo", grpo_weights), ("rloo", rloo_weights)])
def test_a_step_moves_the_policy_as_its_formula_says(tmp_path: Path, method: str, weights_of: Any) -> None:
    """From sampling to update: groups, advantages, KL, and the gradient of a table of logits, which is one-hot − P."""
    reward = Recorder()
    changes = {"loss_type": "grpo", "use_bias_correction_kl": False} if method == "grpo" else {}
    trainer = group_trainer(tmp_path, method, reward, **changes)
    before = trainer.model.lm_head.weight.detach().double().clone()
    trainer.train()
    change = trainer.model.lm_head.weight.detach().double() - before

    start = prompt_ids(TOKENIZER, PROMPT)[-1]
    rewards = [reward.points(ids) for ids in reward.ids]
    assert len(set(rewards)) > 2
    expected = torch.zeros(SIZE, WIDTH, dtype=torch.float64)
    for ids, token_weights in zip(reward.ids, weights_of(rewards, reward.ids, start), strict=True):
        for before_token, token, weight in zip([start, *ids], ids, token_weights, strict=False):
            row = torch.tensor(weights(POLICY, before_token), dtype=torch.float64)
            expected[:, before_token] += (
                weight * math.sqrt(WIDTH) * (torch.eye(SIZE, dtype=torch.float64)[token] - row / row.sum())
            )
    assert expected.abs().max() > 0.01
    assert torch.allclose(change, expected, atol=1e-5)
    assert reward.texts == [TOKENIZER.decode(ids, skip_special_tokens=True) for ids in reward.ids]
