"""Merges two policies by averaging their weights: (1 − w)·init + w·signal (model soups, arXiv:2203.05482; WARP, arXiv:2406.16768).

The usual cure of the alignment tax: an aligned policy merged with the one that it started from gives back some of what alignment took,
for a part of what it gave. It works between policies that share their pretraining, and costs no training. Of more than two, chain entries:
the mean of A, B and C is B merged into A with weight 1/2, then C into that with weight 1/3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from stages.pipeline.tracking import Run

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class MergeConfig:
    """Values and their meaning: conf/method/merge.yaml."""

    method: str = "merge"
    init: str = MISSING
    signal: str = MISSING
    weight: float = MISSING


SCHEMAS = {"merge_schema": MergeConfig}


def interpolate(first: "Mapping[str, Tensor]", second: "Mapping[str, Tensor]", weight: float) -> "dict[str, Tensor]":
    """(1 − weight)·first + weight·second, tensor by tensor, computed in float32 and kept in the first's type; 0 and 1 give the ends, exactly.

    Raises:
        ValueError: the two do not have the same tensors in the same shapes; the message names the first that differs.
    """
    import torch

    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise ValueError(f"expected two policies with the same tensors, found {len(odd)} that only one has, such as {odd[0]}")
    merged = {}
    for name, tensor in first.items():
        other = second[name]
        if tensor.shape != other.shape:
            raise ValueError(
                f"expected tensors of the same shapes, found {tuple(tensor.shape)} and {tuple(other.shape)} at {name}"
            )
        if not tensor.is_floating_point() or weight == 0:
            merged[name] = tensor
        elif weight == 1:
            merged[name] = other.to(tensor.dtype)
        else:
            merged[name] = torch.lerp(tensor.float(), other.float(), weight).to(tensor.dtype)
    return merged


def relative_distance(first: "Mapping[str, Tensor]", second: "Mapping[str, Tensor]") -> float:
    """‖second − first‖ / ‖first‖ over all weights."""
    moved = sum(float((second[name].double() - tensor.double()).square().sum()) for name, tensor in first.items())
    size = sum(float(tensor.double().square().sum()) for tensor in first.values())
    return (moved / size) ** 0.5


def align(
    config: MergeConfig,
    *,
    init: Path,
    signal: Path,
    data: Path,
    output: Path,
    checkpoints: Path,
    curve: Path,
    run: Run,
    seed: int,
) -> dict[str, float]:
    """Writes the average of the policies in `init` and `signal` to `output`; returns how far apart the two are.

    Raises:
        ValueError: the weight is not in [0, 1], or the policies differ in shape or in vocabulary.
    """
    if not 0 <= config.weight <= 1:
        raise ValueError(f"merge: expected a weight in [0, 1], found {config.weight}")
    if not (signal / "config.json").is_file():
        raise ValueError(f"merge: expected signal to be a policy (`signal: policy/<name>`), found no model at {signal}")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stages.models.training import save_policy

    tokenizer, other_tokenizer = AutoTokenizer.from_pretrained(init), AutoTokenizer.from_pretrained(signal)
    if tokenizer.get_vocab() != other_tokenizer.get_vocab():
        raise ValueError(
            f"merge: expected policies with the same vocabulary, found that {init.name} and {signal.name} differ in theirs"
        )
    model, other = AutoModelForCausalLM.from_pretrained(init), AutoModelForCausalLM.from_pretrained(signal)
    first, second = model.state_dict(), other.state_dict()
    try:
        merged = interpolate(first, second, config.weight)
    except ValueError as error:
        raise ValueError(f"merge: {init.name} and {signal.name}: {error}. Merge policies of one pretraining only") from error
    distance = relative_distance(first, second)
    model.load_state_dict(merged)
    save_policy(model, tokenizer, output)
    curve.parent.mkdir(parents=True, exist_ok=True)
    curve.write_text("step\n")
    return {"weight": config.weight, "relative_distance": distance}
