"""Watches a run: numbers that are not finite stop it, and the known ways in which PPO goes astray are told in words."""

import math
from collections.abc import Mapping, Sequence

WINDOW = 5  # steps that are averaged at the beginning and at the end of a history


def require_finite(values: Mapping[str, float], where: str) -> None:
    """Stops at the first number that is NaN or infinite.

    Raises:
        FloatingPointError: names the number and where it arose.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"ppo, {where}: {name} is {value}. Lower learning_rate or max_grad_norm; if it is a reward, look at that "
                "completion."
            )


def diagnose(history: Sequence[Mapping[str, float]], *, entropy_fraction: float, kl_limit: float) -> dict[str, str]:
    """Names what is going wrong, by kind: the reward rises while entropy collapses, or while KL explodes.

    history: metrics of every step so far. Nothing is said before there are two separate windows to compare.
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
            f"{rise} the entropy fell from {first['entropy']:.3g} to {last['entropy']:.3g} nats per token: the policy is "
            "narrowing to what the reward model likes. Raise init_kl_coef (or lower target_kl), lower learning_rate, or set "
            "entropy_coefficient to 0.01."
        )
    if last["kl_k1"] > kl_limit:
        warnings["kl"] = (
            f"{rise} the KL to the reference grew to {last['kl_k1']:.3g} nats per completion (warn_kl {kl_limit:g}): what it "
            "gains there is likely the reward model's error. Raise init_kl_coef, or set target_kl for an adaptive one; compare "
            "gold, not reward."
        )
    return warnings


def _mean(rows: Sequence[Mapping[str, float]], name: str) -> float:
    return math.fsum(row[name] for row in rows) / len(rows)
