"""Which words of an answer differ from another policy's answer to the same prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

from markupsafe import Markup, escape

LEAST_SHARED = 0.3
"""Of less alike answers no words are marked, because nearly all would be."""

# A word with the white space behind it. Thai, Japanese and Chinese set no spaces between words, so that each character counts as one.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]\s*|[^\s{_UNSPACED}]+\s*|^\s+")


class Change(NamedTuple):
    """Adjacent words of one kind, with the white space behind them."""

    kind: Literal["kept", "added", "removed"]
    text: str


def changes(before: str, after: str) -> list[Change] | None:
    """What was kept, added and removed from one answer to the other, in the order of reading; None if they share too little to tell.

    The words kept and added, put together, are `after`.
    """
    old, new = _WORD.findall(before), _WORD.findall(after)
    bare_old, bare_new = ([word.strip() for word in words] for words in (old, new))
    matcher = SequenceMatcher(None, bare_old, bare_new)
    if old and new and matcher.ratio() < LEAST_SHARED:
        return None
    return [*_changes(old, new, matcher)]


def _changes(old: Sequence[str], new: Sequence[str], matcher: SequenceMatcher[str]) -> Iterator[Change]:
    for kind, start, end, new_start, new_end in matcher.get_opcodes():
        if kind == "equal":
            yield Change("kept", "".join(new[new_start:new_end]))
            continue
        if end > start:
            yield Change("removed", "".join(old[start:end]))
        if new_end > new_start:
            yield Change("added", "".join(new[new_start:new_end]))


def overlap(texts: Sequence[str]) -> float:
    """How many words all of these texts share, of those of the longest: from 0 to 1, without regard to order; 1 for empty texts."""
    words = [[word.strip() for word in _WORD.findall(text)] for text in texts]
    longest = max(map(len, words), default=0)
    shared = set.intersection(*({*of_text} for of_text in words)) if words else set()
    return min(sum(word in shared for word in of_text) for of_text in words) / longest if longest else 1.0


TAGS = {"kept": "", "added": "ins", "removed": "del"}


class Segment(NamedTuple):
    """Words of a changed answer with the tag around them, empty for none, and the white space behind them, which stays outside of it."""

    tag: str
    words: str
    space: str


def segments(parts: Sequence[Change]) -> Iterator[Segment]:
    """The changes as they are shown. Removed words are set apart by a space where the answers have none."""
    before = ""
    for kind, text in parts:
        if kind == "removed" and before and not before[-1].isspace():
            yield Segment("", "", " ")
        words = text.rstrip()
        yield Segment(TAGS[kind], words, text[len(words) :] or (" " if kind == "removed" else ""))
        before = text if kind != "removed" else " "


def marked(parts: Sequence[Change]) -> Markup:
    """The changes as HTML: added words in <ins>, removed ones in <del>."""
    shown = (
        Markup(f"<{tag}>{escape(words)}</{tag}>{space}") if tag and words else escape(words + space)
        for tag, words, space in segments(parts)
    )
    return Markup().join(shown)
