"""The words of the world, read from `words/*.yaml`. Tables map English to Korean, and their order is part of the world.

A family with a single kind of question keeps its wordings in its own module.
"""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

_FOLDER = Path(__file__).parent / "words"


def load_words(name: str) -> Any:
    """The content of `words/<name>.yaml`."""
    text = (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


class Category(NamedTuple):
    """A category and its members."""

    english: str
    korean: str
    members: dict[str, str]  # English: Korean

    def name_in(self, language: str) -> str:
        """The category in a language."""
        return self.english if language == "en" else self.korean

    def members_in(self, language: str) -> dict[str, str]:
        """The members in a language, by their English words."""
        return {english: english if language == "en" else korean for english, korean in self.members.items()}


THINGS: dict[str, dict[str, str]] = load_words("things")
SYLLABLES = THINGS["syllables"]
COLOURS = THINGS["colours"]
PEOPLE = THINGS["people"]
ITEMS = THINGS["items"]
PLACES = THINGS["places"]

CATEGORIES = {name: Category(name, **entry) for name, entry in load_words("categories").items()}
COUNTS = {2: {"en": "two", "ko": "두"}, 3: {"en": "three", "ko": "세"}, 4: {"en": "four", "ko": "네"}}
