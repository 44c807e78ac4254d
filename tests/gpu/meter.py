"""What a run costs: tokens, seconds, memory, and the share of the GPU's arithmetic that models use."""

import gc
import resource
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Words of a device's name → its dense bf16 FLOP/s with float32 accumulation, by NVIDIA's data sheets. The first that fits counts."""


def peak_flops(device: str) -> float | None:
    """A device's peak by its name, such as `NVIDIA H100 80GB HBM3`; None if the table does not have it."""
    words = set(device.replace("-", " ").split())
    return next((peak for name, peak in PEAK_FLOPS.items() if set(name.split()) <= words), None)


class Mark(NamedTuple):
    """The state of the counters at the end of a step."""

    seconds: float
    trained: int
    """Tokens that models have read forward and backward, without padding."""
    read: int
    """Tokens that models have read forward only: in sampling, as reference, as reward."""
    padding: int
    """Positions of padding beside the trained tokens."""
    allocated: int
    """Bytes of GPU memory in use; 0 on a CPU."""


class Meter:
    """Counts the tokens that reach a model's input embeddings, where every pass of every model begins once.

    Policy, reference, reward model and value model have embeddings of the same size, so all of them count. Nothing is read from the GPU
    before `mark`, so counting does not make it wait.
    """

    def __init__(self, embedding_rows: int, pad_id: int) -> None:
        self.embedding_rows, self.pad_id = embedding_rows, pad_id
        self.start()
        forward = nn.Embedding.forward

        def counting(module: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
            if module.num_embeddings == self.embedding_rows:
                self.count(ids)
            return forward(module, ids)

        nn.Embedding.forward = counting

    def start(self) -> None:
        """Sets all counters back and frees what the last run has left."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.marks: list[Mark] = []
        self.positions = {True: 0, False: 0}
        self.tokens: dict[bool, Any] = {True: 0, False: 0}

    def count(self, ids: torch.Tensor) -> None:
        """Counts a pass; one that records gradients is a pass of training."""
        trained = torch.is_grad_enabled()
        self.positions[trained] += ids.numel()
        # not in place, because the sum may be a tensor of inference mode
        self.tokens[trained] = self.tokens[trained] + (ids != self.pad_id).sum()

    def mark(self) -> None:
        """Ends a step."""
        allocated = 0
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            allocated = torch.cuda.memory_allocated()
        trained, read = int(self.tokens[True]), int(self.tokens[False])
        self.marks.append(Mark(time.perf_counter(), trained, read, self.positions[True] - trained, allocated))


def peak_gib() -> float:
    """The most memory since the meter's start: the GPU's, or on a CPU that of the process since it began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def rates(
    marks: Sequence[Mark], *, warm_up: int, parameters: int, flops_per_trained: float, peak: float | None
) -> dict[str, Any]:
    """Speed over the steps after the first `warm_up` ones, from the marks at the end of each step.

    parameters: N. A token takes 2·N floating-point operations forward, and `flops_per_trained`·N in training: 6, or 4 below an adapter, where the
    gradients of the weights are not computed. Attention over the context is not counted.
    """
    first, last = marks[warm_up - 1], marks[-1]
    steps, seconds = len(marks) - warm_up, last.seconds - first.seconds
    trained, read = last.trained - first.trained, last.read - first.read
    padding = last.padding - first.padding
    flops = parameters * (flops_per_trained * trained + 2 * read)
    return {
        "steps": steps,
        "seconds_per_step": seconds / steps,
        "trained_tokens_per_second": trained / seconds,
        "read_tokens_per_second": read / seconds,
        "padding_fraction": padding / (trained + padding) if trained else None,
        "flops_per_second": flops / seconds,
        "utilisation": flops / seconds / peak if peak else None,
        "growth_mib": (last.allocated - first.allocated) / 2**20 if last.allocated else None,
    }
