"""Turns rewards into the scores that PPO optimises, and adapts the weights of the KL (β) and of a cost (λ)."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass
class RunningMoments:
    """Mean and variance of all rewards so far, updated batch by batch (Chan, Golub and LeVeque 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared differences from the mean

    @property
    def std(self) -> float:
        """Population standard deviation; 1 as long as all values are equal, so that dividing by it is harmless."""
        return math.sqrt(self.squares / self.count) if self.count and self.squares > 0 else 1.0

    def update(self, values: Sequence[float]) -> None:
        """Adds a batch."""
        size = len(values)
        batch_mean = math.fsum(values) / size
        batch_squares = math.fsum((value - batch_mean) ** 2 for value in values)
        difference, total = batch_mean - self.mean, self.count + size
        self.squares += batch_squares + difference**2 * self.count * size / total
        self.mean += difference * size / total
        self.count = total

    def state(self) -> dict[str, float]:
        """The fields, for a checkpoint."""
        return asdict(self)


def shape_scores(
    rewards: Sequence[float],
    finished: Sequence[bool],
    *,
    moments: RunningMoments | None,
    clip: float | None,
    missing_eos_penalty: float,
) -> list[float]:
    """Scores that PPO optimises: rewards, normalised if `moments` is given, clipped to ±clip if `clip` is given, less the penalty.

    The penalty for a completion that does not reach its end of turn is subtracted last, in units of the score, so that neither
    normalising nor clipping can undo it.
    """
    scores = list(rewards)
    if moments is not None:
        scores = [(score - moments.mean) / moments.std for score in scores]
    if clip is not None:
        scores = [max(-clip, min(clip, score)) for score in scores]
    return [score - (0.0 if done else missing_eos_penalty) for score, done in zip(scores, finished, strict=True)]


@dataclass
class KlController:
    """β: fixed if `target` is None, else adapted so that the KL to the reference approaches `target` (Ziegler et al. 2019)."""

    beta: float
    target: float | None = None
    gain: float = 0.1

    def update(self, kl: float) -> None:
        """Adapts β to a batch's mean KL per completion, in nats: §2.2 of arXiv:1909.08593."""
        if self.target is not None:
            error = max(-0.2, min(0.2, kl / self.target - 1))  # e_t = clip((KL − KL_target) / KL_target, −0.2, 0.2)
            self.beta *= 1 + self.gain * error  # β_{t+1} = β_t (1 + K_β e_t)


@dataclass
class LagrangeMultiplier:
    """λ of the constrained problem max E[R] subject to E[C] ≤ limit, by ascent on ln λ (Safe RLHF, arXiv:2310.12773, Eq. 9 and App. B.3)."""

    value: float
    limit: float
    learning_rate: float
    largest: float

    def combine(self, reward: float, cost: float) -> float:
        """The objective at this λ: (R − λ C) / (1 + λ), whose scale does not grow with λ."""
        return (reward - self.value * cost) / (1 + self.value)

    def update(self, mean_cost: float) -> None:
        """Adapts λ to a batch's mean cost: it grows above the limit and falls below it, at most by a factor of e."""
        step = self.learning_rate * self.value * (mean_cost - self.limit)
        self.value = min(self.largest, self.value * math.exp(min(1.0, max(-1.0, step))))
