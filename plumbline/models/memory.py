"""How much memory there is, and how many rows are sampled side by side in it.

The number of rows in a batch decides the last bit of its logits, and so now and then a token. So it follows from what the machine and the models
are, and not from what happens to be free: a run must not depend on what other programs do.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GIB = 2**30

# ---- what there is ------------------------------------------------------------------------------------------------------


def total_memory(device: str) -> int:
    """Bytes of memory that a program may use on `cuda`, the GPU that torch uses, or on `cpu`: the machine's, or its cgroup's limit."""
    if device == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    import psutil

    return min([psutil.virtual_memory().total, *cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def cgroup_limits(memberships: Path, mount: Path) -> Iterator[int]:
    """The limits in bytes of the cgroups that a process is in, of version 1 or 2, as a container or a batch system sets them.

    memberships: /proc/<pid>/cgroup; mount: where cgroups are mounted. Inside a container the cgroup may be mounted as the root.
    """
    for line in memberships.read_text().splitlines() if memberships.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = mount, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = root / path.lstrip("/")
        for folder in {root, own, *(parent for parent in own.parents if parent.is_relative_to(root))}:
            file = folder / name
            if file.is_file() and (text := file.read_text().strip()).isdigit():
                yield int(text)


GRADIENT = 4
"""Bytes of a weight's gradient, in float32."""

MOMENTS = 8
"""Bytes of AdamW's two moments of a weight."""

# ---- sampling -----------------------------------------------------------------------------------------------------------

SHARE = {"cuda": 1 / 2, "cpu": 1 / 4}
"""The part of the memory besides the models that one batch of completions may take. A machine's memory has other users; a GPU's seldom."""

LEAST = GIB
"""What a batch may take in any case, so that the closed world is sampled alike on every machine."""

SPARE_ROOM = 1.25
"""The cache is written into room for a quarter more tokens (plumbline/models/cache.py)."""

LOGIT_BYTES = 24
"""What a draw takes for each entry of the vocabulary: logits, their float32, probabilities, and their cumulative sum in float64."""


def rows_in_cache(model: Any, tokens: int, most: int, held: int) -> int:
    """The number of rows of `tokens` tokens to sample side by side: `most` if their keys, values and draws fit, else a power of two.

    held: bytes of the models, gradients and moments that are on the device besides. A power of two, so that machines of one kind whose memory differs
    by a little use the same number.
    """
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token_bytes = 2 * text.num_hidden_layers * heads * head_dim * model.dtype.itemsize
    device = model.device.type
    room = max(LEAST, SHARE.get(device, SHARE["cpu"]) * (total_memory(device) - held))
    fitting = int(room / (SPARE_ROOM * token_bytes * tokens + LOGIT_BYTES * text.vocab_size))
    return most if fitting >= most else 2 ** int(math.log2(max(1, fitting)))


def held_bytes(*models: Any, reference: Any = None) -> int:
    """Bytes of models, and of the gradients and AdamW's moments of what is trained of them. None is left out.

    reference: a model that is only read, even if its parameters are not frozen, as TRL's are not.
    """
    parameters = [parameter for model in models if model is not None for parameter in model.parameters()]
    trained = sum(one.numel() * (GRADIENT + MOMENTS) for one in parameters if one.requires_grad)
    read = [] if reference is None else reference.parameters()
    return sum(one.nbytes for one in (*parameters, *read)) + trained
