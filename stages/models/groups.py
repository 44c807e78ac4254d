"""Groups: several completions of one prompt, whose rewards are compared with each other. What GRPO and RLOO share, and PPO to start from.

TRL samples from the whole distribution, by transformers' own `generate`: neither a server nor a GPU is needed.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from omegaconf import MISSING

from stages.models.rewards import Reward
from stages.models.training import Lora, Optimisation, trainer_arguments
from stages.pipeline.records import Message

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAST_SHARE = 0.1  # of the steps, over which the returned figures are averaged

RewardFunction = Callable[..., list[float]]
"""TRL's: keyword arguments `prompts`, `completions` (messages), `completion_ids` and more → a number for each."""


@dataclass
class Grouped(Optimisation, Lora):
    """What decides how groups are sampled and scored; values and their meaning: conf/method/grpo.yaml and rloo.yaml."""

    init: str = MISSING
    signal: str = MISSING
    num_generations: int = MISSING
    rollout_batch_size: int = MISSING
    iterations: int = MISSING
    max_new_tokens: int = MISSING
    temperature: float = MISSING
    missing_eos_penalty: float = MISSING
    mask_truncated: bool = MISSING
    families: list[str] = MISSING
    min_reward_accuracy: float = MISSING
    beta: float = MISSING
    epsilon: float = MISSING
    epsilon_high: float | None = MISSING

    @property
    def steps_of_rollout(self) -> int:
        """Optimiser steps that are made on the completions of one rollout."""
        return self.iterations * self.rollout_batch_size // self.batch_size

    def steps(self, prompts: int) -> int:
        """Optimiser steps in all: `max_steps`, or what the epochs over so many prompts take."""
        if self.max_steps > 0:
            return self.max_steps
        return int(self.epochs * prompts * self.num_generations) // self.rollout_batch_size * self.steps_of_rollout


def validate(config: Grouped, method: str) -> None:
    """Refuses a config that cannot be run as it is written; all complaints at once.

    Raises:
        ValueError: sizes that do not divide, or a value out of its range.
    """
    least = {"num_generations": 2, "batch_size": 1, "iterations": 1, "max_new_tokens": 1, "evaluate_every": 1}
    complaints = [
        f"{name} {getattr(config, name)}: expected at least {low}" for name, low in least.items() if getattr(config, name) < low
    ]
    if not complaints:
        for name, part in (("rollout_batch_size", "batch_size"), ("rollout_batch_size", "num_generations")):
            whole, size = getattr(config, name), getattr(config, part)
            if whole < 1 or whole % size:
                complaints.append(
                    f"{name} {whole} is no multiple of {part} {size}: set it to {max(1, math.ceil(whole / size)) * size}"
                )
    if not complaints and config.evaluate_every % config.steps_of_rollout:
        every = math.ceil(config.evaluate_every / config.steps_of_rollout) * config.steps_of_rollout
        complaints.append(
            f"evaluate_every {config.evaluate_every}: expected a multiple of the {config.steps_of_rollout} steps made on a rollout, such "
            f"as {every}: a checkpoint holds no rollout, so from within one a run would not resume as it was"
        )
    if config.temperature <= 0:
        complaints.append(f"temperature {config.temperature}: expected above 0: a group of equal completions teaches nothing")
    if config.keep != "last":
        complaints.append(f"keep {config.keep}: expected last: nothing is validated while it trains")
    for name in ("beta", "missing_eos_penalty"):
        if getattr(config, name) < 0:
            complaints.append(f"{name} {getattr(config, name)}: expected 0 or above")
    if complaints:
        raise ValueError(f"conf/method/{method}.yaml or params.yaml (align.<entry>):\n- " + "\n- ".join(complaints))


class Sampling(Protocol):
    """What a config says of sampling under a reward; PPO's does, too."""

    families: list[str]
    max_new_tokens: int
    min_reward_accuracy: float


class Start(NamedTuple):
    """What training by a reward starts from."""

    policy: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    prompts: list[list[Message]]


def load_start(config: Sampling, method: str, *, init: Path, signal: Path, data: Path) -> Start:
    """The policy of `init` in float32, its tokenizer, and the training prompts.

    Raises:
        ValueError: the reward model orders held-out preferences too poorly, no prompt is of a family that is asked for, or a prompt leaves
            no room for a completion.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stages.models.chat import prompt_ids
    from stages.models.completions import require_room
    from stages.models.loading import context_of
    from stages.models.rewards import held_out_accuracy, require_accuracy
    from stages.pipeline.records import read_jsonl

    require_accuracy(held_out_accuracy(signal), config.min_reward_accuracy, signal, method)
    tokenizer = AutoTokenizer.from_pretrained(init)
    policy = AutoModelForCausalLM.from_pretrained(init, dtype=torch.float32)
    prompts = prompts_of(read_jsonl(data / "prompts/train.jsonl"), config.families, method)
    require_room([prompt_ids(tokenizer, prompt) for prompt in prompts], context_of(policy.config), config.max_new_tokens, method)
    return Start(policy, tokenizer, prompts)


def prompts_of(rows: Sequence[Mapping[str, Any]], families: Sequence[str], method: str) -> list[list[Message]]:
    """The prompts of some families, or of all where none is named.

    Raises:
        ValueError: no prompt is of one of the families, or there are none at all.
    """
    found = {str(row["family"]) for row in rows if row.get("family") is not None}
    if unknown := [family for family in families if family not in found]:
        known = ", ".join(sorted(found)) or "none that has a family"
        raise ValueError(f"{method}: families: no prompt is of {', '.join(unknown)}; there are {known}. [] takes all prompts.")
    if not rows:
        raise ValueError(
            f"{method}: expected rollout prompts, found none; see metrics/prepare/prepare.json for what was dropped and why"
        )
    return [row["prompt"] for row in rows if not families or str(row.get("family")) in families]


class GroupStart(NamedTuple):
    """What GRPO and RLOO start from: policy, reward, and the prompts of every rollout in their order."""

    policy: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    reward: Reward
    functions: list[Any]  # of RewardFunction, as TRL wants to hear it
    dataset: "Dataset"
    steps: int


def load_groups(config: Grouped, method: str, *, init: Path, signal: Path, data: Path, seed: int, name: str) -> GroupStart:
    """Loads policy and reward, and draws the prompts that all rollouts take.

    name: of the computation, which a judge's budget is for.

    Raises:
        ValueError: as `load_start`; or there are too few prompts for a step.
    """
    from datasets import Dataset

    from stages.models.chat import end_of_turn_id
    from stages.models.rewards import load_reward

    policy, tokenizer, prompts = load_start(config, method, init=init, signal=signal, data=data)
    steps = config.steps(len(prompts))
    if not steps:
        raise ValueError(
            f"{method}: {len(prompts)} prompts, {config.num_generations} times each, do not fill a rollout of "
            f"{config.rollout_batch_size} in {config.epochs} epochs: raise epochs, lower rollout_batch_size, or say max_steps"
        )
    rollouts = -(-steps // config.steps_of_rollout)
    order = prompts_in_order(prompts, rollouts * config.rollout_batch_size // config.num_generations, seed)
    reward = load_reward(signal, name)
    end_ids = (end_of_turn_id(tokenizer), tokenizer.eos_token_id)
    functions = reward_functions(reward, end_ids, config.missing_eos_penalty)
    return GroupStart(policy, tokenizer, reward, functions, Dataset.from_list([{"prompt": prompt} for prompt in order]), steps)


def prompts_in_order(prompts: Sequence[list[Message]], count: int, seed: int) -> list[list[Message]]:
    """The first `count` of endless passes over the prompts, each pass in an order of its own, that the seed decides."""
    drawn: list[list[Message]] = []
    rng = random.Random(seed)
    while len(drawn) < count:
        drawn += rng.sample(list(prompts), len(prompts))
    return drawn[:count]


def reward_functions(reward: Reward, end_ids: Sequence[int], missing_eos_penalty: float) -> list[RewardFunction]:
    """The reward as TRL calls it, and what a completion that does not end is fined; TRL adds them up.

    Raises (the first of them):
        FloatingPointError: a reward is not finite; none takes its place.
    """

    def rewards(prompts: list[list[Message]], completions: list[list[Message]], **_: Any) -> list[float]:
        values = reward(prompts, [completion[0]["content"] for completion in completions])
        for prompt, completion, value in zip(prompts, completions, values, strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the reward is {value} for {completion[0]['content']!r} as an answer to {prompt[-1]['content']!r}"
                )
        return values

    def unfinished(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [0.0 if ids[-1] in end_ids else -missing_eos_penalty for ids in completion_ids]

    return [rewards, unfinished]


def group_arguments(config: Grouped, checkpoints: Path, seed: int, steps: int) -> dict[str, Any]:
    """The arguments that the configs of GRPO and RLOO take alike."""
    return {
        **trainer_arguments(config, checkpoints, seed),
        "max_steps": steps,
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "logging_steps": 1,
        "shuffle_dataset": False,  # TRL's own order is lost on resuming in a later epoch
        "disable_dropout": True,
        "use_vllm": False,
        "num_generations": config.num_generations,
        "generation_batch_size": config.rollout_batch_size,
        "num_iterations": config.iterations,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "beta": config.beta,
        "epsilon": config.epsilon,
        "epsilon_high": config.epsilon_high,
        "mask_truncated_completions": config.mask_truncated,
    }


NAMES = {
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
}
"""TRL's names → ours. `score` is the reward less the fine; in a group of equal scores nothing is learnt."""


def group_history(rows: Sequence[Mapping[str, float]], kl: str) -> list[dict[str, float]]:
    """A training curve by our names; `kl` is what TRL's `kl` is called, in nats per token, at the policy's own samples."""
    history = []
    for row in rows:
        named = {NAMES[name]: value for name, value in row.items() if name in NAMES}
        if "kl" in row:
            named[kl] = row["kl"]
        if "completions/clipped_ratio" in row:
            named["end_of_turn_fraction"] = 1 - row["completions/clipped_ratio"]
        if named:
            history.append({"step": row["step"], **named})
    return history


def last_means(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each figure's mean over the last tenth of the steps, or the last step that has it."""
    last = history[-max(1, round(LAST_SHARE * len(history))) :]
    means = {}
    for name in sorted({name for row in history for name in row} - {"step"}):
        values = [row[name] for row in last if name in row] or [row[name] for row in history if name in row][-1:]
        means[name] = sum(values) / len(values)
    return means
