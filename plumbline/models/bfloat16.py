"""Whether this machine has units for bfloat16: a CPU without them emulates it, and is several times slower than in float32."""

import json
import math
import time
from pathlib import Path

ROWS, WIDTH = 512, 1024
TRIES = 3
"""The fastest counts: the first also starts threads, and other work on the machine may disturb one."""


def slowdown() -> float:
    """How many times as long a matrix product takes in bfloat16 as in float32, measured in a second or two; 1 if there is a GPU, unmeasured."""
    import torch

    if torch.accelerator.is_available():
        return 1.0
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for _ in range(TRIES):
        for dtype in seconds:
            rows, weight = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
            start = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.bfloat16] / seconds[torch.float32]


def is_saved_in_bfloat16(path: str, revision: str | None) -> bool:
    """Whether the config.json of a model's folder, or of a hub id in the local cache, says so."""
    from huggingface_hub import try_to_load_from_cache

    try:
        file = (
            Path(path) / "config.json" if Path(path).is_dir() else try_to_load_from_cache(path, "config.json", revision=revision)
        )
        config = json.loads(Path(file).read_text(encoding="utf-8")) if isinstance(file, str | Path) else {}
    except (OSError, ValueError):  # prepare says what is wrong with the model
        return False
    return isinstance(config, dict) and "bfloat16" in (config.get("dtype"), config.get("torch_dtype"))
