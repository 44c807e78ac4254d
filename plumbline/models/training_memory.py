"""Whether a model can be trained in the memory that there is: the arithmetic, before any work."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plumbline.models.memory import GIB, GRADIENT, MOMENTS, total_memory
from plumbline.models.model_files import EMBEDDINGS, OUTPUT, tensors_of
from plumbline.models.training_values import Lora
from plumbline.pipeline import processes
from plumbline.pipeline.mlflow_calls import project_root

MASTER, COPY = 4, 2
"""Bytes of a weight that is trained, and of its bfloat16 copy, which autocast keeps in a forward pass."""

CHECKPOINTS_ON_DISK = 3
"""When a new one is written, before the oldest is deleted: `CHECKPOINTS` of training.py stay."""

MOMENTS_8BIT = 2
"""Bytes of the two moments in 8 bits. The moments of embeddings stay in float32, as bitsandbytes recommends."""


class Size(NamedTuple):
    """The size of a causal LM."""

    parameters: int
    weight_bytes: int
    """Of one parameter, as it was saved."""
    widths: int = 0
    """The widths of all linear layers but the output, inputs and outputs added up: the parameters of an adapter of rank 1."""
    embeddings: int = 0
    """Parameters of the embeddings, of `parameters`."""
    output: int = 0
    """Parameters of the output layer, of `parameters`; 0 if it is tied to the embeddings."""


class Need(NamedTuple):
    """Bytes that training needs before any activation, and bytes on disk."""

    weights: int
    gradients: int
    moments: int
    copies: int
    reference: int
    value_model: int
    """With its gradients and moments."""
    checkpoints: int
    """On disk, at most."""
    policy: int
    """On disk: what is written at the end."""
    copy: int
    """In the machine's memory while a policy is saved: its float32 copy, if it is kept during training or has an adapter to merge."""
    saving: int
    """All that is in memory then on a machine without a GPU, if there is a copy: gradients and autocast's copies are gone."""

    @property
    def memory(self) -> int:
        """All that is in memory."""
        return self.weights + self.gradients + self.moments + self.copies + self.reference + self.value_model


def memory_needed(
    size: Size,
    method: str,
    *,
    lora_rank: int = 0,
    optimiser: str = "adamw",
    bf16: bool = False,
    reference: bool = True,
    kept: bool = False,
) -> Need:
    """What a method needs to train a model: without activations, which micro_batch_size and the lengths decide, and without a reward model.

    reference: false if a method that can do without a reference does so (`beta: 0`). kept: whether steps are kept (`keep_steps`).
    """
    trained = _trained(size, lora_rank, optimiser, bf16, headless=method == "reward_model")
    value_model = _trained(size, lora_rank, optimiser, bf16, headless=True) if method == "ppo" else Trained(0, 0, 0, 0, 0)
    saved = size.parameters * size.weight_bytes
    stored = trained.stored + value_model.stored
    frozen = saved if method in ("ppo", "grpo", "rloo") and reference and not lora_rank else 0
    copy = MASTER * (size.parameters - (size.output if method == "reward_model" else 0)) if kept or lora_rank else 0
    held = sum(one.weights + one.moments for one in (trained, value_model))
    in_place = 0 if kept else trained.weights  # the trained model itself becomes the merged one
    return Need(
        trained.weights,
        trained.gradients,
        trained.moments,
        trained.copies,
        reference=frozen,
        value_model=value_model.weights + value_model.gradients + value_model.moments + value_model.copies,
        checkpoints=2 * stored if method == "ppo" else CHECKPOINTS_ON_DISK * stored,  # PPO has two at most, of two networks
        policy=saved,
        copy=copy,
        saving=held + frozen + copy - in_place if copy else 0,
    )


class Trained(NamedTuple):
    """Bytes of one model that is trained."""

    weights: int
    gradients: int
    moments: int
    copies: int
    stored: int
    """On disk, in a checkpoint: what is trained, with its moments."""


def _trained(size: Size, lora_rank: int, optimiser: str, bf16: bool, *, headless: bool) -> Trained:
    """What a model takes that is trained, in full or by an adapter; headless: without the output layer, which a reward or a value replaces."""
    parameters = size.parameters - (size.output if headless else 0)
    adapter = lora_rank * size.widths
    trained = adapter or parameters
    weights = parameters * size.weight_bytes + MASTER * adapter if adapter else MASTER * parameters
    moments = MOMENTS * trained
    if optimiser == "paged_adamw_8bit":
        in_float32 = 0 if adapter else size.embeddings
        moments = MOMENTS * in_float32 + MOMENTS_8BIT * (trained - in_float32)
    return Trained(weights, GRADIENT * trained, moments, COPY * trained if bf16 else 0, MASTER * trained + moments)


NOT_ADAPTED = (*EMBEDDINGS, *OUTPUT)
"""Parts of the names of embeddings and of the output layer: matrices that get no adapter."""


def size_of(folder: Path) -> Size:
    """The size of the model in a folder, by the headers of its weights."""
    from plumbline.models.loading import saved_dtype

    tensors = tensors_of(str(folder), None) or {}
    return size_by_shapes({name: tensor.shape for name, tensor in tensors.items()}, saved_dtype(folder).itemsize)


def size_by_shapes(shapes: Mapping[str, Sequence[int]], weight_bytes: int) -> Size:
    """The size of a model whose tensors have these names and shapes."""

    def count(parts: Sequence[str]) -> int:
        return sum(math.prod(shape) for name, shape in shapes.items() if any(part in name for part in parts))

    linear = [shape for name, shape in shapes.items() if len(shape) == 2 and not any(part in name for part in NOT_ADAPTED)]
    return Size(sum(map(math.prod, shapes.values())), weight_bytes, sum(map(sum, linear)), count(EMBEDDINGS), count(OUTPUT))


def require_memory(config: Any, method: str, init: Path) -> None:
    """Refuses to train a model whose weights and optimiser alone exceed the memory, or that could not be saved in it, and prints how much disk
    checkpoints take if that is much.

    config: the method's; one that trains nothing is never refused.

    Raises:
        ValueError: the memory is too small; the message has the arithmetic and says what to change.
    """
    if not trains_weights(config):
        return
    size = size_of(init)
    if complaint := memory_problem(config, method, size):
        raise ValueError(f"{method}: {complaint}")
    need = memory_needed(size, method, **_options(config, method))
    if need.checkpoints >= GIB and processes.is_first():
        free = shutil.disk_usage(project_root()).free
        print(
            f"{method}: checkpoints take up to {gib(need.checkpoints)} GiB of disk, the policy {gib(need.policy)}; {gib(free)} GiB are free"
        )


def trains_weights(config: Any) -> bool:
    """Whether a method's config asks for training: not one without an adapter's fields, such as merge's, nor SFT without epochs."""
    return isinstance(config, Lora) and not getattr(config, "untrained", False)


def memory_problem(config: Any, method: str, size: Size) -> str:
    """Why a model of a size cannot be trained here, or not be saved, with the arithmetic and what to change; empty if it can."""
    there, options = memory_of_a_process(), _options(config, method)
    need = memory_needed(size, method, **options)
    if options["optimiser"].startswith("paged"):
        need = need._replace(moments=0)  # which may leave the GPU
    return (
        too_large(need, there, size, method, options) if need.memory > there else saving_problem(need, size, kept=options["kept"])
    )


def _options(config: Any, method: str) -> dict[str, Any]:
    """What a method's config says of the memory that training needs, as `memory_needed` takes it."""
    return {
        "lora_rank": config.lora_rank,
        "optimiser": getattr(config, "optimiser", "adamw"),
        "bf16": getattr(config, "bf16", False),
        "reference": method == "ppo" or bool(getattr(config, "beta", True)),
        "kept": bool(getattr(config, "keep_steps", ())),
    }


def memory_of_a_process() -> int:
    """The bytes that weights and optimiser may take, as if they were whole in this process.

    Processes on a CPU share the machine's memory. Sharded models take as many times as much as there are processes.
    """
    from plumbline.models.loading import device

    there = total_memory(device())
    if device() == "cpu":
        there //= processes.count_here()
    return there * (processes.count() if processes.sharded() else 1)


def saving_problem(need: Need, size: Size, *, kept: bool) -> str:
    """Why a policy could not be saved in the machine's memory, and what to change; empty if it can."""
    from plumbline.models.loading import device

    there, needed = total_memory("cpu"), need.copy
    if device() == "cpu":
        waiting = processes.count_here() - 1 if kept else 0  # at the end, the other processes have left
        needed = need.saving + waiting * (need.saving - need.copy)
    if needed <= there:
        return ""
    fewer = "set keep_steps to [], " if kept else ""
    return (
        f"expected at most {gib(there)} GiB while a policy is saved, the memory of this machine, found at least {gib(needed)} GiB for "
        f"{size.parameters:,} parameters, of which its copy in float32 takes {gib(need.copy)}. To save it, {fewer}take a smaller model, or a "
        "machine with more memory"
    )


def too_large(need: Need, there: int, size: Size, method: str, options: dict[str, Any]) -> str:
    """What training needs, what there is, and which changes would make it smaller."""
    parts = {
        name: value for name, value in need._asdict().items() if value and name not in ("checkpoints", "policy", "copy", "saving")
    }
    changes: dict[str, Any] = {} if options["lora_rank"] else {"lora_rank": 16}
    if method != "ppo" and options["optimiser"] == "adamw":
        changes["optimiser"] = "paged_adamw_8bit"
    remedies = [
        f"set {name} to {value} ({gib(memory_needed(size, method, **options | {name: value}).memory)} GiB)"
        for name, value in changes.items()
    ]
    return (
        f"expected weights and optimiser of at most {gib(there)} GiB, the memory of this machine or GPU, found at least {gib(need.memory)} GiB for "
        f"{size.parameters:,} parameters ({', '.join(f'{name} {gib(value)}' for name, value in parts.items())}), before any activation. To "
        f"train it, {', or '.join([*remedies, 'take a smaller model'])}; for the activations, lower micro_batch_size and set "
        "gradient_checkpointing to true"
    )


def gib(count: int) -> str:
    """Bytes as a number of GiB with one decimal."""
    return f"{count / GIB:,.1f}"
