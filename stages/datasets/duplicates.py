"""Exact and near duplicates: MinHash signatures by the rensa library, candidates by banding, in arrays of numpy.

Two texts are as near as the Jaccard similarity of their sets of five-character shingles (lower case, NFC, white space collapsed),
which needs no notion of words and so serves Korean and Chinese as well as English. A signature has 128 values: the standard
error of the estimate is at most 0.045. The index grows with rows only: 512 bytes of signature for each, and 16 of band key and
sort order at a time.
"""

import hashlib
from collections.abc import Sequence
from unicodedata import normalize

import numpy as np
from rensa import RMinHash

from stages.datasets.scripts import codepoints

PERMUTATIONS = 128
SHINGLE_CHARACTERS = 5
_SEED = 20_031
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 1 << 16  # candidate pairs compared at once


def digest(text: str) -> int:
    """A 63-bit hash of a text, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures of texts, (texts, PERMUTATIONS) uint32."""
    if not texts:
        return np.zeros((0, PERMUTATIONS), dtype=np.uint32)
    plain = [" ".join(normalize("NFC", text.lower()).split()) + " " for text in texts]
    lengths = np.fromiter(map(len, plain), dtype=np.int64, count=len(plain))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # Windows run over into the next text by up to four characters: the padding keeps them apart.
    points = codepoints("".join(plain) + "\0" * SHINGLE_CHARACTERS).astype(np.uint64)
    ends = np.repeat(offsets[1:], lengths)
    position = np.arange(len(ends))
    shingles = np.zeros(len(ends), dtype=np.uint64)
    for place in range(SHINGLE_CHARACTERS):
        window = points[place : place + len(ends)]
        shingles = shingles * _MULTIPLIER + np.where(position + place < ends, window, np.uint64(0))
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
    """For each row an earlier one at least that similar, or itself if none is found, (rows,) int64.

    Rows that agree in a whole band are candidates; each is compared with the band's first row and with the one before it. A pair
    at the threshold of 0.8 is found with a probability of about 0.95, one at 0.9 always but for 1 in 10,000.
    """
    rows = len(signature)
    found = np.arange(rows)
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
            _keep_similar(signature, found, order[members], earlier, similarity)
    return found


def _keep_similar(signature: np.ndarray, found: np.ndarray, later: np.ndarray, earlier: np.ndarray, similarity: float) -> None:
    open_pairs = found[later] > earlier
    later, earlier = later[open_pairs], earlier[open_pairs]
    for start in range(0, len(later), _BLOCK):
        rows, candidates = later[start : start + _BLOCK], earlier[start : start + _BLOCK]
        alike = (signature[rows] == signature[candidates]).mean(axis=1) >= similarity
        found[rows[alike]] = np.minimum(found[rows[alike]], candidates[alike])


def _bands(similarity: float) -> tuple[int, int]:
    """The widest bands that still find most pairs at the similarity: (1/bands)^(1/width) at least 0.05 below it."""
    for width in (32, 16, 8, 4, 2):
        bands = PERMUTATIONS // width
        if (1 / bands) ** (1 / width) <= similarity - 0.05:
            return bands, width
    return PERMUTATIONS, 1
