"""The config of a PPO run. Values, units and the papers' numbers: conf/method/ppo.yaml."""

import math
from dataclasses import dataclass

from omegaconf import MISSING

from plumbline.methods.keeping import Kept
from plumbline.models.training_values import SCHEDULES
from plumbline.pipeline.launcher import Launcher
from plumbline.pipeline.ranges import BELOW_ONE, COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, outside


@dataclass
class PpoConfig(Kept):
    """Values and their meaning: conf/method/ppo.yaml."""

    method: str = "ppo"
    init: str = MISSING
    reward: str = MISSING
    # how much
    episodes: int = MISSING
    rollout_batch_size: int = MISSING
    batch_size: int = MISSING
    micro_batch_size: int = MISSING
    update_epochs: int = MISSING
    # rollout
    families: list[str] = MISSING
    max_new_tokens: int = MISSING
    temperature: float = MISSING
    top_k: int = MISSING
    top_p: float = MISSING
    sampling_batch_size: int = MISSING
    # reward
    missing_eos_penalty: float = MISSING
    normalise_scores: bool = MISSING
    clip_score: float | None = MISSING
    beta: float = MISSING
    target_kl: float | None = MISSING
    kl_gain: float = MISSING
    min_reward_accuracy: float = MISSING
    # cost
    cost_limit: float | None = MISSING
    lambda_learning_rate: float = MISSING
    max_lambda: float = MISSING
    # objective
    gamma: float = MISSING
    lam: float = MISSING
    whiten_advantages: bool = MISSING
    clip_range: float = MISSING
    value_clip_range: float = MISSING
    entropy_coefficient: float = MISSING
    max_approx_kl: float | None = MISSING
    # optimisation
    learning_rate: float = MISSING
    value_learning_rate: float = MISSING
    schedule: str = MISSING
    warmup_fraction: float = MISSING
    weight_decay: float = MISSING
    max_grad_norm: float = MISSING
    # memory
    bf16: bool = MISSING
    gradient_checkpointing: bool = MISSING
    # watching
    guard: bool = MISSING
    warn_entropy_fraction: float = MISSING
    warn_kl: float = MISSING
    samples_every: int = MISSING
    checkpoint_every: int = MISSING

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        return [
            *_sampling_problems(self),
            *_batch_problems(self),
            *_range_problems(self),
            *self.lora_problems(),
            *self.keeping_problems(),
        ]

    def launcher_problems(self, launcher: Launcher) -> list[str]:
        """What does not fit several processes; empty if all does."""
        if launcher.shards:
            return [
                "method: expected a method that can be sharded with this launcher, found ppo, whose trainer holds each model whole. Choose ddp as "
                "launcher, or method grpo or rloo"
            ]
        return [complaint] if (complaint := indivisible(self, launcher.processes)) else []

    @property
    def steps(self) -> int:
        """The number of PPO steps, each of which is one rollout batch and its epochs of updates."""
        return self.episodes // self.rollout_batch_size


def require_divisible(config: PpoConfig, processes: int) -> None:
    """Checks that batches divide among the processes of a run.

    Raises:
        ValueError: they do not; the message names sizes that do.
    """
    if complaint := indivisible(config, processes):
        raise ValueError(f"ppo: {complaint}")


def indivisible(config: PpoConfig, processes: int) -> str:
    """A complaint about batches that do not divide among the processes of a run; empty if they do."""
    if config.batch_size % processes == 0:
        return ""
    above = config.batch_size + processes - config.batch_size % processes
    return (
        f"batch_size: expected a multiple of the {processes} processes, found {config.batch_size}. Set it to {above}, and "
        f"rollout_batch_size to a multiple of that, {math.ceil(config.rollout_batch_size / above) * above}"
    )


def _sampling_problems(config: PpoConfig) -> list[str]:
    if config.top_k == 0 and config.top_p == 1.0:
        return []
    return [
        f"top_k, top_p: expected 0 and 1.0, the whole distribution, found {config.top_k} and {config.top_p}. Truncated sampling never draws "
        "tokens outside its support, but the ratio π/π_old gives them a probability, so it is not an importance weight. To sample more "
        "narrowly, lower temperature, at which the ratio and the KL are computed too"
    ]


def _batch_problems(config: PpoConfig) -> list[str]:
    complaints = []
    sizes = (config.episodes, config.rollout_batch_size, config.batch_size, config.micro_batch_size)
    if min(sizes) < 1:
        return [f"episodes, rollout_batch_size, batch_size, micro_batch_size: expected at least 1 each, found {sizes}"]
    for larger, smaller in (("episodes", "rollout_batch_size"), ("rollout_batch_size", "batch_size")):
        whole, part = getattr(config, larger), getattr(config, smaller)
        if whole % part:
            below, above = whole - whole % part, whole + part - whole % part
            options = f"{below} or {above}" if below else f"{above}"
            complaints.append(
                f"{larger}: expected a multiple of {smaller} {part}, found {whole}. Set {larger} to {options}, or {smaller} to "
                f"{_divisor_below(whole, part)}"
            )
    return complaints


def _divisor_below(whole: int, part: int) -> int:
    return max(size for size in range(1, min(whole, part) + 1) if whole % size == 0)


def _range_problems(config: PpoConfig) -> list[str]:
    complaints = []
    if not config.temperature > 0:
        complaints.append(
            f"temperature: expected above 0, since greedy decoding has no log-probabilities to learn from, found {config.temperature}"
        )
    if config.target_kl is not None and not (config.target_kl > 0 and config.beta > 0):
        complaints.append(
            f"target_kl: expected null, or above 0 with a beta above 0 (the controller multiplies it), found {config.target_kl}"
        )
    if config.schedule not in SCHEDULES:
        complaints.append(f"schedule: expected constant, linear or cosine, found {config.schedule}")
    return complaints + outside(
        config,
        max_new_tokens=COUNT,
        sampling_batch_size=COUNT,
        update_epochs=COUNT,
        checkpoint_every=COUNT,
        samples_every=COUNT,
        beta=NOT_NEGATIVE,
        kl_gain=NOT_NEGATIVE,
        missing_eos_penalty=NOT_NEGATIVE,
        clip_score=POSITIVE,
        min_reward_accuracy=FRACTION,
        lambda_learning_rate=POSITIVE,
        max_lambda=POSITIVE,
        gamma=FRACTION,
        lam=FRACTION,
        clip_range=POSITIVE,
        value_clip_range=POSITIVE,
        entropy_coefficient=NOT_NEGATIVE,
        max_approx_kl=POSITIVE,
        learning_rate=POSITIVE,
        value_learning_rate=POSITIVE,
        warmup_fraction=BELOW_ONE,
        weight_decay=NOT_NEGATIVE,
        max_grad_norm=POSITIVE,
        warn_entropy_fraction=FRACTION,
        warn_kl=POSITIVE,
    )
