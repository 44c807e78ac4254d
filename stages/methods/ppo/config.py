"""What decides a PPO run; values, units and the papers' numbers stand in conf/method/ppo.yaml."""

import math
from dataclasses import dataclass

from omegaconf import MISSING

from stages.models.training import Lora


@dataclass
class PpoConfig(Lora):
    """Values and their meaning: conf/method/ppo.yaml."""

    method: str = "ppo"
    init: str = MISSING
    signal: str = MISSING
    # how much
    episodes: int = MISSING
    rollout_batch_size: int = MISSING
    minibatch_size: int = MISSING
    micro_batch_size: int = MISSING
    epochs: int = MISSING
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
    init_kl_coef: float = MISSING
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

    @property
    def steps(self) -> int:
        """PPO steps: one rollout batch and its epochs of updates each."""
        return self.episodes // self.rollout_batch_size


def validate(config: PpoConfig, processes: int = 1) -> None:
    """Refuses a config that cannot be run as it is written; all complaints at once.

    Raises:
        ValueError: sampling from a part of the distribution, batch sizes that do not divide, or a value out of its range.
    """
    complaints = [*_sampling_complaints(config), *_batch_complaints(config, processes), *_range_complaints(config)]
    if complaints:
        raise ValueError("conf/method/ppo.yaml or params.yaml (align.<entry>):\n- " + "\n- ".join(complaints))


def _sampling_complaints(config: PpoConfig) -> list[str]:
    if config.top_k == 0 and config.top_p == 1.0:
        return []
    return [
        f"top_k {config.top_k}, top_p {config.top_p}: expected 0 and 1.0, the full distribution. A truncated one gives tokens "
        "outside its support probability 0 when sampled but not in the ratio π/π_old, which is then no importance weight. "
        "To sample more narrowly, lower temperature: the ratio and the KL are taken at that temperature too."
    ]


def _batch_complaints(config: PpoConfig, processes: int) -> list[str]:
    complaints = []
    sizes = (config.episodes, config.rollout_batch_size, config.minibatch_size, config.micro_batch_size)
    if min(sizes) < 1:
        return [f"episodes, rollout_batch_size, minibatch_size, micro_batch_size: expected at least 1 each, found {sizes}"]
    for larger, smaller in (("episodes", "rollout_batch_size"), ("rollout_batch_size", "minibatch_size")):
        whole, part = getattr(config, larger), getattr(config, smaller)
        if whole % part:
            below, above = whole - whole % part, whole + part - whole % part
            options = f"{below} or {above}" if below else f"{above}"
            complaints.append(
                f"{larger} {whole} is no multiple of {smaller} {part}: set {larger} to {options}, "
                f"or {smaller} to {_divisor_below(whole, part)}"
            )
    if config.minibatch_size % processes:
        above = config.minibatch_size + processes - config.minibatch_size % processes
        complaints.append(
            f"minibatch_size {config.minibatch_size} does not divide among {processes} processes: set it to {above}, and "
            f"rollout_batch_size to a multiple of that, {math.ceil(config.rollout_batch_size / above) * above}"
        )
    return complaints


def _divisor_below(whole: int, part: int) -> int:
    return max(size for size in range(1, min(whole, part) + 1) if whole % size == 0)


def _range_complaints(config: PpoConfig) -> list[str]:
    rules = {
        "temperature": (config.temperature > 0, "above 0: greedy decoding has no log-probabilities to learn from"),
        "max_new_tokens": (config.max_new_tokens >= 1, "at least 1"),
        "sampling_batch_size": (config.sampling_batch_size >= 1, "at least 1"),
        "epochs": (config.epochs >= 1, "at least 1"),
        "init_kl_coef": (config.init_kl_coef >= 0, "0 or above"),
        "target_kl": (config.target_kl is None or (config.target_kl > 0 and config.init_kl_coef > 0),
                      "null, or above 0 with an init_kl_coef above 0 (the controller multiplies it)"),
        "missing_eos_penalty": (config.missing_eos_penalty >= 0, "0 or above: it is subtracted"),
        "clip_score": (config.clip_score is None or config.clip_score > 0, "null or above 0"),
        "lambda_learning_rate": (config.lambda_learning_rate > 0, "above 0"),
        "max_lambda": (config.max_lambda > 0, "above 0"),
        "gamma": (0 <= config.gamma <= 1, "in [0, 1]"),
        "lam": (0 <= config.lam <= 1, "in [0, 1]"),
        "clip_range": (config.clip_range > 0, "above 0"),
        "value_clip_range": (config.value_clip_range > 0, "above 0"),
        "max_approx_kl": (config.max_approx_kl is None or config.max_approx_kl > 0, "null or above 0"),
        "max_grad_norm": (config.max_grad_norm > 0, "above 0"),
        "schedule": (config.schedule in ("constant", "linear", "cosine"), "constant, linear or cosine"),
        "warmup_fraction": (0 <= config.warmup_fraction < 1, "in [0, 1)"),
        "checkpoint_every": (config.checkpoint_every >= 1, "at least 1"),
        "samples_every": (config.samples_every >= 1, "at least 1"),
    }  # fmt: skip
    return [f"{name} {getattr(config, name)}: expected {expected}" for name, (holds, expected) in rules.items() if not holds]
