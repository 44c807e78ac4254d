"""What GRPO and RLOO share: groups of completions of one prompt, whose rewards are compared with each other.

TRL trains; completions are drawn from the whole distribution, by this project's sampler (draws.py), which needs neither a server nor a GPU, or by
the engine's server (group_rollouts.py).
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import MISSING

from plumbline.methods.job import SAMPLERS, SERVER, OnlineJob
from plumbline.methods.keeping import Kept
from plumbline.methods.online.start import load_start
from plumbline.models.training import trainer_arguments
from plumbline.models.training_values import Optimisation
from plumbline.pipeline.launcher import Launcher
from plumbline.pipeline.ranges import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, outside
from plumbline.rewards.reward import Reward
from plumbline.rows import Message, last_turn, text_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RewardFunction = Callable[..., list[float]]
"""A reward as TRL calls it, with `prompts`, `completions` (messages), `completion_ids` and more; returns a number per completion."""


@dataclass
class Grouped(Optimisation, Kept):
    """How groups are sampled and scored. Values and their meaning: conf/method/grpo.yaml and rloo.yaml."""

    init: str = MISSING
    reward: str = MISSING
    num_generations: int = MISSING
    rollout_batch_size: int = MISSING
    sampler: str = MISSING  # here | server
    update_epochs: int = MISSING
    max_new_tokens: int = MISSING
    temperature: float = MISSING
    missing_eos_penalty: float = MISSING
    mask_truncated: bool = MISSING
    families: list[str] = MISSING
    min_reward_accuracy: float = MISSING
    beta: float = MISSING
    clip_range: float = MISSING
    clip_range_high: float | None = MISSING

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        complaints = [*super().problems(), *self.lora_problems(), *self.keeping_problems()]
        complaints += outside(self, update_epochs=COUNT, max_new_tokens=COUNT)
        if self.num_generations < 2:
            complaints.append(
                f"num_generations: expected at least 2, found {self.num_generations}: they are compared with each other"
            )
        if not complaints:
            complaints = self._size_problems()
        complaints += self._sampler_problems()
        if self.temperature <= 0:
            complaints.append(
                f"temperature: expected above 0, because a group of equal completions teaches nothing, found {self.temperature}"
            )
        return complaints + outside(
            self,
            beta=NOT_NEGATIVE,
            missing_eos_penalty=NOT_NEGATIVE,
            clip_range=POSITIVE,
            clip_range_high=POSITIVE,
            min_reward_accuracy=FRACTION,
        )

    def launcher_problems(self, launcher: Launcher) -> list[str]:
        """What does not fit several processes; empty if all does."""
        complaints = [*super().launcher_problems(launcher), *self.sharding_problems(launcher)]
        if self.sampler == SERVER and launcher.shards:
            complaints.append(
                "sampler: expected here with a launcher that shards the weights, found server: no process has the whole adapter to give to the "
                "server. Choose ddp, or sampler: here"
            )
        return complaints

    def _sampler_problems(self) -> list[str]:
        if self.sampler not in SAMPLERS:
            return [f"sampler: expected one of {', '.join(SAMPLERS)}, found {self.sampler!r}"]
        complaints = []
        if self.sampler == SERVER and not self.lora_rank:
            complaints.append(
                "lora_rank: expected at least 1 with sampler: server, because a server takes new weights as an adapter while it runs, found 0. Set "
                "lora_rank (16, say, with a learning_rate ten times as high), or sampler to here"
            )
        if self.sampler == SERVER and self.temperature != 1:
            complaints.append(
                "temperature: expected 1 with sampler: server, because servers report log-probabilities of the distribution at temperature 1, found "
                f"{self.temperature}. Set it to 1, or sampler to here"
            )
        return complaints

    def _size_problems(self) -> list[str]:
        complaints = []
        for part in ("batch_size", "num_generations"):
            whole, size = self.rollout_batch_size, getattr(self, part)
            if whole < 1 or whole % size:
                multiple = max(1, math.ceil(whole / size)) * size
                complaints.append(f"rollout_batch_size: expected a multiple of {part} {size}, such as {multiple}, found {whole}")
        if not complaints and self.checkpoint_every % self.steps_of_rollout:
            every = math.ceil(self.checkpoint_every / self.steps_of_rollout) * self.steps_of_rollout
            complaints.append(
                f"checkpoint_every: expected a multiple of the {self.steps_of_rollout} steps of a rollout, such as {every}, found "
                f"{self.checkpoint_every}. A checkpoint holds no rollout, so a run could not resume in the middle of one"
            )
        return complaints

    @property
    def steps_of_rollout(self) -> int:
        """The number of optimiser steps on the completions of one rollout."""
        return self.update_epochs * self.rollout_batch_size // self.batch_size

    def steps(self, prompts: int) -> int:
        """The number of optimiser steps in all: `max_steps`, or as many as the epochs over `prompts` prompts take."""
        if self.max_steps > 0:
            return self.max_steps
        return int(self.epochs * prompts * self.num_generations) // self.rollout_batch_size * self.steps_of_rollout


class GroupStart(NamedTuple):
    """What GRPO and RLOO start with: the policy, the reward, and the prompts of all rollouts in order."""

    policy: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    reward: Reward
    functions: list[Any]
    """The reward and the penalty as TRL's reward functions (`RewardFunction`, for which TRL has another type)."""
    dataset: "Dataset"
    steps: int
    longest_tokens: int
    """Of a prompt and a completion together."""


def load_groups(config: Grouped, method: str, job: OnlineJob) -> GroupStart:
    """Loads the policy and the reward, and draws the prompts of all rollouts.

    Raises:
        ValueError: as `load_start`, or there are too few prompts for a step.
    """
    from datasets import Dataset

    from plumbline.models.chat import end_of_turn_id, openings
    from plumbline.rewards.reward import load_reward

    policy, tokenizer, prompts, longest_tokens = load_start(config, method, job)
    steps = config.steps(len(prompts))
    if not steps:
        raise ValueError(
            f"{method}: expected prompts for at least one rollout of {config.rollout_batch_size} completions, found {len(prompts)} prompts with "
            f"{config.num_generations} completions each and {config.epochs} epochs. Raise epochs, lower rollout_batch_size, or set max_steps"
        )
    rollouts = -(-steps // config.steps_of_rollout)
    order = prompts_in_order(prompts, rollouts * config.rollout_batch_size // config.num_generations, job.seed)
    reward = load_reward(
        job.reward, job.checkpoints.name
    )  # the name identifies the computation, to which a judge's budget belongs
    end_ids = (end_of_turn_id(tokenizer), tokenizer.eos_token_id)
    functions = reward_functions(reward, end_ids, config.missing_eos_penalty, partial(openings, tokenizer))
    dataset = Dataset.from_list([{"prompt": prompt} for prompt in order])
    return GroupStart(policy, tokenizer, reward, functions, dataset, steps, longest_tokens)


def prompts_in_order(prompts: Sequence[list[Message]], count: int, seed: int) -> list[list[Message]]:
    """The first `count` prompts of endless passes over all prompts, each pass in another order, which the seed decides."""
    order: list[list[Message]] = []
    rng = random.Random(seed)
    while len(order) < count:
        order += rng.sample(list(prompts), len(prompts))
    return order[:count]


def reward_functions(
    reward: Reward,
    end_ids: Sequence[int],
    missing_eos_penalty: float,
    openings_of: Callable[[Sequence[list[Message]]], list[str]] = lambda prompts: [""] * len(prompts),
) -> list[RewardFunction]:
    """The reward as TRL calls it, and the penalty for a completion that does not reach its end of turn; TRL adds them up.

    openings_of: the starts of the texts, which the prompts hold (plumbline.models.chat.openings).

    The first function raises FloatingPointError at a reward that is NaN or infinite. No other number replaces it.
    """

    def rewards(prompts: list[list[Message]], completions: list[list[Message]], **_: Any) -> list[float]:
        texts = [start + text_of(completion) for start, completion in zip(openings_of(prompts), completions, strict=True)]
        values = reward(prompts, texts)
        for prompt, text, value in zip(prompts, texts, values, strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(f"the reward is {value} for {text!r} as an answer to {last_turn(prompt)!r}")
        return values

    def unfinished(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [0.0 if ids[-1] in end_ids else -missing_eos_penalty for ids in completion_ids]

    return [rewards, unfinished]


def group_arguments(config: Grouped, checkpoints: Path, seed: int, steps: int) -> dict[str, Any]:
    """The arguments that the configs of GRPO and RLOO have in common."""
    return {
        **trainer_arguments(config, checkpoints, seed),
        "max_steps": steps,
        "logging_steps": 1,
        "shuffle_dataset": False,  # TRL's own order would be lost when a run resumes in a later epoch
        "disable_dropout": True,
        "use_vllm": False,  # it needs vLLM in this environment; with `sampler: server` group_rollouts.py takes its place
        "num_generations": config.num_generations,
        "generation_batch_size": config.rollout_batch_size,
        "num_iterations": config.update_epochs,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "top_p": 1.0,  # this and the next three: the whole distribution, whatever the policy's generation_config.json says
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "beta": config.beta,
        "epsilon": config.clip_range,
        "epsilon_high": config.clip_range_high,
        "mask_truncated_completions": config.mask_truncated,
    }


def reference_arguments(init: Path) -> dict[str, Any]:
    """The argument that keeps TRL's reference, a model of its own unless there is an adapter, in the precision of `init`.

    TRL would load it in that of the policy, which is float32. It warns that the argument is ignored, which is true of the policy only.
    """
    import torch

    from plumbline.models.loading import saved_dtype

    return {} if saved_dtype(init) == torch.float32 else {"model_init_kwargs": {"dtype": "auto"}}


FIGURES = {
    "loss": "loss",
    "grad_norm": "gradient_norm",
    "learning_rate": "learning_rate",
    "rewards/rewards/mean": "reward",
    "reward": "score",
    "reward_std": "score_std",
    "frac_reward_zero_std": "equal_groups_fraction",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clip_fraction",
    "completions/mean_length": "length_tokens",
    "sampling/importance_sampling_ratio/min": "server_ratio_min",
    "sampling/importance_sampling_ratio/max": "server_ratio_max",
}
"""TRL's names → ours. `score` is the reward less the penalty; nothing is learnt from a group of equal scores. `server_ratio` is a completion's
probability here divided by that at the server that drew it (group_rollouts.py): 1 if both compute alike, 0 if the completion is left out."""


def group_history(rows: Sequence[Mapping[str, float]], kl: str) -> list[dict[str, float]]:
    """A training curve with our names.

    kl: our name for TRL's `kl`, the estimate of KL(π ‖ π_ref) in nats per token at the policy's own samples.
    """
    history = []
    for row in rows:
        figures = {FIGURES[name]: value for name, value in row.items() if name in FIGURES}
        if "kl" in row:
            figures[kl] = row["kl"]
        if "completions/clipped_ratio" in row:
            figures["end_of_turn_fraction"] = 1 - row["completions/clipped_ratio"]
        if figures:
            history.append({"step": row["step"], **figures})
    return history
