"""Sample completions of many prompts from a causal language model, quickly and reproducibly.

By default tokens are drawn from the *whole* distribution softmax(logits / temperature). So the log-probabilities reported here are
those of the distribution that was sampled from, which is what a policy-gradient ratio needs (see plumbline/methods/online/ppo). What people
deploy is narrower (`decoding_values.py`): its tokens are drawn here as well, by transformers' own processors, but without log-probabilities.

On a small model, `model.generate` spends most of its time on rows that have finished but stay in the batch, on padding, on noise, and on
copying the key-value cache at every token. Three things make this module several times faster:
- finished rows leave the batch (`COMPACT_FRACTION`);
- prompts are sorted by length and read in small parts, equal ones once, and the cache is written in place (`cache.py`);
- one uniform number per row and token is compared with the cumulative distribution, instead of noise for every entry of the
  vocabulary.

Reproducibility: what row i draws is decided by numbers of its own (uniforms.py). So it does not depend on the batch size, on the rows
that share its batch, or on the order of work. (Logits themselves differ in the last bit between batch shapes, so a draw within that
bit of a boundary may fall on the other side.) The same call with the same thread count gives the same ids.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from plumbline.models.cache import next_logits, read_prompts
from plumbline.models.chat import end_of_turn_id
from plumbline.models.decoding_values import NEUTRAL, Decoding
from plumbline.models.uniforms import uniforms_of

# Finished rows are dropped once they are this share of the batch. The share is low because dropping moves no more rows than have finished.
COMPACT_FRACTION = 1 / 16


class Sampled(NamedTuple):
    """One sampled completion."""

    ids: list[int]
    """The completion's tokens, including the end-of-turn token if it was reached."""
    finished: bool
    """Whether the end-of-turn token was reached within `max_new_tokens`."""
    per_token_logps: list[float] | None
    """Log-probability of each of `ids` under the distribution sampled from (temperature applied); None unless `with_logps`."""
    retokenised: bool = False
    """Whether `ids` are those of the text tokenised again, because a server did not say which it had drawn."""


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    decoding: Decoding = NEUTRAL,
    seed: int = 0,
    uniforms: torch.Tensor | None = None,
    batch_size: int = 512,
    with_logps: bool = False,
    progress: Callable[[int], object] | None = None,
) -> list[Sampled]:
    """Sample one completion of each prompt, in the order of the prompts.

    The model runs in evaluation mode and is then set back to its former mode.

    Args:
        prompts_ids: rendered prompts, including the generation prompt. Repeat a prompt to sample it several times.
        with_logps: whether to report `per_token_logps`, of greedy decoding those at temperature 1.
        uniforms: (prompts, max_new_tokens), numbers in [0, 1), so that several processes can share one table, or a part of the
            rows be drawn alone; None: those of (seed, row), where rows are counted from 0 (uniforms.py).
        progress: called with the number of rows that have just finished, for example `tqdm(...).update`.

    Raises:
        ValueError: an argument is out of range, a prompt has no tokens, or log-probabilities are asked for that would not be the policy's.
    """
    _check_arguments(prompts_ids, decoding, max_new_tokens=max_new_tokens, batch_size=batch_size, with_logps=with_logps)
    end_id = end_of_turn_id(tokenizer)
    if uniforms is None:
        uniforms = uniforms_of(seed, range(len(prompts_ids)), max_new_tokens)

    # Not `batches_by_length`: equal prompts must be neighbours, so that a batch reads them once.
    order = sorted(range(len(prompts_ids)), key=lambda row: (len(prompts_ids[row]), tuple(prompts_ids[row])))
    samples: list[Sampled | None] = [None] * len(prompts_ids)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            # The longest prompts first: if memory is too small, that shows at once.
            for start in reversed(range(0, len(order), batch_size)):
                rows = order[start : start + batch_size]
                batch = _sample_batch(
                    model,
                    [list(prompts_ids[row]) for row in rows],
                    uniforms[rows].to(model.device),
                    end_id=end_id,
                    decoding=decoding,
                    with_logps=with_logps,
                    progress=progress,
                )
                for row, completion in zip(rows, batch, strict=True):
                    samples[row] = completion
    finally:
        model.train(was_training)
    return [completion for completion in samples if completion is not None]


def draw(
    logits: torch.Tensor,
    uniforms: torch.Tensor | None,
    temperature: float,
    *,
    warpers: Sequence[LogitsProcessor] = (),
    with_logps: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Draw one token per row from softmax(logits / temperature), narrowed by `warpers`, by inverting its cumulative distribution.

    logits (batch, vocabulary); uniforms (batch,) in [0, 1). Temperature 0 takes the likeliest token and reads no uniform number.
    Returns tokens (batch,) and, if `with_logps`, their log-probabilities (batch,).
    """
    logits = logits.float()
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        if temperature != 1:
            logits = logits / temperature
        for warper in warpers:
            logits = warper(None, logits)
        assert uniforms is not None
        cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
        # Rounding leaves the total a little off 1. Thresholds are scaled by it, so that no draw falls past the last token.
        # `right` takes the first entry *above* the threshold, so that a token of probability 0 is never drawn.
        thresholds = uniforms.unsqueeze(-1) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1)
    if not with_logps:
        return tokens, None
    return tokens, logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def truncations(decoding: Decoding) -> list[LogitsProcessor]:
    """What leaves tokens out, in transformers' order; nothing of the whole distribution."""
    warpers: list[LogitsProcessor] = []
    if decoding.top_k:
        warpers.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        warpers.append(TopPLogitsWarper(decoding.top_p))
    if decoding.min_p:
        warpers.append(MinPLogitsWarper(decoding.min_p))
    return warpers


def penalised(logits: torch.Tensor, ids: torch.Tensor, padding: torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits (batch, vocabulary) after the repetition penalty for the tokens that are already there.

    ids (batch, tokens): the prompt, padded on the left, and the completion so far; padding (batch,): the number of padding tokens, which
    carry no penalty.
    """
    penalise: Any = RepetitionPenaltyLogitsProcessor(float(penalty), prompt_ignore_length=padding)
    return penalise(ids, logits.float())


def fill_holes(unfinished: torch.Tensor) -> torch.Tensor:
    """Return the indices of the unfinished rows, arranged so that as few rows as possible move.

    unfinished (batch,) bool -> indices (remaining,): rows from the end move to the positions of finished rows.
    """
    remaining = int(unfinished.sum())
    indices = torch.arange(remaining, device=unfinished.device)
    indices[~unfinished[:remaining]] = unfinished[remaining:].nonzero().squeeze(-1) + remaining
    return indices


def _check_arguments(
    prompts_ids: Sequence[Sequence[int]], decoding: Decoding, *, max_new_tokens: int, batch_size: int, with_logps: bool
) -> None:
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"sampling: max_new_tokens, batch_size: expected at least 1, found {max_new_tokens} and {batch_size}")
    if problems := decoding.problems():
        raise ValueError(f"sampling: {problems[0]}")
    if with_logps and not decoding.is_whole_distribution:
        raise ValueError(
            f"sampling: with_logps: expected the whole distribution, found {decoding.words}, of which a token's log-probability is not the "
            "policy's. Leave out with_logps, or what narrows the distribution"
        )
    empty = [row for row, ids in enumerate(prompts_ids) if not len(ids)]
    if empty:
        raise ValueError(
            f"sampling: expected prompts with at least one token, found {len(empty)} of {len(prompts_ids)} without any (first: row "
            f"{empty[0]}). Render them with the chat template's generation prompt."
        )


def _sample_batch(
    model: PreTrainedModel,
    prompts: list[list[int]],
    uniforms: torch.Tensor,
    *,
    end_id: int,
    decoding: Decoding,
    with_logps: bool,
    progress: Callable[[int], object] | None,
) -> list[Sampled]:
    """Sample one batch together; row i of `uniforms` (batch, max_new_tokens) belongs to prompt i."""
    batch, max_new_tokens = uniforms.shape
    device = uniforms.device
    cache: Any
    logits, cache, prompts_mask = read_prompts(model, prompts)
    width = prompts_mask.shape[1]
    mask = pad(prompts_mask, (0, max_new_tokens), value=1)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    warpers = truncations(decoding)
    read = None
    if decoding.repetition_penalty != 1:
        read = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True, padding_side="left").to(device)

    tokens = torch.zeros(batch, max_new_tokens, dtype=torch.long, device=device)
    logps = torch.zeros(batch, max_new_tokens, device=device)
    counts = torch.full((batch,), max_new_tokens, device=device)
    finished = torch.zeros(batch, dtype=torch.bool, device=device)
    alive = torch.arange(batch, device=device)  # the row of the batch to which each remaining row of the cache belongs

    for step in range(max_new_tokens):
        if read is not None:
            so_far = torch.cat([read[alive], tokens[alive, :step]], dim=1)
            logits = penalised(logits, so_far, width - lengths[alive], decoding.repetition_penalty)
        drawn, drawn_logps = draw(logits, uniforms[alive, step], decoding.temperature, warpers=warpers, with_logps=with_logps)
        # A finished row keeps drawing until it is dropped; `counts` cuts off those tokens.
        tokens[alive, step] = drawn
        if drawn_logps is not None:
            logps[alive, step] = drawn_logps
        ending = (drawn == end_id) & ~finished[alive]
        counts[alive[ending]] = step + 1
        finished[alive[ending]] = True
        unfinished = ~finished[alive]
        remaining = int(unfinished.sum())
        if progress is not None:
            progress(int(ending.sum()))
        if remaining == 0 or step + 1 == max_new_tokens:
            break
        if remaining <= len(alive) * (1 - COMPACT_FRACTION):
            kept = fill_holes(unfinished)
            alive, drawn, mask = alive[kept], drawn[kept], mask[kept]
            cache.reorder_cache(kept)
        positions = (lengths[alive] + step).unsqueeze(-1)
        logits = next_logits(model, drawn.unsqueeze(-1), mask[:, : width + step + 1], positions, cache)

    if progress is not None:
        progress(int((~finished).sum()))
    return _collect(tokens, counts, finished, logps if with_logps else None)


def _collect(tokens: torch.Tensor, counts: torch.Tensor, finished: torch.Tensor, logps: torch.Tensor | None) -> list[Sampled]:
    """Cut every row at its end-of-turn token."""
    rows_logps = [None] * len(tokens) if logps is None else logps.tolist()
    return [
        Sampled(ids[:count], done, None if row_logps is None else row_logps[:count])
        for ids, count, done, row_logps in zip(tokens.tolist(), counts.tolist(), finished.tolist(), rows_logps, strict=True)
    ]
