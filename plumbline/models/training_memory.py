"""Whether a model can be trained in the memory that there is: the arithmetic, before any work."""

import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from plumbline.models.memory import GIB, GRADIENT, MOMENTS, total_memory
from plumbline.models.training_values import Lora
from plumbline.pipeline import processes
from plumbline.pipeline.mlflow_calls import project_root

MASTER, COPY = 4, 2
"""Bytes of a weight that is trained, and of its bfloat16 copy, which autocast keeps in a forward pass."""

KEPT = 3
"""Checkpoints on disk when a new one is written: two are kept (`save_total_limit`)."""

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
    saved = size.parameters * size.weight_bytes
    adapter = lora_rank * size.widths
    trained = adapter or size.parameters
    weights = saved + MASTER * adapter if adapter else MASTER * size.parameters
    gradients, moments = GRADIENT * trained, MOMENTS * trained
    if optimiser == "paged_adamw_8bit":
        in_float32 = 0 if adapter else size.embeddings
        moments = MOMENTS * in_float32 + MOMENTS_8BIT * (trained - in_float32)
    copies = COPY * trained if bf16 else 0
    stored = MASTER * trained + moments
    frozen = saved if method in ("ppo", "grpo", "rloo") and reference and not adapter else 0
    copy = MASTER * size.parameters if kept or adapter else 0
    trained_models = 2 if method == "ppo" else 1
    in_place = 0 if kept else weights  # the trained model itself becomes the merged one
    return Need(
        weights,
        gradients,
        moments,
        copies,
        reference=frozen,
        value_model=weights + gradients + moments + copies if method == "ppo" else 0,
        checkpoints=2 * 2 * stored if method == "ppo" else KEPT * stored,  # PPO has two at most, of two networks
        policy=saved,
        copy=copy,
        saving=trained_models * (weights + moments) + frozen + copy - in_place if copy else 0,
    )


def size_of(folder: Path) -> Size:
    """The size of the model in a folder, by the headers of its weights."""
    from safetensors import safe_open

    from plumbline.models.loading import saved_dtype

    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "numpy") as weights:
            shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118  # safe_open returns no mapping
    linear = [shape for name, shape in shapes.items() if len(shape) == 2 and not any(part in name for part in NOT_ADAPTED)]
    embeddings = [shape for name, shape in shapes.items() if any(part in name for part in EMBEDDINGS)]
    parameters, embedded = (sum(map(math.prod, some)) for some in (shapes.values(), embeddings))
    return Size(parameters, saved_dtype(folder).itemsize, sum(map(sum, linear)), embedded)


EMBEDDINGS = ("embed", "wte", "wpe")
NOT_ADAPTED = (*EMBEDDINGS, "lm_head")
"""Parts of the names of embeddings, and of matrices that get no adapter: those and the output."""


def require_memory(config: Any, method: str, init: Path) -> None:
    """Refuses to train a model whose weights and optimiser alone exceed the memory, or that could not be saved in it, and prints how much disk
    checkpoints take if that is much.

    config: the method's; one without an adapter's fields, such as merge's, trains nothing, nor does SFT without epochs.

    Raises:
        ValueError: the memory is too small; the message has the arithmetic and says what to change.
    """
    if not isinstance(config, Lora) or getattr(config, "untrained", False):
        return
    size, there = size_of(init), memory_of_a_process()
    options: dict[str, Any] = {
        "lora_rank": config.lora_rank,
        "optimiser": getattr(config, "optimiser", "adamw"),
        "bf16": getattr(config, "bf16", False),
        "reference": method == "ppo" or bool(getattr(config, "beta", True)),
        "kept": bool(getattr(config, "keep_steps", ())),
    }
    need = memory_needed(size, method, **options)
    if need.memory > there:
        raise ValueError(f"{method}: {too_large(need, there, size, method, options)}")
    if complaint := saving_problem(need, size, kept=options["kept"]):
        raise ValueError(f"{method}: {complaint}")
    if need.checkpoints >= GIB and processes.is_first():
        free = shutil.disk_usage(project_root()).free
        print(
            f"{method}: checkpoints take up to {gib(need.checkpoints)} GiB of disk, the policy {gib(need.policy)}; {gib(free)} GiB are free"
        )


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
        f"expected at most {gib(there)} GiB while a policy is saved, the memory of this machine, found {gib(needed)} GiB for "
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
        f"expected weights and optimiser of at most {gib(there)} GiB, the memory of this machine or GPU, found {gib(need.memory)} GiB for "
        f"{size.parameters:,} parameters ({', '.join(f'{name} {gib(value)}' for name, value in parts.items())}), before any activation. To "
        f"train it, {', or '.join([*remedies, 'take a smaller model'])}; for the activations, lower micro_batch_size and set "
        "gradient_checkpointing to true"
    )


def gib(count: int) -> str:
    """Bytes as a number of GiB with one decimal."""
    return f"{count / GIB:,.1f}"
