"""Uniform numbers of a row, by (seed, row): the same wherever and whenever the row is drawn, without a table of all rows.

A row's numbers are the beginning of a stream of Philox 4×64 (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405) whose key is the seed
and the row. Philox is counter-based: streams of different keys are independent, and any of them starts at once. NumPy promises that the raw
stream of a bit generator never changes (NEP 19).
"""

from collections.abc import Sequence

import numpy as np
import torch

KEY = 2**64
BITS, UNIT = 11, 2.0**-53  # a float64 has 53 bits of fraction; the lower 11 of 64 are dropped


def uniforms_of(seed: int, rows: Sequence[int], count: int) -> torch.Tensor:
    """The first `count` numbers of each of these rows: (rows, count), float64 in [0, 1), so that every token of a large vocabulary can be drawn."""
    raw = np.empty((len(rows), count), dtype=np.uint64)
    for position, row in enumerate(rows):
        raw[position] = np.random.Philox(key=np.array([seed % KEY, row], dtype=np.uint64)).random_raw(count)
    return torch.from_numpy((raw >> np.uint64(BITS)) * UNIT)


def request_seed(seed: int, row: int) -> int:
    """The seed with which a server is asked to draw a row: the first 31 bits of the row's stream, which every server takes as a seed.

    Servers keep 32 bits of a seed, or 64, and only the lower ones where torch's generator runs on a CPU: the run's seed must be in them.
    """
    return int(np.random.Philox(key=np.array([seed % KEY, row], dtype=np.uint64)).random_raw() >> 33)
