"""Which scripts a text is written in, by Unicode block, and the language where the script tells it."""

from collections.abc import Iterable

import numpy as np

# First code point of each stretch and the script it is taken for; "" is what belongs to no script (digits, signs, spaces).
_STRETCHES = [
    (0x0000, ""), (0x0041, "Latin"), (0x005B, ""), (0x0061, "Latin"), (0x007B, ""), (0x00C0, "Latin"), (0x0250, ""),
    (0x0370, "Greek"), (0x0400, "Cyrillic"), (0x0530, "Armenian"), (0x0590, "Hebrew"), (0x0600, "Arabic"), (0x0700, "other"),
    (0x0750, "Arabic"), (0x0780, "other"), (0x0900, "Devanagari"), (0x0980, "Bengali"), (0x0A00, "other"), (0x0B80, "Tamil"),
    (0x0C00, "other"), (0x0E00, "Thai"), (0x0E80, "other"), (0x10A0, "Georgian"), (0x1100, "Hangul"), (0x1200, "other"),
    (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, ""), (0x2E80, "Han"), (0x3000, ""), (0x3005, "Han"), (0x3008, ""),
    (0x3040, "Kana"), (0x3100, "Han"), (0x3130, "Hangul"), (0x3190, "Han"), (0x31F0, "Kana"), (0x3200, ""), (0x3400, "Han"),
    (0x4DC0, ""), (0x4E00, "Han"), (0xA000, "other"), (0xA960, "Hangul"), (0xA980, "other"), (0xAC00, "Hangul"),
    (0xD7FC, "other"), (0xF900, "Han"), (0xFB00, "Latin"), (0xFB1D, "Hebrew"), (0xFB50, "Arabic"), (0xFE00, ""),
    (0xFE70, "Arabic"), (0xFEFF, ""), (0xFF21, "Latin"), (0xFF3B, ""), (0xFF41, "Latin"), (0xFF5B, ""), (0xFF66, "Kana"),
    (0xFFA0, "Hangul"), (0xFFDD, ""), (0x10000, "other"), (0x1F000, ""), (0x20000, "Han"), (0x323B0, "other"),
]  # fmt: skip
_STARTS = np.array([start for start, _ in _STRETCHES], dtype=np.uint32)
SCRIPTS = sorted({script for _, script in _STRETCHES} - {""})
_INDEX = np.array([SCRIPTS.index(script) if script else len(SCRIPTS) for _, script in _STRETCHES])
_LANGUAGE = {"Hangul": "ko", "Kana": "ja", "Han": "zh", "Thai": "th", "Greek": "el", "Hebrew": "he", "Tamil": "ta"}


def codepoints(text: str) -> np.ndarray:
    """The code points of a text, (characters,) uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def count_scripts(texts: Iterable[str]) -> np.ndarray:
    """Letters of each script of SCRIPTS, (scripts,): signs, digits and spaces do not count."""
    points = codepoints("".join(texts))
    found = _INDEX[np.searchsorted(_STARTS, points, side="right") - 1]
    return np.bincount(found, minlength=len(SCRIPTS) + 1)[: len(SCRIPTS)]


def language(text: str) -> str | None:
    """The language that a text's script tells (ko, ja, zh, …), if at least 30 % of its letters are in it; else None.

    Kana makes Han Japanese. Latin, Cyrillic and other scripts of many languages tell none.
    """
    counts = dict(zip(SCRIPTS, count_scripts([text]).tolist(), strict=True))
    letters = sum(counts.values())
    if letters and counts["Kana"] and counts["Kana"] + counts["Han"] >= 0.3 * letters:
        return "ja"
    return next((code for script, code in _LANGUAGE.items() if letters and counts[script] >= 0.3 * letters), None)
