"""Batches of rows of similar length, so that little of a batch is padding."""

import math
from collections.abc import Sequence


def batches_by_length(lengths: Sequence[int], *, rows: float = math.inf, tokens: float = math.inf) -> list[list[int]]:
    """Cuts row indices into batches, the shortest rows first; rows of equal length keep their order.

    A batch is filled until one more row would exceed a limit, and holds at least one row.

    Args:
        lengths: the length of each row in tokens.
        rows: the most rows in a batch.
        tokens: the most tokens in a batch, padding included.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        count = len(batches[-1]) + 1 if batches else 1
        if not batches or count > rows or count * lengths[row] > tokens:
            batches.append([])
        batches[-1].append(row)
    return batches
