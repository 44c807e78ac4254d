"""Preferences for a reward model: their margins, their order in training, and how well the model's own margins are calibrated."""

import hashlib
import itertools
import math
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from plumbline.rows import PREFERENCES, Row


def with_margins(rows: Iterable[Row], scale: float) -> Iterator[Row]:
    """Rows for TRL's reward trainer: prompt, chosen, rejected and, unless `scale` is 0, `margin`, the label's margin times `scale`.

    With a margin m the loss is −log σ(r(chosen) − r(rejected) − m), which pushes clear preferences further apart (Llama 2, arXiv:2307.09288,
    Eq. 2).

    Raises:
        ValueError: `scale` is not 0, and a row does not say how much better `chosen` is.
    """
    for row in rows:
        margin = {"margin": scale * required_margin(row)} if scale else {}
        yield {**{column: row[column] for column in PREFERENCES}, **margin}


def required_margin(row: Row) -> float:
    """The label's margin.

    Raises:
        ValueError: the row has neither a margin nor scores.
    """
    margin = label_margin(row)
    if margin is None:
        raise ValueError(
            f"margin_scale: expected preferences with a `margin`, or with score_chosen and score_rejected, found {sorted(row)[:8]}: "
            "set margin_scale to 0, or let a judge that rates make the labels"
        )
    return margin


def label_margin(row: Row) -> float | None:
    """How much better `chosen` is according to the judge: `margin`, or the difference of the scores; None if the row has neither."""
    if row.get("margin") is not None:
        return float(row["margin"])
    if row.get("score_chosen") is not None and row.get("score_rejected") is not None:
        return float(row["score_chosen"]) - float(row["score_rejected"])
    return None


class Order(NamedTuple):
    """Positions of rows, batch after batch, and the number of prompts whose pairs lie in more than one batch."""

    rows: list[int]
    split_count: int


def order_by_prompt(prompts: Iterable[str], batch_size: int, seed: int) -> Order:
    """Orders pairs so that, if possible, all pairs of a prompt lie in one batch of `batch_size` (InstructGPT, arXiv:2203.02155, §3.5).

    Prompts are shuffled. If the next prompt's pairs do not fit into what is left of a batch, the largest prompt that fits goes first. If none
    fits, the next prompt is split. No prompt is split if batch_size is a multiple of every prompt's number of pairs.
    """
    groups: dict[bytes, list[int]] = {}
    for position, prompt in enumerate(prompts):
        groups.setdefault(hashlib.sha256(prompt.encode()).digest(), []).append(position)  # no text stays in memory
    waiting = [*groups.values()]
    random.Random(seed).shuffle(waiting)
    by_size: dict[int, deque[int]] = {}
    for number, group in enumerate(waiting):
        by_size.setdefault(len(group), deque()).append(number)
    placed = [False] * len(waiting)
    rows: list[int] = []
    split_count = following = 0
    for _ in waiting:
        while placed[following]:
            following += 1
        room = batch_size - len(rows) % batch_size
        fitting = [size for size, numbers in by_size.items() if numbers and size <= room]
        size = len(waiting[following])
        if size <= room or not fitting:
            number = following
        else:
            size = max(fitting)
            number = by_size[size][0]
        by_size[size].remove(number)
        placed[number] = True
        split_count += size > room
        rows += waiting[number]
    return Order(rows, split_count)


class Bin(NamedTuple):
    """Preferences with similar margins: how sure the model is of them, and how often it is right."""

    by: str  # reward: bins by |r(chosen) − r(rejected)|; label: by the judge's margin
    bin: int
    margin: float
    predicted: float | None  # mean σ(|margin|), the model's probability for the side that it prefers; None for bins by label
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    n: int


def calibration(margins: Sequence[float], label_margins: Sequence[float | None], bins: int = 10) -> list[Bin]:
    """Accuracy by margin, in bins of equal counts: first by the model's margin, then by the label's for the rows that have one.

    margins: r(chosen) − r(rejected) on held-out preferences; a tie counts half.
    """
    by_reward = [(abs(margin), margin) for margin in margins]
    by_label = [(label, margin) for label, margin in zip(label_margins, margins, strict=True) if label is not None]
    return [*_bins("reward", by_reward, bins), *_bins("label", by_label, bins)]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between predicted probability and accuracy over the bins by reward, weighted by count (ECE, Guo et al. 2017)."""
    predicting = [one for one in bins if one.predicted is not None]
    return sum(one.n * abs(one.accuracy - (one.predicted or 0.0)) for one in predicting) / sum(one.n for one in predicting)


def _bins(by: str, pairs: list[tuple[float, float]], count: int) -> list[Bin]:
    """Bins of equal counts; pairs: (the margin to bin by, r(chosen) − r(rejected))."""
    ordered = sorted(pairs)
    bounds = [round(number * len(ordered) / count) for number in range(count + 1)]
    bins = []
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        part = ordered[start:end]
        if not part:
            continue
        accuracy = sum((margin > 0) + 0.5 * (margin == 0) for _, margin in part) / len(part)
        predicted = sum(1 / (1 + math.exp(-key)) for key, _ in part) / len(part) if by == "reward" else None
        low, high = wilson_interval(accuracy, len(part))
        bins.append(Bin(by, number, sum(key for key, _ in part) / len(part), predicted, accuracy, low, high, len(part)))
    return bins


def wilson_interval(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a share of `n` cases; 95 % by default."""
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return centre - half, centre + half


def sign_accuracy(costs: Sequence[float], signs: Sequence[float]) -> float:
    """The fraction of costs on the side of zero that their sign names."""
    return sum(cost * sign > 0 for cost, sign in zip(costs, signs, strict=True)) / len(costs)
