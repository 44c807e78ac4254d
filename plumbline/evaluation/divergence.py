"""How likely a model finds completions, which may be another model's: half of log π − log π_reference."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from plumbline.models.batching import batches_by_length

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

BATCH_TOKENS = 8_192
BATCH_LOGITS = 2**27  # half a GiB in float32: what bounds a batch when the vocabulary is large


def completion_logps(model: PreTrainedModel, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> list[float]:
    """Log-probability of each completion after its prompt, summed over the completion's tokens."""
    import torch

    from plumbline.models.logps import per_token_logps

    limit = min(BATCH_TOKENS, BATCH_LOGITS // model.config.get_text_config().vocab_size)
    sequences = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    sums = torch.zeros(len(sequences), dtype=torch.float64)
    with torch.inference_mode():
        for rows in batches_by_length([len(sequence) for sequence in sequences], tokens=limit):
            width, start = len(sequences[rows[-1]]), min(len(prompts[row]) for row in rows)
            # Right padding under causal attention: what follows a token cannot reach it, so 0 will do.
            ids = torch.tensor([sequences[row] + [0] * (width - len(sequences[row])) for row in rows])
            first, end = (torch.tensor([[len(of[row])] for row in rows]) for of in (prompts, sequences))
            position = torch.arange(start, width)
            is_completion = (position >= first) & (position < end)  # (batch, width - start)
            predicting = _logits(model, ids.to(model.device), width - start + 1)[:, :-1][is_completion]
            logps = per_token_logps(predicting, ids[:, start:][is_completion])
            sums.index_add_(0, torch.tensor(rows).repeat_interleave(is_completion.sum(-1)), logps.double())
    return sums.tolist()


def _logits(model: PreTrainedModel, ids: Tensor, last: int) -> Tensor:
    """Logits at the last positions of each row (batch, last, vocabulary), on the CPU."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits: Tensor = model(input_ids=ids, logits_to_keep=last).logits
    else:
        logits = model(input_ids=ids).logits[:, -last:]
    return logits.cpu()
