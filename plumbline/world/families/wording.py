"""Sentence templates: `{slot}` stands for a value, `[은|는]` for a Korean particle.

The same template writes a sentence and parses it, so the verifier understands whatever the world says.
"""

import re
from collections.abc import Sequence
from random import Random

_PIECE = re.compile(r"\{(\w+)\}|\[([^|\]]+)\|([^\]]+)\]")
_NUMBER_SLOTS = frozenset("abcn")
_HANGUL = re.compile(r"[가-힣]")
_DIGITS_ENDING_IN_A_CONSONANT = frozenset("013678")  # as they are read: 영 (or 십, in tens) 일 삼 육 칠 팔
_RIEUL = 8  # index of final ㄹ among the 28 Hangul finals; (으)로 treats it as a vowel


def choose_particle(before: str, after_consonant: str, after_vowel: str) -> str:
    """The form of a Korean particle that fits the last sound of `before`."""
    last = before.rstrip("'\"])")[-1:]
    if last.isdigit():
        closed, rieul = last in _DIGITS_ENDING_IN_A_CONSONANT, last in "178"
    elif _HANGUL.match(last):
        final = (ord(last) - ord("가")) % 28
        closed, rieul = final != 0, final == _RIEUL
    else:
        closed, rieul = False, False
    if after_consonant.startswith("으") and rieul:
        return after_vowel
    return after_consonant if closed else after_vowel


def trim(text: str) -> str:
    """The text with single spaces and without end punctuation."""
    return " ".join(text.split()).rstrip(".!? ")


class Template:
    """One wording of a sentence. The slots a, b, c and n hold numbers, all others any text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._pattern = re.compile(self._regex(trim(text)), re.IGNORECASE)

    @staticmethod
    def _regex(text: str) -> str:
        parts, end = [], 0
        for piece in _PIECE.finditer(text):
            parts.append(re.escape(text[end : piece.start()]))
            slot, closed, opened = piece.groups()
            if slot is None:
                parts.append(f"(?:{re.escape(closed)}|{re.escape(opened)})")
            else:
                parts.append(f"(?P<{slot}>\\d+)" if slot in _NUMBER_SLOTS else f"(?P<{slot}>.+?)")
            end = piece.end()
        return "".join(parts) + re.escape(text[end:])

    def write(self, **slots: object) -> str:
        """The sentence with its slots filled, its particles chosen and its first letter capitalised."""
        written, end = "", 0
        for piece in _PIECE.finditer(self.text):
            written += self.text[end : piece.start()]
            slot, closed, opened = piece.groups()
            written += str(slots[slot]) if slot else choose_particle(written, closed, opened)
            end = piece.end()
        written += self.text[end:]
        return written[:1].upper() + written[1:]

    def read(self, text: str) -> dict[str, str] | None:
        """The values of the slots, or None if the text is not this sentence. End punctuation and case do not matter."""
        return self.read_trimmed(trim(text))

    def read_trimmed(self, text: str) -> dict[str, str] | None:
        """The same for text that `trim` has returned."""
        match = self._pattern.fullmatch(text)
        return match.groupdict() if match else None


Wordings = dict[str, tuple[Template, ...]]


def wordings(*, en: Sequence[str], ko: Sequence[str]) -> Wordings:
    """Templates by language."""
    return {"en": tuple(map(Template, en)), "ko": tuple(map(Template, ko))}


def pick(choices: tuple[Template, ...], rng: Random, **slots: object) -> str:
    """A sentence in one of the wordings, drawn at random."""
    return rng.choice(choices).write(**slots)


def read_any(choices: tuple[Template, ...], text: str) -> list[dict[str, str]]:
    """The slots of every wording that fits the text."""
    trimmed = trim(text)
    return [slots for template in choices if (slots := template.read_trimmed(trimmed)) is not None]
