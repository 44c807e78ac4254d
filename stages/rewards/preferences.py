"""Preferences as a reward model is trained on them: with margins, in an order, and how well its margins are calibrated."""

import itertools
import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stages.pipeline.records import PREFERENCES

Row = Mapping[str, Any]


def with_margins(rows: Sequence[Row], scale: float) -> list[dict[str, Any]]:
    """Rows of TRL's reward trainer: prompt, chosen, rejected and, unless `scale` is 0, `margin`: by how much the judge prefers, times it.

    With a margin m the loss is −log σ(r(chosen) − r(rejected) − m): clear preferences are to be far apart (Llama 2, arXiv:2307.09288, Eq. 2).

    Raises:
        ValueError: margins are wanted and a row says nothing of how much better the chosen one is.
    """
    if not scale:
        return [{column: row[column] for column in PREFERENCES} for row in rows]
    return [{**{column: row[column] for column in PREFERENCES}, "margin": scale * required_margin(row)} for row in rows]


def required_margin(row: Row) -> float:
    """How much better the chosen one is, by the judge: `margin`, or the difference of the two scores; ValueError where it is not told."""
    margin = label_margin(row)
    if margin is None:
        raise ValueError(
            f"margin_scale: expected preferences with a `margin`, or with score_chosen and score_rejected, found {sorted(row)[:8]}: "
            "set margin_scale to 0, or let a judge that rates make the labels"
        )
    return margin


def label_margin(row: Row) -> float | None:
    """How much better the chosen one is, by the judge; None where it is not told."""
    if row.get("margin") is not None:
        return float(row["margin"])
    if row.get("score_chosen") is not None and row.get("score_rejected") is not None:
        return float(row["score_chosen"]) - float(row["score_rejected"])
    return None


class Order(NamedTuple):
    """Positions of rows, batch after batch, and how many prompts' pairs do not lie in one batch."""

    rows: list[int]
    split_count: int


def order_by_prompt(prompts: Sequence[str], batch_size: int, seed: int) -> Order:
    """Orders pairs so that all pairs of a prompt lie in one batch of `batch_size`, wherever they can (InstructGPT, arXiv:2203.02155, §3.5).

    Prompts are shuffled; where the next one's pairs no longer fit into a batch, one that fits goes first, the largest. If none fits, the next
    is split: none is where batch_size is a multiple of every prompt's number of pairs.
    """
    groups: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(place)
    waiting = [*groups.values()]
    random.Random(seed).shuffle(waiting)
    by_size: dict[int, deque[int]] = {}
    for number, group in enumerate(waiting):
        by_size.setdefault(len(group), deque()).append(number)
    taken = [False] * len(waiting)
    rows: list[int] = []
    split_count = following = 0
    for _ in waiting:
        while taken[following]:
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
        taken[number] = True
        split_count += size > room
        rows += waiting[number]
    return Order(rows, split_count)


class Bin(NamedTuple):
    """Preferences of like margin: how sure the model is of them, and how often it is right."""

    by: str  # reward: bins by |r(chosen) − r(rejected)|; label: by the judge's margin
    bin: int
    margin: float
    predicted: float | None  # mean σ(|margin|): the probability that the model gives the side that it prefers; None by label
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    n: int


def calibration(margins: Sequence[float], label_margins: Sequence[float | None], bins: int = 10) -> list[Bin]:
    """Accuracy by margin, in bins of equal counts: by the model's own, and by the judge's where that is known.

    margins: r(chosen) − r(rejected) on held-out preferences; a tie counts half.
    """
    own = [(abs(margin), margin) for margin in margins]
    told = [(label, margin) for label, margin in zip(label_margins, margins, strict=True) if label is not None]
    return [*_bins("reward", own, bins), *_bins("label", told, bins)]


def calibration_error(found: Sequence[Bin]) -> float:
    """The mean distance of predicted probability and accuracy over the model's own bins, weighted by their counts (ECE, Guo et al. 2017)."""
    own = [one for one in found if one.predicted is not None]
    return sum(one.n * abs(one.accuracy - (one.predicted or 0.0)) for one in own) / sum(one.n for one in own)


def _bins(by: str, pairs: list[tuple[float, float]], bins: int) -> list[Bin]:
    ordered = sorted(pairs)
    bounds = [round(number * len(ordered) / bins) for number in range(bins + 1)]
    found = []
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        part = ordered[start:end]
        if not part:
            continue
        accuracy = sum((margin > 0) + 0.5 * (margin == 0) for _, margin in part) / len(part)
        predicted = sum(1 / (1 + math.exp(-key)) for key, _ in part) / len(part) if by == "reward" else None
        low, high = wilson_interval(accuracy, len(part))
        found.append(Bin(by, number, sum(key for key, _ in part) / len(part), predicted, accuracy, low, high, len(part)))
    return found


def wilson_interval(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a share of `n`; 95 % by default."""
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return centre - half, centre + half


def sign_accuracy(costs: Sequence[float], signs: Sequence[float]) -> float:
    """How often a cost lies on its side of zero."""
    return sum(cost * sign > 0 for cost, sign in zip(costs, signs, strict=True)) / len(costs)
