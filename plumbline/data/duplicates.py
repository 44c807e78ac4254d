"""Exact and near duplicates: MinHash signatures (Broder, 1997) by the rensa library, candidate pairs by banding, in numpy arrays.

The nearness of two texts is the Jaccard similarity of their sets of five-character shingles (lower case, composed letters of usual width,
white space collapsed). It needs no notion of words, so it works for Korean and Chinese as well as for English. A signature has 128 values,
which estimate the similarity with a standard error of at most 0.045. Memory grows with the rows only: 512 bytes for each signature, and
16 for band key and sort order.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from rensa import RMinHash

from plumbline.data.scripts import codepoints
from plumbline.letters import folded

PERMUTATIONS = 128
SHINGLE_CHARACTERS = 5
_SEED = 20_031
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 1 << 16  # candidate pairs compared at once


def digest(text: str) -> int:
    """A 63-bit hash of a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures of texts, (texts, PERMUTATIONS) uint32."""
    if not texts:
        return np.zeros((0, PERMUTATIONS), dtype=np.uint32)
    plain = [" ".join(folded(text.lower()).split()) + " " for text in texts]
    lengths = np.fromiter(map(len, plain), dtype=np.int64, count=len(plain))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # A shingle at the end of a text reaches up to four characters into the next one: these count as zeros.
    points = codepoints("".join(plain) + "\0" * SHINGLE_CHARACTERS).astype(np.uint64)
    ends = np.repeat(offsets[1:], lengths)
    positions = np.arange(len(ends))
    shingles = np.zeros(len(ends), dtype=np.uint64)
    for offset in range(SHINGLE_CHARACTERS):
        window = points[offset : offset + len(ends)]
        shingles = shingles * _MULTIPLIER + np.where(positions + offset < ends, window, np.uint64(0))
    shingles ^= shingles >> np.uint64(29)
    shingles *= _MULTIPLIER
    shingles ^= shingles >> np.uint64(32)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, num_perm=PERMUTATIONS, seed=_SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32)


def first_of_equal(digests: np.ndarray) -> np.ndarray:
    """For each row the first row with the same digest, which may be itself, (rows,) int64."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    return first[inverse]


def first_of_near(signature: np.ndarray, similarity: float) -> np.ndarray:
    """For each row an earlier row that is at least that similar, or itself if there is none, (rows,) int64.

    Rows that agree in a whole band are candidates. Each is compared with the band's first row and with the one before it. A pair at
    the threshold of 0.8 is found with a probability of about 0.95, a pair at 0.9 in all but 1 of 10,000 cases.
    """
    rows = len(signature)
    first = np.arange(rows)
    bands, width = _bands(similarity)
    weights = np.random.default_rng(_SEED).integers(1, 2**63, size=width, dtype=np.uint64) | np.uint64(1)
    for band in range(bands if rows else 0):
        part = signature[:, band * width : (band + 1) * width].astype(np.uint64)
        keys = (part * weights).sum(axis=1, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        starts = np.concatenate([[True], keys[order][1:] != keys[order][:-1]])
        members = np.flatnonzero(~starts)
        group_first = np.maximum.accumulate(np.where(starts, np.arange(rows), 0))
        for earlier in (order[group_first[members]], order[members - 1]):
            _keep_similar(signature, first, order[members], earlier, similarity)
    return first


def _keep_similar(signature: np.ndarray, first: np.ndarray, later: np.ndarray, earlier: np.ndarray, similarity: float) -> None:
    """Lowers `first` of each later row to the earlier row of its pair, if the two are similar and it is not lower already."""
    undecided = first[later] > earlier
    later, earlier = later[undecided], earlier[undecided]
    for start in range(0, len(later), _BLOCK):
        rows, candidates = later[start : start + _BLOCK], earlier[start : start + _BLOCK]
        alike = (signature[rows] == signature[candidates]).mean(axis=1) >= similarity
        first[rows[alike]] = np.minimum(first[rows[alike]], candidates[alike])


def _bands(similarity: float) -> tuple[int, int]:
    """The count and width of the widest bands that still find most pairs: (1/bands)^(1/width) is at least 0.05 below `similarity`."""
    for width in (32, 16, 8, 4, 2):
        bands = PERMUTATIONS // width
        if (1 / bands) ** (1 / width) <= similarity - 0.05:
            return bands, width
    return PERMUTATIONS, 1
