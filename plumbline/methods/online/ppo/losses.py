"""The mathematics of PPO for language models, as pure functions of tensors.

Shapes: `batch` completions of at most `tokens` tokens, right-padded. `mask` (batch, tokens) is True at the tokens of a completion,
including its end-of-turn token, and False after it. Functions that need no rows take flat vectors (n,) of the unmasked tokens.

PPO: arXiv:1707.06347. GAE: arXiv:1506.02438. RLHF: Ziegler et al., arXiv:1909.08593; InstructGPT, arXiv:2203.02155. Details
of the implementation: Huang et al., "The N+ Implementation Details of RLHF with PPO", arXiv:2403.17031. KL estimators:
Schulman, http://joschu.net/blog/kl-approx.html.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def entropies(logits: Tensor) -> Tensor:
    """Entropy (n,) in nats of the distributions with logits (n, vocabulary); differentiable."""
    logps = logits.float().log_softmax(-1)
    return -(logps.exp() * logps).sum(-1)


def kl_k1(log_ratio: Tensor) -> Tensor:
    """Estimates KL(π ‖ π_ref) from log_ratio = log π − log π_ref at samples from π: unbiased, of either sign. Elementwise; nats."""
    return log_ratio


def kl_k3(log_ratio: Tensor) -> Tensor:
    """Estimates KL(π ‖ π_ref) from log_ratio = log π − log π_ref at samples from π: unbiased, never negative, with less variance.

    k3 = r − 1 − log r with r = π_ref/π (Schulman's blog). Elementwise; nats.
    """
    return torch.expm1(-log_ratio) + log_ratio


def token_rewards(log_ratio: Tensor, scores: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Reward of every token (batch, tokens): the pull to the reference at each token, plus the score at the last one.

    log_ratio (batch, tokens) = log π − log π_ref of the sampled tokens, treated as a constant; scores (batch,). Masked tokens get 0.
    """
    # R(x, y) = r(x, y) − β log π(y|x)/π_ref(y|x): Eq. 2, arXiv:1909.08593; Eq. 2, arXiv:2203.02155 (with γ = 0)
    rewards = torch.where(mask, -beta * kl_k1(log_ratio), 0.0)
    last = mask.sum(-1, keepdim=True) - 1
    return rewards.scatter_add(-1, last, scores.unsqueeze(-1))


class Targets(NamedTuple):
    """The targets of the policy and of the value model (batch, tokens); 0 at masked tokens."""

    advantages: Tensor
    returns: Tensor


def generalised_advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Targets:
    """GAE(γ, λ): advantages and returns (batch, tokens) from rewards and values (batch, tokens).

    values[:, t] is V of the state *before* token t. An episode ends after its last token, even if it reached the token limit. The value
    after it is 0, and nothing after the mask affects a token before it.
    """
    values = torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0])
    tokens = values.shape[1]
    for t in reversed(range(tokens)):
        next_values = values[:, t + 1] if t + 1 < tokens else torch.zeros_like(values[:, 0])
        delta = rewards[:, t] + gamma * next_values - values[:, t]  # Eq. 10, arXiv:1506.02438
        following = torch.where(mask[:, t], delta + gamma * lam * following, 0.0)  # Eq. 16, as a recursion
        advantages[:, t] = following
    return Targets(advantages, torch.where(mask, advantages + values, 0.0))


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shifts and scales values (batch, tokens) to mean 0 and variance 1 over the unmasked tokens; masked ones get 0."""
    # population variance, as in the original code (§2.6 of arXiv:2403.17031)
    variance, mean = torch.var_mean(values[mask], correction=0)
    return torch.where(mask, (values - mean) * torch.rsqrt(variance + 1e-8), 0.0)


class Surrogate(NamedTuple):
    """The clipped surrogate loss at each token (n,), the ratio, and whether the ratio was clipped."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor


def clipped_surrogate(logps: Tensor, old_logps: Tensor, advantages: Tensor, clip_range: float) -> Surrogate:
    """PPO's policy loss at each token (n,); gradient flows through `logps` only."""
    ratio = (logps - old_logps).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    # max of the negatives = −min: Eq. 7, arXiv:1707.06347
    return Surrogate(torch.maximum(unclipped, clipped), ratio.detach(), (clipped > unclipped).detach())


class ValueLoss(NamedTuple):
    """The value loss at each token (n,), and whether the value was clipped."""

    loss: Tensor
    clipped: Tensor


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> ValueLoss:
    """Half the squared error at each token (n,): that of the value, or of the value clipped to clip_range around the old one if larger."""
    clipped_values = old_values + (values - old_values).clamp(-clip_range, clip_range)
    unclipped, clipped = (values - returns) ** 2, (clipped_values - returns) ** 2
    # Eq. 9, arXiv:1707.06347, with the clipping of the original code (detail 9 of "The 37 Implementation Details of PPO",
    # Huang et al.)
    return ValueLoss(0.5 * torch.maximum(unclipped, clipped), (clipped > unclipped).detach())


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 − Var(returns − values) / Var(returns) of flat vectors (n,): 1 is perfect, 0 is no better than a constant."""
    variance = float(returns.var(correction=0))
    return 1 - float((returns - values).var(correction=0)) / variance if variance > 0 else 0.0


def learning_rate_factor(step: int, steps: int, schedule: str, warmup_fraction: float) -> float:
    """The fraction of the peak learning rate at `step` (from 0) of `steps`: linear warm-up, then constant, or decay towards 0."""
    warmup = warmup_fraction * steps
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    progress = (step - warmup) / (steps - warmup)
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
    raise ValueError(f"schedule: expected constant, linear or cosine, found {schedule!r}")
