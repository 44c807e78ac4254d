"""How likely a model finds completions, and how far two policies are apart by completions of one of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from plumbline.evaluation.statistics import Floats
from plumbline.models.batching import batches_by_length

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

BATCH_TOKENS = 8_192


class Divergence(NamedTuple):
    """Two unbiased estimates of KL(π ‖ π_reference) by one completion sampled from π at temperature 1, in nats, summed over its tokens.

    At each token r = log π − log π_reference. By the chain rule the sum of the tokens' expectations is the completion's KL.
    """

    kl_k1: float
    """Σ r. A single one may be negative."""
    kl_k3: float
    """Σ (exp(−r) − 1 + r) (Schulman 2020, http://joschu.net/blog/kl-approx.html). Never negative, with less variance if π is near π_reference."""


def divergence(logps: Floats, reference_logps: Floats) -> Divergence:
    """The estimates of one completion. logps, reference_logps: of each token, both (tokens,)."""
    log_ratio = logps - reference_logps
    return Divergence(float(log_ratio.sum()), float((np.expm1(-log_ratio) + log_ratio).sum()))


def completion_logps(model: PreTrainedModel, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> list[float]:
    """Log-probability of each completion after its prompt, summed over the completion's tokens."""
    return [float(logps.sum()) for logps in token_logps(model, prompts, completions)]


def token_logps(model: PreTrainedModel, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> list[Floats]:
    """Log-probabilities of the tokens of each completion after its prompt: (tokens,) each.

    If the logits of a batch are too many (plumbline/models/logps.py), the output layer is applied to a part of the completions' tokens at a
    time. If there is more to it than one linear layer, batches are smaller instead, down to one row.
    """
    import torch

    from plumbline.models.logps import CHUNK_LOGITS, in_chunks, linear_output, per_token_logps

    vocabulary = model.config.get_text_config().vocab_size
    output = linear_output(model) if BATCH_TOKENS * vocabulary > CHUNK_LOGITS else None
    limit = BATCH_TOKENS if output is not None else min(BATCH_TOKENS, CHUNK_LOGITS // vocabulary)
    sequences = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    logps_of: list[Floats] = [np.zeros(0)] * len(sequences)
    with torch.inference_mode():
        for rows in batches_by_length([len(sequence) for sequence in sequences], tokens=limit):
            width, start = len(sequences[rows[-1]]), min(len(prompts[row]) for row in rows)
            # Right padding under causal attention: what follows a token cannot reach it, so 0 will do.
            padded = [sequences[row] + [0] * (width - len(sequences[row])) for row in rows]
            ids = torch.tensor(padded, device=model.device)
            first, end = (torch.tensor([[len(of[row])] for row in rows], device=model.device) for of in (prompts, sequences))
            position = torch.arange(start, width, device=model.device)
            is_completion = (position >= first) & (position < end)  # (batch, width - start)
            tokens = ids[:, start:][is_completion]
            if output is None:
                logps = per_token_logps(_logits(model, ids, width - start + 1)[:, :-1][is_completion], tokens)
            else:
                hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, start - 1 : -1][is_completion]
                logps = in_chunks(lambda states, targets: per_token_logps(output(states), targets), hidden, tokens, vocabulary)
            of_batch = logps.double().cpu().numpy()
            bounds = np.cumsum([0, *(len(completions[row]) for row in rows)])
            for row, (begin, end_of_row) in zip(rows, pairwise(bounds), strict=True):
                logps_of[row] = of_batch[begin:end_of_row]
    return logps_of


def _logits(model: PreTrainedModel, ids: Tensor, last: int) -> Tensor:
    """Logits at the last positions of each row (batch, last, vocabulary)."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits: Tensor = model(input_ids=ids, logits_to_keep=last).logits
    else:
        logits = model(input_ids=ids).logits[:, -last:]
    return logits
