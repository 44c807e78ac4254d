"""Evaluation prompts in training text, by word n-grams, as GPT-3 (arXiv:2005.14165, App. C) and Tülu 3 (arXiv:2411.15124) do.

A training row overlaps an evaluation prompt if it holds at least half of the prompt's 8-grams (Tülu 3's numbers, both in the
conf). A prompt shorter than that overlaps only rows whose own prompt is the same words.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
from rensa import RMinHash

# Letters and digits in a row are a word; Han and kana, written without spaces, are words one by one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Overlaps(NamedTuple):
    """An index of evaluation prompts: sorted n-gram hashes, the prompt of each, n-grams of each prompt, short prompts."""

    words: int
    fraction: float
    hashes: np.ndarray
    owner: np.ndarray
    totals: np.ndarray
    short: frozenset[int]


def index_prompts(prompts: Iterable[str], words: int, fraction: float) -> Overlaps:
    """An index in which training rows can be looked up."""
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
    """Hashes of a text's n-grams, and of all its words: 0 if there are none, or enough for n-grams."""

    windows: np.ndarray
    whole: int


def ngrams(texts: Sequence[str], words: int) -> list[Grams]:
    """Hashes of the word n-grams of each text: none where it has fewer words."""
    split = [_WORD.findall(normalize("NFC", text.lower())) for text in texts]
    lengths = [len(found) for found in split]
    flat = np.array(RMinHash.hash_token_sets([[word for found in split for word in found]])[0], dtype=np.uint64)
    windows = np.zeros(max(0, len(flat) - words + 1), dtype=np.uint64)
    for place in range(words):
        windows = windows * _MULTIPLIER + flat[place : place + len(windows)]
    windows ^= windows >> np.uint64(31)
    grams, start = [], 0
    for length in lengths:
        whole = np.uint64(0)
        if length < words:  # only short ones are looked up whole
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
    known = _known(index, np.concatenate([gram.windows for gram in grams]))
    for row in np.unique(np.searchsorted(ends, np.flatnonzero(known), side="right")):
        result[row] = _covers(index, np.unique(grams[row].windows))
    if index.short:
        brief = [
            row for row, prompt in enumerate(prompts) if len(list(islice(_WORD.finditer(prompt), index.words))) < index.words
        ]
        for row, own in zip(brief, ngrams([prompts[row] for row in brief], index.words), strict=True):
            result[row] |= own.whole in index.short
    return result


def _known(index: Overlaps, windows: np.ndarray) -> np.ndarray:
    if not len(index.hashes):
        return np.zeros(len(windows), dtype=bool)
    place = np.searchsorted(index.hashes, windows)
    return index.hashes[np.minimum(place, len(index.hashes) - 1)] == windows


def _covers(index: Overlaps, windows: np.ndarray) -> bool:
    """Whether a row's n-grams hold at least the fraction of those of some prompt."""
    windows = windows[_known(index, windows)]
    low = np.searchsorted(index.hashes, windows, side="left")
    high = np.searchsorted(index.hashes, windows, side="right")
    owners = np.concatenate([index.owner[start:end] for start, end in zip(low, high, strict=True)])
    numbers, counts = np.unique(owners, return_counts=True)
    return bool((counts >= index.fraction * index.totals[numbers]).any())
