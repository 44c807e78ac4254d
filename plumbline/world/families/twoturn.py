"""Conversations of two turns: the second can only be answered from what the user said in the first."""

from random import Random
from typing import Any, ClassVar, NamedTuple

from plumbline.rows import Message
from plumbline.world.families.family import Content, Family
from plumbline.world.families.lexicon import COLOURS, ITEMS, PEOPLE, PLACES, load_words
from plumbline.world.families.numeracy import slip
from plumbline.world.families.wording import Wordings, pick, read_any, wordings

LARGEST_REMEMBERED = 12
LARGEST_COUNT = 20  # coins that the user has at first
LARGEST_STEP = 5  # coins that are added


class Exchange(NamedTuple):
    """A kind of two-turn conversation, with the wordings of all its turns. `words/exchanges.yaml` explains the fields."""

    says: list[str]
    asks: str
    telling: Wordings
    reply: Wordings
    question: Wordings
    answer: Wordings
    accepted: Wordings


_TURNS = ("telling", "reply", "question", "answer", "accepted")
EXCHANGES = {
    kind: Exchange(entry["says"], entry["asks"], *(wordings(**entry[turn]) for turn in _TURNS))
    for kind, entry in load_words("exchanges").items()
}
_WORDS: dict[str, dict[str, str]] = {
    "who": PEOPLE,
    "what": ITEMS,
    "where": PLACES,
    "colour": COLOURS,
}  # by slot; others hold numbers


class TwoTurn(Family):
    """Remembering a name, a place, a number or a colour, or adding to a number: (kind of exchange, what the user said…)."""

    name = "twoturn"
    word_budget: ClassVar = {"en": 16, "ko": 11}

    def intents(self) -> list[Content]:
        return [
            *(("name", who) for who in PEOPLE),
            *(("place", what, where) for what in ITEMS for where in PLACES),
            *(("number", n) for n in range(LARGEST_REMEMBERED + 1)),
            *(("colour", what, colour) for what in ITEMS for colour in COLOURS),
            *(("step", a, b) for a in range(1, LARGEST_COUNT + 1) for b in range(1, LARGEST_STEP + 1)),
        ]

    def ask(self, content: Content, language: str, rng: Random) -> list[Message]:
        exchange, slots = EXCHANGES[content[0]], _write_slots(content, language)
        return [
            {"role": "user", "content": pick(exchange.telling[language], rng, **slots)},
            {"role": "assistant", "content": pick(exchange.reply[language], rng)},
            {"role": "user", "content": pick(exchange.question[language], rng, **slots)},
        ]

    def understand(self, turns: tuple[str, ...], language: str) -> Content | None:
        if len(turns) != 3:
            return None
        for kind, exchange in EXCHANGES.items():
            questions = read_any(exchange.question[language], turns[2])
            for slots in read_any(exchange.telling[language], turns[0]) if questions else ():
                content = _read_slots(kind, slots | questions[0], language)
                if content is not None:
                    return content
        return None

    def write_right(self, content: Content, language: str, rng: Random) -> str:
        return pick(EXCHANGES[content[0]].answer[language], rng, **_answer_slots(content, language))

    def write_wrong(self, content: Content, language: str, rng: Random) -> str:
        exchange, slots = EXCHANGES[content[0]], _answer_slots(content, language)
        if exchange.asks in _WORDS:
            words = _WORDS[exchange.asks]
            choices = words if language == "en" else words.values()
            slots[exchange.asks] = rng.choice([word for word in choices if word != slots[exchange.asks]])
        else:
            slots[exchange.asks] = slip(slots[exchange.asks], rng)
        return pick(exchange.answer[language], rng, **slots)

    def is_right(self, content: Content, language: str, answer: str) -> bool:
        exchange, expected = EXCHANGES[content[0]], _answer_slots(content, language)
        return any(
            all(value.lower() == str(expected[slot]).lower() for slot, value in slots.items())
            for slots in read_any(exchange.answer[language] + exchange.accepted[language], answer)
        )


def _write_slots(content: Content, language: str) -> dict[str, Any]:
    """The slots that the user's turns fill."""
    kind, *values = content
    return {
        slot: _WORDS[slot][value] if slot in _WORDS and language == "ko" else value
        for slot, value in zip(EXCHANGES[kind].says, values, strict=True)
    }


def _answer_slots(content: Content, language: str) -> dict[str, Any]:
    """The slots that the user's turns fill, and those that the answer adds."""
    slots = _write_slots(content, language)
    if content[0] == "step":
        slots["n"] = content[1] + content[2]
    return slots


def _read_slots(kind: str, slots: dict[str, str], language: str) -> Content | None:
    """The content of a conversation, or None if a slot holds a word that the world does not know."""
    values: list[str | int] = []
    for slot in EXCHANGES[kind].says:
        if slot not in _WORDS:
            values.append(int(slots[slot]))
            continue
        words = {(english if language == "en" else korean).lower(): english for english, korean in _WORDS[slot].items()}
        if slots[slot].lower() not in words:
            return None
        values.append(words[slots[slot].lower()])
    return (kind, *values)
