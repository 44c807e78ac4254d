"""One text for what is the same writing in Unicode: composed and decomposed letters, half and full width, typographic and plain dashes.

macOS writes Hangul and accented letters decomposed (한 as three jamo, é as e and a combining accent); input methods and old Korean systems
write half-width jamo and full-width Latin letters. A reader sees no difference, so no comparison should.
"""

import re
from unicodedata import decomposition, is_normalized, lookup, name, normalize

_MARKS = dict.fromkeys(map(ord, "‐‑‒–−﹣－"), "-") | dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f"), " ")
"""Hyphens, the en dash and the minus of typographers → `-`, for the em dash is a pause; the spaces that do not break a line → a space."""

_WIDTHS = {
    point: int(decomposition(chr(point)).split()[1], 16)
    for point in (0x3000, *range(0xFF01, 0xFFEF))
    if decomposition(chr(point)).startswith(("<wide>", "<narrow>"))
}
"""Full-width and half-width forms → the usual character."""

_OF_OTHER_WIDTH = re.compile("[\u3000！-￮]")
_HALF = re.compile("[ﾡ-ￜ]")
_HALF_SYLLABLE = re.compile("([ﾡ-ﾾ])([ￂ-ￜ])([ﾡ-ﾧﾩ-ﾱﾳ-ﾸﾺ-ﾾ](?![ￂ-ￜ]))?")


def composed(text: str) -> str:
    """Decomposed letters and half-width jamo as whole letters: the same text as it is usually written (NFC)."""
    if text.isascii():
        return text
    if _HALF.search(text):
        text = _HALF.sub(lambda match: chr(_WIDTHS.get(ord(match[0]), ord(match[0]))), _HALF_SYLLABLE.sub(_joined, text))
    return text if is_normalized("NFC", text) else normalize("NFC", text)


def folded(text: str) -> str:
    """A text to compare with others: composed, and in usual width."""
    text = composed(text)
    return normalize("NFC", text.translate(_WIDTHS)) if _OF_OTHER_WIDTH.search(text) else text


def usual_marks(text: str) -> str:
    """A text with usual width and plain dashes, character by character, so that positions stay what they are."""
    return text if text.isascii() else text.translate(_WIDTHS).translate(_MARKS)


def _joined(match: re.Match[str]) -> str:
    """A syllable of half-width jamo as conjoining jamo, which compose."""
    kinds = zip(("CHOSEONG", "JUNGSEONG", "JONGSEONG"), match.groups(), strict=True)
    try:
        return "".join(
            lookup(f"HANGUL {kind} {name(jamo).removeprefix('HALFWIDTH HANGUL LETTER ')}") for kind, jamo in kinds if jamo
        )
    except KeyError:  # a cluster that begins no syllable
        return match[0]
