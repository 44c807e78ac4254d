"""What must hold on a GPU: precision, repetition, resumption and memory, judged from the figures of the runs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

LOGPS_GAP = {"float32": 1e-3, "bfloat16": 0.25}
"""The largest difference in nats between a token's log-probability when it was sampled and in a forward pass over the whole completion.

Batches of other shapes round differently. In bfloat16, logits of up to 16 are rounded to steps of 1/16.
"""

CURVE_GAP, CURVE_GAP_MEAN = 0.05, 0.02
"""The largest and the mean difference between the losses of bf16 and fp32, as fractions of the first loss in fp32."""

GROWTH_MIB = 32.0
"""GPU memory that may be in use after the last step beyond that after the warm-up: batches differ in length."""

Results = Mapping[str, Mapping[str, Any]]


class Check(NamedTuple):
    """A claim, what was found, what was expected, and whether it holds; None if it could not be measured."""

    claim: str
    found: str
    expected: str
    held: bool | None


def checks(results: Results) -> list[Check]:
    """All checks on the results of the runs, by the names that tests/gpu/measure.py gives them."""
    return [
        log_probabilities(results.get("sampling", {}), "bfloat16"),
        log_probabilities(results.get("sampling_fp32", {}), "float32"),
        loss_curves("SFT", results.get("sft", {}), results.get("sft_fp32", {})),
        loss_curves("DPO", results.get("dpo", {}), results.get("dpo_fp32", {})),
        sampled_again(results.get("sampling", {})),
        same_weights("the same run of SFT gives the same weights", results, "sft", "sft_again"),
        same_weights("SFT resumed from a checkpoint gives the same weights", results, "sft", "sft_resumed"),
        same_weights("PPO resumed from a checkpoint gives the same weights", results, "ppo", "ppo_resumed"),
        memory_growth(results),
    ]


def log_probabilities(sampling: Mapping[str, Any], dtype: str) -> Check:
    """Sampling and a forward pass agree on the probability of what was sampled."""
    claim, limit = f"sampled log-probabilities are a forward pass's, {dtype}", LOGPS_GAP[dtype]
    if "logps_gap" not in sampling:
        return Check(claim, "not measured", f"at most {limit:g}", None)
    gap, mean = sampling["logps_gap"], sampling["logps_gap_mean"]
    return Check(claim, f"largest {gap:.2g}, mean {mean:.2g} nats", f"largest at most {limit:g}", gap <= limit)


def loss_curves(method: str, bf16: Mapping[str, Any], fp32: Mapping[str, Any]) -> Check:
    """Training in bf16 follows training in fp32, step by step."""
    claim = f"{method} in bf16 follows fp32"
    expected = f"largest at most {CURVE_GAP:.0%}, mean at most {CURVE_GAP_MEAN:.0%} of the first loss"
    if "curve" not in bf16 or "curve" not in fp32:
        return Check(claim, "not measured", expected, None)
    first = fp32["curve"]["loss"][0]
    gaps = [abs(one - other) for one, other in zip(bf16["curve"]["loss"], fp32["curve"]["loss"], strict=True)]
    largest, mean = max(gaps), sum(gaps) / len(gaps)
    found = f"largest {largest:.2g} ({largest / first:.2%}), mean {mean:.2g} ({mean / first:.2%}) in {len(gaps)} steps"
    return Check(claim, found, expected, largest <= CURVE_GAP * first and mean <= CURVE_GAP_MEAN * first)


def sampled_again(sampling: Mapping[str, Any]) -> Check:
    """Sampling with the same seed draws the same tokens."""
    held = sampling.get("repeated")
    return Check("the same sampling draws the same tokens", _yes_or_no(held), "yes", held)


def same_weights(claim: str, results: Results, name: str, other: str) -> Check:
    """Two runs end with the same bytes."""
    first, second = results.get(name, {}), results.get(other, {})
    if "weights" not in first or "weights" not in second:
        return Check(claim, "not measured", "yes", None)
    held = first["weights"] == second["weights"]
    curves = [next(iter(one["curve"].values())) for one in (first, second)]
    gap = max(abs(one - two) for one, two in zip(*curves, strict=True))
    return Check(claim, f"{_yes_or_no(held)}; curves differ by {gap:.2g} at most", "yes", held)


def memory_growth(results: Results) -> Check:
    """No run uses more and more memory."""
    growths = {name: row["growth_mib"] for name, row in results.items() if row.get("growth_mib") is not None}
    claim, expected = "memory does not grow over steps", f"at most {GROWTH_MIB:g} MiB"
    if not growths:
        return Check(claim, "not measured", expected, None)
    worst = max(growths, key=growths.__getitem__)
    return Check(claim, f"{growths[worst]:.1f} MiB at most ({worst})", expected, growths[worst] <= GROWTH_MIB)


def _yes_or_no(held: bool | None) -> str:
    return "not measured" if held is None else "yes" if held else "no"
