"""Evaluation prompts in training text, by word n-grams, as GPT-3 (arXiv:2005.14165, App. C) and Tülu 3 (arXiv:2411.15124) do.

A training row overlaps an evaluation prompt if it contains at least half of the prompt's 8-grams (Tülu 3's numbers, both in the
conf). A prompt too short for n-grams overlaps only rows whose own prompt consists of the same words. Symbols that carry the meaning count as
words (plumbline/data/tokens.py).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from rensa import RMinHash

from plumbline.data.tokens import tokens

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Overlaps(NamedTuple):
    """An index of evaluation prompts by their n-grams, in which training rows are looked up."""

    words: int
    fraction: float
    hashes: np.ndarray
    """Sorted n-gram hashes of all prompts, (n-grams,) uint64."""
    owner: np.ndarray
    """The prompt of each hash, (n-grams,) int64."""
    totals: np.ndarray
    """Distinct n-grams of each prompt, (prompts,) int64."""
    short: frozenset[int]
    """Hashes of prompts that are too short for n-grams."""


def index_prompts(prompts: Iterable[str], words: int, fraction: float) -> Overlaps:
    """The index of these prompts, with n-grams of `words` words and an overlap from `fraction` of a prompt's n-grams."""
    hashes, owners, totals, short = [], [], [], []
    for number, grams in enumerate(ngrams(list(prompts), words)):
        if len(grams.windows):
            unique = np.unique(grams.windows)
            hashes.append(unique)
            owners.append(np.full(len(unique), number))
            totals.append(len(unique))
        else:
            totals.append(1)
            if grams.whole:
                short.append(grams.whole)
    flat = np.concatenate(hashes) if hashes else np.zeros(0, dtype=np.uint64)
    owner = np.concatenate(owners) if owners else np.zeros(0, dtype=np.int64)
    order = np.argsort(flat, kind="stable")
    return Overlaps(words, fraction, flat[order], owner[order], np.array(totals, dtype=np.int64), frozenset(short))


class Grams(NamedTuple):
    """Hashes of a text's n-grams; for a text too short for them, the hash of all its words (0 if there are none)."""

    windows: np.ndarray
    whole: int


def ngrams(texts: Sequence[str], words: int) -> list[Grams]:
    """The hashed n-grams of each text, `words` words long."""
    split = [tokens(text) for text in texts]
    lengths = [len(found) for found in split]
    flat = np.array(RMinHash.hash_token_sets([[word for found in split for word in found]])[0], dtype=np.uint64)
    windows = np.zeros(max(0, len(flat) - words + 1), dtype=np.uint64)
    for offset in range(words):
        windows = windows * _MULTIPLIER + flat[offset : offset + len(windows)]
    windows ^= windows >> np.uint64(31)
    grams, start = [], 0
    for length in lengths:
        whole = np.uint64(0)
        if length < words:  # only short texts are looked up whole
            for value in flat[start : start + length].tolist():
                whole = np.uint64((int(whole) * int(_MULTIPLIER) + value) & 0xFFFFFFFFFFFFFFFF)
        grams.append(Grams(windows[start : start + max(0, length - words + 1)], int(whole)))
        start += length
    return grams


def overlapping(index: Overlaps, texts: Sequence[str], prompts: Sequence[str]) -> np.ndarray:
    """Which rows overlap an evaluation prompt, (rows,) bool; `prompts` are the rows' own ("" for plain text)."""
    result = np.zeros(len(texts), dtype=bool)
    if not len(index.totals) or not texts:
        return result
    grams = ngrams(texts, index.words)
    ends = np.cumsum([len(gram.windows) for gram in grams])
    hits = _in_index(index, np.concatenate([gram.windows for gram in grams]))
    for row in np.unique(np.searchsorted(ends, np.flatnonzero(hits), side="right")):
        result[row] = _covers_a_prompt(index, np.unique(grams[row].windows))
    if index.short:
        short = [row for row, prompt in enumerate(prompts) if _is_short(prompt, index.words)]
        for row, prompt_grams in zip(short, ngrams([prompts[row] for row in short], index.words), strict=True):
            result[row] |= prompt_grams.whole in index.short
    return result


def _is_short(prompt: str, words: int) -> bool:
    pieces = len(prompt.split(None, 3 * words))  # so many cannot all be punctuation, and need not be looked at
    return pieces <= 3 * words and len(tokens(prompt)) < words


def _in_index(index: Overlaps, windows: np.ndarray) -> np.ndarray:
    """Which n-grams occur in some prompt, (n-grams,) bool."""
    if not len(index.hashes):
        return np.zeros(len(windows), dtype=bool)
    positions = np.minimum(np.searchsorted(index.hashes, windows), len(index.hashes) - 1)
    hits: np.ndarray = index.hashes[positions] == windows
    return hits


def _covers_a_prompt(index: Overlaps, windows: np.ndarray) -> bool:
    """Whether a row's distinct n-grams contain the required fraction of those of some prompt."""
    windows = windows[_in_index(index, windows)]
    low = np.searchsorted(index.hashes, windows, side="left")
    high = np.searchsorted(index.hashes, windows, side="right")
    owners = np.concatenate([index.owner[start:end] for start, end in zip(low, high, strict=True)])
    numbers, counts = np.unique(owners, return_counts=True)
    return bool((counts >= index.fraction * index.totals[numbers]).any())
