"""How likely a policy finds held-out rows: demonstrations, plain texts, and which side of a preference it has moved towards."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from pathlib import Path
from random import Random

import numpy as np

from plumbline.evaluation.divergence import completion_logps
from plumbline.evaluation.statistics import Interval, bootstrap_ratio, flat, fraction_interval
from plumbline.pipeline.records import read_jsonl
from plumbline.rows import Row, prompt_key

Figures = dict[str, float | int | None]


def chosen_rows(file: Path, most: int, seed: int, column: str) -> list[Row]:
    """At most `most` rows of a file that have a column, in its order; the same seed chooses the same rows."""
    rows = [row for row in read_jsonl(file) if column in row]
    return [rows[number] for number in sorted(Random(seed).sample(range(len(rows)), min(most, len(rows))))]


def held_out_figures(
    policy: Path, against: Path, preferences: Sequence[Row], demonstrations: Sequence[Row], seed: int, texts: Sequence[str] = ()
) -> Figures:
    """The figures of held-out rows; a kind without rows is left out. It takes a forward pass of both policies."""
    from transformers import AutoConfig, AutoTokenizer

    from plumbline.models.chat import encode_turns
    from plumbline.models.loading import context_of, load_policy

    if not preferences and not demonstrations and not texts:
        return {}
    pairs = [(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in preferences]
    tokenizer = AutoTokenizer.from_pretrained(policy)
    turns = encode_turns(tokenizer, pairs + [(row["prompt"], row["completion"]) for row in demonstrations])
    context_tokens = context_of(AutoConfig.from_pretrained(policy))
    documents = document_ids([tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts], context_tokens)
    prompts = [turn.prompt for turn in turns] + [ids[:1] for ids in documents]
    completions = [turn.completion for turn in turns] + [ids[1:] for ids in documents]
    ours = completion_logps(load_policy(policy), prompts, completions)
    theirs = ours if policy == against else completion_logps(load_policy(against), prompts, completions)
    n, rows = len(preferences), len(turns)
    tokens = [len(completion) for completion in completions]
    log_ratios = [ours[i] - theirs[i] for i in range(2 * n)]
    figures: Figures = {}
    if preferences and policy != against:
        figures |= preference_figures(log_ratios[:n], log_ratios[n:], [prompt_key(row["prompt"]) for row in preferences], seed)
    if demonstrations:
        figures |= perplexity_figures(ours[2 * n : rows], theirs[2 * n : rows], tokens[2 * n : rows], seed)
    if documents:
        figures |= text_figures(ours[rows:], theirs[rows:], tokens[rows:], seed)
    return figures


def document_ids(documents: Sequence[list[int]], context_tokens: int | None) -> list[list[int]]:
    """The tokens of each text as far as the policy can read; a text of one token predicts nothing and is left out."""
    return [ids[:context_tokens] for ids in documents if len(ids) > 1]


def preference_figures(chosen: Sequence[float], rejected: Sequence[float], prompts: Sequence[str], seed: int) -> Figures:
    """The fraction of pairs whose chosen side has the larger log π − log π_against: by the implicit reward of DPO, whatever its β.

    A tie counts one half: a policy that has not moved has learnt no preference.

    chosen, rejected: log π − log π_against of each side, summed over its tokens. Bounds are over prompts.
    """
    right = [(1.0 + (ours > theirs) - (ours < theirs)) / 2 for ours, theirs in zip(chosen, rejected, strict=True)]
    return {**flat("preference_accuracy", fraction_interval(right, prompts)), "preference_accuracy_n": len(right)}


def perplexity_figures(logps: Sequence[float], against: Sequence[float], tokens: Sequence[int], seed: int) -> Figures:
    """Negative log-likelihood per token in nats, its exponential, and its paired difference to the opponent's; bounds over rows.

    logps, against: summed over the tokens of each row by the policy and by the opponent.
    """
    nll, change = _nll(logps, against, tokens, seed)
    perplexity = Interval(exp(nll.value), exp(nll.low), exp(nll.high), nll.n) if nll else None
    return {
        **flat("perplexity", perplexity),
        **flat("nll_per_token", nll),
        **flat("nll_change", change),
        "perplexity_n": len(tokens),
    }


def text_figures(logps: Sequence[float], against: Sequence[float], tokens: Sequence[int], seed: int) -> Figures:
    """The same of plain texts, whose first token is given: what alignment costs in modelling text that is not a conversation."""
    nll, change = _nll(logps, against, tokens, seed)
    return {**flat("text_nll_per_token", nll), **flat("text_nll_change", change), "text_n": len(tokens)}


def _nll(
    logps: Sequence[float], against: Sequence[float], tokens: Sequence[int], seed: int
) -> tuple[Interval | None, Interval | None]:
    """Negative log-likelihood per token in nats, and its paired difference to the opponent's."""
    counts, ours, theirs = (np.array(values, dtype=np.float64) for values in (tokens, logps, against))
    return bootstrap_ratio(-ours, counts, seed=seed), bootstrap_ratio(theirs - ours, counts, seed=seed)
