"""The same seed, thread count and kind of machine give the same bytes."""

from typing import Any


def make_deterministic(seed: int, threads: int) -> None:
    """Seeds every random generator, fixes the number of threads, and chooses deterministic kernels."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # filling takes four fifths of the time of TRL's tiled loss
    transformers.set_seed(seed)
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()  # of loading and saving; trainers keep theirs
