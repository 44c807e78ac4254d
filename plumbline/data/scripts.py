"""Which scripts a text is written in, by Unicode block, and its language where the script implies one."""

from collections.abc import Sequence

import numpy as np

from plumbline.letters import composed

# The first code point of each stretch and its script; "" for what belongs to no script (digits, punctuation, spaces).
_STRETCHES = [
    (0x0000, ""), (0x0041, "Latin"), (0x005B, ""), (0x0061, "Latin"), (0x007B, ""), (0x00C0, "Latin"), (0x00D7, ""),
    (0x00D8, "Latin"), (0x00F7, ""), (0x00F8, "Latin"), (0x0250, ""),
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
_ENOUGH = 0.3  # of a text's letters, for their script to imply its language


def codepoints(text: str) -> np.ndarray:
    """The code points of a text, (characters,) uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def scripts_by_text(texts: Sequence[str]) -> np.ndarray:
    """Letters of each script of SCRIPTS in each text, (texts, scripts); punctuation, digits and spaces do not count."""
    texts = [composed(text) for text in texts]
    width = len(SCRIPTS) + 1
    scripts = _INDEX[np.searchsorted(_STARTS, codepoints("".join(texts)), side="right") - 1]
    owner = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    return np.bincount(owner * width + scripts, minlength=len(texts) * width).reshape(-1, width)[:, : len(SCRIPTS)]


def languages(counts: np.ndarray) -> list[str | None]:
    """The language of each text (ko, ja, zh, …) whose script implies one and makes up at least 30 % of its letters; else None.

    `counts` are those of `scripts_by_text`. Han with kana is Japanese. Latin, Cyrillic and other scripts of many languages imply none.
    """
    enough = np.maximum(_ENOUGH * counts.sum(axis=1), 1)
    codes = np.full(len(counts), None, dtype=object)
    for script, code in reversed(_LANGUAGE.items()):
        codes[counts[:, SCRIPTS.index(script)] >= enough] = code
    kana, han = counts[:, SCRIPTS.index("Kana")], counts[:, SCRIPTS.index("Han")]
    codes[(kana > 0) & (kana + han >= enough)] = "ja"
    return codes.tolist()


def language(text: str) -> str | None:
    """The language that a text's script implies; None if it implies none."""
    return languages(scripts_by_text([text]))[0]
