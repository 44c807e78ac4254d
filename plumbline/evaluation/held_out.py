"""How likely a policy finds held-out rows: perplexity of demonstrations, and which side of a preference it has moved towards."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from pathlib import Path
from random import Random

import numpy as np

from plumbline.evaluation.divergence import completion_logps
from plumbline.evaluation.figures import flat
from plumbline.evaluation.statistics import Interval, bootstrap_fraction, bootstrap_ratio
from plumbline.pipeline.records import read_jsonl
from plumbline.rows import Row, prompt_key

Figures = dict[str, float | int | None]


def chosen_rows(file: Path, most: int, seed: int) -> list[Row]:
    """At most `most` rows of a file, in its order; the same seed chooses the same rows."""
    rows = read_jsonl(file)
    return [rows[number] for number in sorted(Random(seed).sample(range(len(rows)), min(most, len(rows))))]


def held_out_figures(
    policy: Path, against: Path, preferences: Sequence[Row], demonstrations: Sequence[Row], seed: int
) -> Figures:
    """The figures of held-out rows; those of a kind of which there are none are left out. It takes a forward pass of both policies."""
    from transformers import AutoTokenizer

    from plumbline.models.chat import encode_turns
    from plumbline.models.loading import load_policy

    if not preferences and not demonstrations:
        return {}
    pairs = [(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in preferences]
    turns = encode_turns(
        AutoTokenizer.from_pretrained(policy), pairs + [(row["prompt"], row["completion"]) for row in demonstrations]
    )
    prompts, completions = [turn.prompt for turn in turns], [turn.completion for turn in turns]
    ours = completion_logps(load_policy(policy), prompts, completions)
    theirs = ours if policy == against else completion_logps(load_policy(against), prompts, completions)
    n = len(preferences)
    log_ratios = [ours[i] - theirs[i] for i in range(2 * n)]
    figures: Figures = {}
    if preferences and policy != against:
        figures |= preference_figures(log_ratios[:n], log_ratios[n:], [prompt_key(row["prompt"]) for row in preferences], seed)
    if demonstrations:
        tokens = [len(completion) for completion in completions[2 * n :]]
        figures |= perplexity_figures(ours[2 * n :], theirs[2 * n :], tokens, seed)
    return figures


def preference_figures(chosen: Sequence[float], rejected: Sequence[float], prompts: Sequence[str], seed: int) -> Figures:
    """The fraction of pairs whose chosen side has the larger log π − log π_against: by the implicit reward of DPO, whatever its β.

    A tie counts one half: a policy that has not moved has learnt no preference.

    chosen, rejected: log π − log π_against of each side, summed over its tokens. Bounds are bootstrapped over prompts.
    """
    right = [(1.0 + (ours > theirs) - (ours < theirs)) / 2 for ours, theirs in zip(chosen, rejected, strict=True)]
    return {**flat("preference_accuracy", bootstrap_fraction(right, prompts, seed=seed)), "preference_accuracy_n": len(right)}


def perplexity_figures(logps: Sequence[float], against: Sequence[float], tokens: Sequence[int], seed: int) -> Figures:
    """Negative log-likelihood per token in nats, its exponential, and its paired difference to the opponent's; bounds over rows.

    logps, against: summed over the tokens of each row by the policy and by the opponent.
    """
    counts, ours, theirs = (np.array(values, dtype=np.float64) for values in (tokens, logps, against))
    nll = bootstrap_ratio(-ours, counts, seed=seed)
    change = bootstrap_ratio(theirs - ours, counts, seed=seed)
    perplexity = Interval(exp(nll.value), exp(nll.low), exp(nll.high), nll.n) if nll else None
    return {
        **flat("perplexity", perplexity),
        **flat("nll_per_token", nll),
        **flat("nll_change", change),
        "perplexity_n": len(tokens),
    }
