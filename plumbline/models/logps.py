"""The log-probability of a token under next-token logits."""

from torch import Tensor
from torch.nn import functional


def per_token_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """log π(token) (n,) in float32 from next-token logits (n, vocabulary), which are already divided by the temperature."""
    return -functional.cross_entropy(logits.float(), tokens, reduction="none")
