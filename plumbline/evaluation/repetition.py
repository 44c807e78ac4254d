"""How much answers repeat themselves and each other, by words set apart by white space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from plumbline.evaluation.statistics import Floats, Interval, t_interval

SPAN = 4
"""Repetition within an answer is counted in spans of four words, as in unlikelihood training's seq-rep-4."""


def repeated_fraction(text: str) -> float | None:
    """The fraction of an answer's spans of four words that it has said before (seq-rep-4, arXiv:1908.04319, section 6.1); None below four words."""
    spans = [*_spans(text.split(), SPAN)]
    return 1 - len({*spans}) / len(spans) if spans else None


def distinct(texts: Sequence[str], prompts: Sequence[str], n: int) -> Interval | None:
    """Different spans of n words over all words (distinct-n, arXiv:1510.03055); None without words.

    Repetition lowers it, within an answer and between answers. So do more and longer answers: compare it between policies that answered the
    same prompts equally often. A bootstrap would repeat answers, so the interval is a jackknife's, which leaves out one prompt with all its
    answers at a time (Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 11).
    """
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    words, only = np.zeros(len(rows)), np.zeros(len(rows))  # of each prompt: its words, and the spans that no other prompt has
    said_by: dict[tuple[str, ...], int | None] = {}  # None: by several prompts
    for text, prompt in zip(texts, prompts, strict=True):
        answer, row = text.split(), rows[prompt]
        words[row] += len(answer)
        for span in _spans(answer, n):
            said_by[span] = row if said_by.get(span, row) == row else None
    total = float(words.sum())
    if not total:
        return None
    for said in said_by.values():
        if said is not None:
            only[said] += 1
    return t_interval(len(said_by) / total, _jackknife(len(said_by) - only, total - words), len(rows))


def _jackknife(spans: Floats, words: Floats) -> float:
    """The standard error by what is left without each prompt: spans and words, both (prompts,)."""
    without = spans[words > 0] / words[words > 0]
    n = len(without)
    return float(((n - 1) / n * ((without - without.mean()) ** 2).sum()) ** 0.5) if n else 0.0


def _spans(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every span of n adjacent words."""
    return zip(*(words[start:] for start in range(n)), strict=False)
