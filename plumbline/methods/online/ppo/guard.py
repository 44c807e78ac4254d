"""Watches a run: stops it at numbers that are not finite, and describes the known ways in which PPO goes wrong."""

import math
from collections.abc import Mapping, Sequence

WINDOW = 5
"""The number of steps to average at the start and at the end of a history."""


def require_finite(values: Mapping[str, float], where: str) -> None:
    """Checks that no number is NaN or infinite.

    Raises:
        FloatingPointError: one is; the message names the first, and `where` it arose.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"ppo, {where}: expected a finite {name}, found {value}. Lower learning_rate or max_grad_norm; if it is a reward, look at "
                "that completion"
            )


def diagnose(history: Sequence[Mapping[str, float]], *, entropy_fraction: float, kl_limit: float) -> dict[str, str]:
    """Warnings by kind: the reward rises while the entropy collapses (`entropy`), or while the KL explodes (`kl`).

    history: the metrics of every step so far. There is no warning before there are two separate windows to compare.
    """
    if len(history) < 2 * WINDOW:
        return {}
    first = {name: _mean(history[:WINDOW], name) for name in ("reward", "entropy", "kl_k1")}
    last = {name: _mean(history[-WINDOW:], name) for name in ("reward", "entropy", "kl_k1")}
    if last["reward"] <= first["reward"]:
        return {}
    rise = f"the reward rose from {first['reward']:.3g} to {last['reward']:.3g} while"
    warnings = {}
    if last["entropy"] < entropy_fraction * first["entropy"]:
        warnings["entropy"] = (
            f"{rise} the entropy fell from {first['entropy']:.3g} to {last['entropy']:.3g} nats per token. The policy is narrowing to what "
            "the reward model prefers. Raise beta (or lower target_kl), lower learning_rate, or set entropy_coefficient to 0.01."
        )
    if last["kl_k1"] > kl_limit:
        warnings["kl"] = (
            f"{rise} the KL to the reference grew to {last['kl_k1']:.3g} nats per completion (warn_kl {kl_limit:g}). Such a gain is likely the "
            "reward model's error. Raise beta, or set target_kl for an adaptive beta; compare gold, not reward."
        )
    return warnings


def _mean(rows: Sequence[Mapping[str, float]], name: str) -> float:
    return math.fsum(row[name] for row in rows) / len(rows)
