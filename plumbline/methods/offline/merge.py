"""Merges two policies by averaging their weights: (1 − w)·init + w·signal (model soups, arXiv:2203.05482; WARP, arXiv:2406.16768).

It is the usual remedy for the alignment tax. An aligned policy that is merged with the one it started from regains some of the abilities
that alignment cost it, and loses part of what it gained. Merging works between policies that share their pretraining, and needs no
training. To merge more than two, chain entries: the mean of A, B and C is B merged into A with weight 1/2, then C into that with weight 1/3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import MISSING

from plumbline.methods.job import OfflineJob

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class MergeConfig:
    """Values and their meaning: conf/method/merge.yaml."""

    method: str = "merge"
    init: str = MISSING
    signal: str = MISSING
    weight: float = MISSING

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        return [] if 0 <= self.weight <= 1 else [f"weight: expected a fraction in [0, 1], found {self.weight}"]


LEARNS_FROM = ("policy",)  # the kinds of rows that `signal` may hold, as plumbline/graph.py names them
SCHEMAS = {"merge_schema": MergeConfig}


def interpolate(first: "Mapping[str, Tensor]", second: "Mapping[str, Tensor]", weight: float) -> "dict[str, Tensor]":
    """(1 − weight)·first + weight·second, tensor by tensor, computed in float32 and stored in the first's type.

    Weights of 0 and 1 give `first` and `second` exactly.

    Raises:
        ValueError: the two do not have the same tensors with the same shapes; the message names the first that differs.
    """
    import torch

    if first.keys() != second.keys():
        unmatched = sorted(first.keys() ^ second.keys())
        raise ValueError(
            f"expected policies with the same tensors, found {len(unmatched)} that only one has, such as {unmatched[0]}"
        )
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
    difference = sum(float((second[name].double() - tensor.double()).square().sum()) for name, tensor in first.items())
    size = sum(float(tensor.double().square().sum()) for tensor in first.values())
    return (difference / size) ** 0.5


def align(config: MergeConfig, job: OfflineJob) -> dict[str, float]:
    """Writes the average of the policies in `job.init` and `job.signal` to `job.output`, and returns how far apart they are.

    Raises:
        ValueError: the signal is not a policy, or the policies differ in shape or in vocabulary.
    """
    if not (job.signal / "config.json").is_file():
        raise ValueError(f"merge: expected a policy as signal (`signal: policy/<name>`), found no model at {job.signal}")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from plumbline.models.saving import save_policy

    tokenizer, other_tokenizer = AutoTokenizer.from_pretrained(job.init), AutoTokenizer.from_pretrained(job.signal)
    if tokenizer.get_vocab() != other_tokenizer.get_vocab():
        raise ValueError(
            f"merge: expected policies with the same vocabulary, found different ones in {job.init.name} and {job.signal.name}. Merge policies "
            "with a common tokenizer only"
        )
    model, other = AutoModelForCausalLM.from_pretrained(job.init), AutoModelForCausalLM.from_pretrained(job.signal)
    first, second = model.state_dict(), other.state_dict()
    try:
        merged = interpolate(first, second, config.weight)
    except ValueError as error:
        raise ValueError(
            f"merge: {job.init.name} and {job.signal.name}: {error}. Merge policies with a common pretraining only"
        ) from error
    distance = relative_distance(first, second)
    model.load_state_dict(merged)
    save_policy(model, tokenizer, job.output)
    job.curve.parent.mkdir(parents=True, exist_ok=True)
    job.curve.write_text("step\n")
    return {"weight": config.weight, "relative_distance": distance}
