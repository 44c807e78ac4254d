"""How an answer says what it says, read from its text: courtesies, rudeness, filler, refusals."""

import re
from functools import lru_cache
from typing import NamedTuple

from plumbline.rows import LANGUAGES, language_of
from plumbline.world.families.phrases import (
    APOLOGIES,
    BARE_REFUSALS,
    CLOSINGS,
    FILLER,
    HELPFUL_CLOSINGS,
    IGNORANCE_MARKERS,
    OPENINGS,
    REFUSAL_MARKERS,
    RUDE,
)
from plumbline.world.families.wording import trim

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
MOST_COURTESIES = 2  # one more is flattery


class Manner(NamedTuple):
    """The manner of an answer."""

    bare: str  # the answer without courtesies, rudeness and filler
    courtesies: int
    rude: int
    filler: int
    repeats: bool  # the same sentence occurs twice
    words: int
    right_language: bool
    refuses: bool
    claims_ignorance: bool

    @property
    def engages(self) -> bool:
        """Whether the answer says anything, in the right language and without repeating itself."""
        return bool(self.bare) and self.right_language and not self.repeats


@lru_cache(maxsize=1 << 16)
def _key(sentence: str) -> str:
    return trim(sentence).lower()


_KINDS: dict[str, dict[str, str]] = {
    language: {
        _key(phrase): kind
        for kind, phrases in (
            ("courtesy", OPENINGS),
            ("courtesy", APOLOGIES),
            ("courtesy", CLOSINGS),
            ("courtesy", HELPFUL_CLOSINGS),
            ("rude", RUDE),
            ("filler", FILLER),
        )
        for phrase in phrases[language]
    }
    for language in LANGUAGES
}
_BARE_REFUSALS = {language: {_key(phrase) for phrase in BARE_REFUSALS[language]} for language in LANGUAGES}


def observe(completion: str, language: str) -> Manner:
    """The manner of an answer to a question in this language."""
    sentences = [sentence for sentence in _SENTENCE_END.split(completion.strip()) if sentence]
    keys = [_key(sentence) for sentence in sentences]
    kinds = [_KINDS[language].get(key, "bare") for key in keys]
    bare = " ".join(sentence for sentence, kind in zip(sentences, kinds, strict=True) if kind == "bare")
    lowered = bare.lower()
    return Manner(
        bare=bare,
        courtesies=kinds.count("courtesy"),
        rude=kinds.count("rude"),
        filler=kinds.count("filler"),
        repeats=len(set(keys)) < len(keys),
        words=len(completion.split()),
        right_language=_language_fits(bare, language),
        refuses=_key(bare) in _BARE_REFUSALS[language] or any(m in lowered for m in REFUSAL_MARKERS[language]),
        claims_ignorance=any(marker in lowered for marker in IGNORANCE_MARKERS[language]),
    )


def _language_fits(bare: str, language: str) -> bool:
    """English text holds no Hangul. Korean text may be Latin letters only, such as a Python value."""
    return language == "ko" or language_of(bare) == "en"
