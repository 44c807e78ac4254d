"""Rollouts: completions drawn from the policy, their rewards, and what every model says of each token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import torch
from torch import Tensor

from stages.methods.ppo.guard import require_finite
from stages.methods.ppo.losses import entropies, per_token_logps
from stages.methods.ppo.models import Batch, CompletionLogits, ValueModel, collate
from stages.models.chat import end_of_turn_id
from stages.models.rewards import Reward
from stages.models.sampling import sample
from stages.pipeline.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Episode(NamedTuple):
    """One completion of one prompt. Plain values, so that processes can exchange them."""

    prompt: int
    """Index into the prompts of the run."""
    prompt_ids: list[int]
    completion_ids: list[int]
    """The end-of-turn token included if it was reached; at least one token, as an empty completion is that token alone."""
    finished: bool
    text: str
    reward: float
    behaviour_logps: list[float]
    """log π of each token when it was drawn: a check, not what the ratio is made of (see `Figures`)."""
    figures: "Figures"
    cost: float = 0.0
    """0 where there is no cost."""


class Figures(NamedTuple):
    """What the models say of one completion, before any update; lists have one number for each token.

    The log-probabilities of the sampled tokens are computed anew, by the very pass that the updates use, so that the first
    ratio is 1 to the last bits: the sampler's own differ by rounding (its shapes differ; in bf16 by a few per cent). It
    costs 3 % of a step.
    """

    policy_logps: list[float]
    reference_logps: list[float]
    values: list[float]
    entropy: float
    """Of the policy's next-token distribution, summed over the tokens; nats."""


def random_stream(seed: int, *names: int) -> torch.Generator:
    """A generator for one purpose at one step. Having no state to save, randomness resumes exactly after a crash."""
    (state,) = numpy.random.SeedSequence([seed, *names]).generate_state(1, numpy.uint64)
    return torch.Generator().manual_seed(int(state >> numpy.uint64(1)))


def prompts_at(step: int, batch_size: int, prompts_count: int, seed: int) -> list[int]:
    """Indices of the prompts of a step: reading on, batch by batch, in passes over all prompts, each shuffled anew."""
    chosen: list[int] = []
    place = step * batch_size
    while len(chosen) < batch_size:
        epoch, offset = divmod(place + len(chosen), prompts_count)
        order = torch.randperm(prompts_count, generator=random_stream(seed, 0, epoch)).tolist()
        chosen += order[offset : offset + batch_size - len(chosen)]
    return chosen


@dataclass
class Sampler:
    """Draws completions from the full distribution at temperature τ (conf: temperature), and has them rewarded."""

    policy: Any
    tokenizer: "PreTrainedTokenizerBase"
    reward: Reward
    max_new_tokens: int
    temperature: float
    batch_size: int
    cost: Reward | None = None

    def draw(self, encoded: Sequence[list[int]], uniforms: Tensor) -> list[tuple[list[int], bool, list[float]]]:
        """Completions of rendered prompts: ids, whether end of turn was reached, behaviour log-probabilities."""
        sampled = sample(
            self.policy,
            self.tokenizer,
            encoded,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            uniforms=uniforms,
            batch_size=self.batch_size,
            end_ids=[end_of_turn_id(self.tokenizer)],
            with_logps=True,
        )
        return [(one.ids, one.finished, one.per_token_logps or []) for one in sampled]

    def score(self, prompts: Sequence[list[Message]], completions: list[list[int]]) -> tuple[list[str], list[float]]:
        """Texts of completions and their rewards, from text: the reward may read another tokenizer's ids.

        Raises:
            ValueError: the reward returned another number of values than it was given completions.
            FloatingPointError: a reward is not finite.
        """
        texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        return texts, self.judged(self.reward, "reward", prompts, texts)

    def costs(self, prompts: Sequence[list[Message]], texts: Sequence[str]) -> list[float]:
        """Costs of texts, 0 without a cost; raises as `score` does."""
        return [0.0] * len(texts) if self.cost is None else self.judged(self.cost, "cost", prompts, texts)

    def judged(self, reward: Reward, name: str, prompts: Sequence[list[Message]], texts: Sequence[str]) -> list[float]:
        """What a reward or cost says of texts, checked."""
        rewards = reward(prompts, texts)
        if len(rewards) != len(texts):
            raise ValueError(f"ppo: the {name} returned {len(rewards)} values for {len(texts)} completions")
        for prompt, text, value in zip(prompts, texts, rewards, strict=True):
            require_finite({name: value}, f"rewarding the completion {text[:80]!r} of {prompt[-1]['content'][:80]!r}")
        return rewards


def by_length(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Cuts rows into groups of at most `size` of like length, to save padding."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]) + len(completions[row]))
    return [order[start : start + size] for start in range(0, len(order), size)]


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
    """What policy, reference and value model say of every completion, in the order given."""
    figures: dict[int, Figures] = {}
    for rows in by_length(prompts, completions, micro_batch_size):
        batch = collate([prompts[row] for row in rows], [completions[row] for row in rows], pad_id, device)
        logits = policy(batch)
        columns = torch.stack(
            [
                per_token_logps(logits, batch.tokens),
                per_token_logps(reference(batch), batch.tokens),
                value_model(batch),
                entropies(logits),
            ]
        )
        lengths = [len(completions[row]) for row in rows]
        for row, part in zip(rows, columns.cpu().split(lengths, dim=1), strict=True):
            logps, reference_logps, values, entropy = part.tolist()
            figures[row] = Figures(logps, reference_logps, values, sum(entropy))
    return [figures[row] for row in range(len(prompts))]


class Rollouts(NamedTuple):
    """The episodes of a step as tensors (batch, tokens), right-padded; `mask` is True at a completion's own tokens."""

    mask: Tensor
    policy_logps: Tensor
    reference_logps: Tensor
    values: Tensor


def stack(episodes: Sequence[Episode], device: torch.device) -> Rollouts:
    """Lays the episodes' per-token figures out in rectangles, 0 behind the last token."""
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
