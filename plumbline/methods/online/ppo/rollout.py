"""Rollouts: completions sampled from the policy, their rewards, and what each model computes at every token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from plumbline.methods.online.draws import random_stream
from plumbline.methods.online.ppo.guard import require_finite
from plumbline.methods.online.ppo.losses import entropies, kl_k1, kl_k3
from plumbline.methods.online.ppo.networks import Batch, CompletionLogits, ValueModel, micro_batches
from plumbline.models.chat import openings
from plumbline.models.decoding_values import Decoding
from plumbline.models.logps import per_token_logps
from plumbline.models.sampling import Sampled, sample
from plumbline.rewards.reward import Reward
from plumbline.rows import Message, last_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Metrics = dict[str, float]


class Episode(NamedTuple):
    """One completion of one prompt. It holds plain values, so that processes can exchange episodes."""

    prompt: int
    """Index into the prompts of the run."""
    prompt_ids: list[int]
    completion_ids: list[int]
    """Including the end-of-turn token if it was reached. There is at least one token: an empty completion is that token alone."""
    finished: bool
    text: str
    reward: float
    behaviour_logps: list[float]
    """log π of each token when it was sampled. Only a check: the ratio is made from `Figures`."""
    figures: "Figures"
    cost: float = 0.0
    """0 if the run has no cost."""


class Figures(NamedTuple):
    """What the models compute for one completion before any update; the lists have one number per token.

    The log-probabilities of the sampled tokens are computed again, by the same pass that the updates use, so that the first ratio is 1
    up to the last bits. The sampler's own log-probabilities differ by rounding, because its batches have other shapes; in bf16 they
    differ by a few per cent. The extra pass costs 3 % of a step.
    """

    policy_logps: list[float]
    reference_logps: list[float]
    values: list[float]
    entropy: float
    """Entropy of the policy's next-token distribution, summed over the tokens; nats."""


def prompts_at(step: int, batch_size: int, prompts_count: int, seed: int) -> list[int]:
    """Indices of a step's prompts. Steps read on, batch by batch, through passes over all prompts, each shuffled anew."""
    indices: list[int] = []
    start = step * batch_size
    while len(indices) < batch_size:
        epoch, offset = divmod(start + len(indices), prompts_count)
        order = torch.randperm(prompts_count, generator=random_stream(seed, 0, epoch)).tolist()
        indices += order[offset : offset + batch_size - len(indices)]
    return indices


@dataclass
class Sampler:
    """Samples completions from the whole distribution at temperature τ (conf: temperature), and scores them."""

    policy: Any
    tokenizer: "PreTrainedTokenizerBase"
    reward: Reward
    max_new_tokens: int
    temperature: float
    batch_size: int
    cost: Reward | None = None

    def sample(self, encoded: Sequence[list[int]], uniforms: Tensor) -> list[Sampled]:
        """Completions of rendered prompts, with the log-probabilities of their tokens."""
        return sample(
            self.policy,
            self.tokenizer,
            encoded,
            max_new_tokens=self.max_new_tokens,
            decoding=Decoding(self.temperature),
            uniforms=uniforms,
            batch_size=self.batch_size,
            with_logps=True,
        )

    def score(self, prompts: Sequence[list[Message]], completions: list[list[int]]) -> tuple[list[str], list[float]]:
        """Texts of completions and their rewards. Rewards read text, because a reward model may have another tokenizer.

        Raises:
            ValueError: the reward did not return one value per completion.
            FloatingPointError: a reward is not finite.
        """
        decoded = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        texts = [start + text for start, text in zip(openings(self.tokenizer, prompts), decoded, strict=True)]
        return texts, _scores(self.reward, "reward", prompts, texts)

    def costs(self, prompts: Sequence[list[Message]], texts: Sequence[str]) -> list[float]:
        """Costs of texts, all 0 if there is no cost; raises as `score` does."""
        return [0.0] * len(texts) if self.cost is None else _scores(self.cost, "cost", prompts, texts)


def _scores(reward: Reward, name: str, prompts: Sequence[list[Message]], texts: Sequence[str]) -> list[float]:
    scores = reward(prompts, texts)
    if len(scores) != len(texts):
        raise ValueError(f"ppo: expected one {name} for each completion, found {len(scores)} for {len(texts)} completions")
    for prompt, text, value in zip(prompts, texts, scores, strict=True):
        require_finite({name: value}, f"scoring the completion {text[:80]!r} of {last_turn(prompt)[:80]!r}")
    return scores


def logps_and_entropies(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of tokens and entropies of the distributions (2, n), from next-token logits (n, vocabulary)."""
    return torch.stack([per_token_logps(logits, tokens), entropies(logits)])


@torch.no_grad()
def measure(
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    *,
    policy: CompletionLogits,
    reference: Callable[[Batch], Tensor],
    value_model: ValueModel,
    micro_batch_size: int,
    pad_id: int,
    device: torch.device,
) -> list[Figures]:
    """What policy, reference and value model compute for every completion, in the given order.

    reference: its log-probabilities (n,) of the completion tokens of a batch.
    """
    figures: dict[int, Figures] = {}
    for rows, batch in micro_batches(prompts, completions, micro_batch_size, pad_id, device):
        policy_logps, policy_entropies = policy.per_token(batch, logps_and_entropies)
        columns = torch.stack([policy_logps, reference(batch), value_model(batch), policy_entropies])
        lengths = [len(completions[row]) for row in rows]
        for row, part in zip(rows, columns.cpu().split(lengths, dim=1), strict=True):
            logps, reference_logps, values, entropy = part.tolist()
            figures[row] = Figures(logps, reference_logps, values, sum(entropy))
    return [figures[row] for row in range(len(prompts))]


class Rollouts(NamedTuple):
    """The episodes of a step as tensors (batch, tokens), right-padded; `mask` is True at the tokens of a completion."""

    mask: Tensor
    policy_logps: Tensor
    reference_logps: Tensor
    values: Tensor


def stack(episodes: Sequence[Episode], device: torch.device) -> Rollouts:
    """Lays out the episodes' figures per token as rectangles, with 0 after the last token."""
    width = max(len(episode.completion_ids) for episode in episodes)

    def rectangle(rows: list[list[float]]) -> Tensor:
        return torch.tensor([row + [0.0] * (width - len(row)) for row in rows], device=device)

    lengths = torch.tensor([len(episode.completion_ids) for episode in episodes], device=device)
    return Rollouts(
        torch.arange(width, device=device) < lengths.unsqueeze(-1),
        rectangle([episode.figures.policy_logps for episode in episodes]),
        rectangle([episode.figures.reference_logps for episode in episodes]),
        rectangle([episode.figures.values for episode in episodes]),
    )


def rollout_metrics(episodes: Sequence[Episode], rollouts: Rollouts, scores: Sequence[float], beta: float) -> Metrics:
    """Means over a batch of rollouts. The KL is that of the policy to the reference, at the policy's samples, in nats per completion."""
    count = len(episodes)
    tokens = sum(len(episode.completion_ids) for episode in episodes)
    log_ratio = rollouts.policy_logps - rollouts.reference_logps
    k1 = float(kl_k1(log_ratio)[rollouts.mask].sum()) / count
    gaps = [
        abs(sampled - measured)
        for episode in episodes
        for sampled, measured in zip(episode.behaviour_logps, episode.figures.policy_logps, strict=True)
    ]
    score = sum(scores) / count
    return {
        "reward": sum(episode.reward for episode in episodes) / count,
        "score": score,
        "rlhf_reward": score - beta * k1,
        "kl_k1": k1,
        "kl_k3": float(kl_k3(log_ratio)[rollouts.mask].sum()) / count,
        "entropy": sum(episode.figures.entropy for episode in episodes) / tokens,
        "length_tokens": tokens / count,
        "end_of_turn_fraction": sum(episode.finished for episode in episodes) / count,
        # the largest difference between the sampler's log-probabilities and the trainer's; more than rounding means a fault
        "behaviour_gap": max(gaps),
    }


SHOWN = 16
"""The number of completions in a table."""


def sample_table(step: int, episodes: Sequence[Episode], prompts: Sequence[list[Message]]) -> list[dict[str, Any]]:
    """The first episodes of a step as rows of a table for people."""
    return [
        {
            "step": step,
            "prompt": last_turn(prompts[episode.prompt]),
            "completion": episode.text,
            "reward": episode.reward,
            "kl_k1": sum(episode.figures.policy_logps) - sum(episode.figures.reference_logps),
            "finished": episode.finished,
        }
        for episode in episodes[:SHOWN]
    ]
