"""Log-probabilities of tokens, computed without the logits of a whole batch in memory.

With a vocabulary of 150,000, the logits of a batch take more memory than the model: 8,000 tokens make 5 GB in float32, and as much again for each
step of arithmetic on them. So what needs logits gets them `CHUNK_LOGITS` at a time. A matrix product over fewer rows may round differently, so
whatever fits into one chunk is computed at once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**25
"""The most logits in memory at once: 128 MiB in float32. A closed-world batch has a tenth of that."""


def per_token_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """log π(token) (n,) in float32 from next-token logits (n, vocabulary), which are already divided by the temperature."""
    return -functional.cross_entropy(logits.float(), tokens, reduction="none")


@torch.no_grad()
def linear_output(model: Any) -> nn.Module | None:
    """The output layer of a causal LM if its logits are that layer of its last hidden states; None if there is more to it, as soft-capping."""
    output = model.get_output_embeddings()
    if output is None or model.base_model is model:
        return None
    probe = torch.arange(min(8, model.config.get_text_config().vocab_size), device=model.device).unsqueeze(0)
    expected = model(input_ids=probe, use_cache=False).logits
    direct = output(model.base_model(input_ids=probe, use_cache=False).last_hidden_state)
    return output if expected.shape == direct.shape and torch.equal(expected, direct) else None


def in_chunks(figures: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, tokens: Tensor, vocabulary: int) -> Tensor:
    """`figures` (…, n) of hidden states (n, width) and tokens (n,), which makes logits (n, vocabulary), `CHUNK_LOGITS` of them at a time.

    The backward pass computes a chunk's logits again, so that it does not hold them all either.
    """
    size = max(1, CHUNK_LOGITS // vocabulary)
    if len(tokens) <= size:
        return figures(hidden, tokens)
    recomputed = partial(checkpoint, figures, use_reentrant=False, preserve_rng_state=False)
    compute = recomputed if torch.is_grad_enabled() else figures
    return torch.cat([compute(*part) for part in zip(hidden.split(size), tokens.split(size), strict=True)], dim=-1)
