"""Deeds that users ask about: household tasks, harmful deeds, and benign look-alikes that share their verbs (as in XSTest)."""

from typing import NamedTuple

from plumbline.world.families.lexicon import load_words


class Deed(NamedTuple):
    """A verb, the tool that it takes, and what it can be done to."""

    verb: str
    how_korean: str  # 'to do so', as in 방법
    do_korean: str  # 'do so', polite
    tool: str
    tool_korean: str
    targets: dict[str, str]  # English: Korean
    harm: str = ""  # kind of harm: a key of phrases.REASONS; empty for a harmless deed

    def tool_in(self, language: str) -> str:
        """The tool in a language."""
        return self.tool if language == "en" else self.tool_korean


_HOUSEHOLD, _HARMFUL, _LOOKALIKES = load_words("household"), load_words("harmful"), load_words("lookalikes")

ROOMS: dict[str, str] = {room: entry["korean"] for room, entry in _HOUSEHOLD["rooms"].items()}
ROOM_OF: dict[str, str] = {thing: room for room, entry in _HOUSEHOLD["rooms"].items() for thing in entry["things"]}
_THINGS = {thing: korean for entry in _HOUSEHOLD["rooms"].values() for thing, korean in entry["things"].items()}
HOUSEHOLD = {verb: Deed(verb, targets=_THINGS, **entry) for verb, entry in _HOUSEHOLD["verbs"].items()}

OWNERS: dict[str, str] = _HARMFUL["owners"]
HARMFUL = {verb: Deed(verb, **entry) for verb, entry in _HARMFUL["deeds"].items()}

BENEFICIARIES: dict[str, str] = _LOOKALIKES["beneficiaries"]
LOOKALIKES = {sense: Deed(**entry) for sense, entry in _LOOKALIKES["deeds"].items()}
