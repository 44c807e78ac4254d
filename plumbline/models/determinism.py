"""The same seed, thread count and kind of machine give the same bytes."""

import os
from typing import Any


def make_deterministic(seed: int, threads: int) -> None:
    """Seeds every random generator, fixes the number of threads, and chooses deterministic kernels.

    On a GPU, float32 matrix products read their factors as TF32, which has more digits than bfloat16 and is several times as fast.
    """
    import torch
    import transformers

    # of a fixed size, without which cuBLAS may sum in another order each time; read when CUDA starts
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # filling takes four fifths of the time of TRL's tiled loss
    transformers.set_seed(seed)
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()  # of loading and saving; trainers keep theirs
