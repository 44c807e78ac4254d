"""Conversations of two turns: something said in the first is needed to answer the second."""

from random import Random
from typing import Any, ClassVar, NamedTuple

from stages.world.family import Content, Family, Message
from stages.world.lexicon import COLOURS, ITEMS, PEOPLE, PLACES
from stages.world.numeracy import slip
from stages.world.wording import Wordings, pick, read_any, wordings

LARGEST_REMEMBERED = 12
LARGEST_STEP = 5  # what a result is continued by


class Exchange(NamedTuple):
    """A kind of two-turn conversation, with the wordings of all its turns."""

    telling: Wordings
    reply: Wordings
    question: Wordings
    answer: Wordings


EXCHANGES: dict[str, Exchange] = {
    "name": Exchange(
        wordings(
            en=("My name is {who}.", "Hello, I am {who}."), ko=("제 이름은 {who}[이에요|예요].", "저는 {who}[이라고|라고] 해요.")
        ),
        wordings(en=("Nice to meet you!",), ko=("만나서 반가워요!",)),
        wordings(en=("What is my name?", "Do you remember my name?"), ko=("제 이름이 뭐예요?", "제 이름을 기억해요?")),
        wordings(en=("Your name is {who}.", "You are {who}."), ko=("이름은 {who}[이에요|예요].", "{who} 씨예요.")),
    ),
    "place": Exchange(
        wordings(
            en=("I put the {what} in the {where}.", "The {what} is in the {where}."),
            ko=("{what}[을|를] {where}에 두었어요.", "{what}[이|가] {where}에 있어요."),
        ),
        wordings(en=("I will remember that.",), ko=("기억할게요.",)),
        wordings(en=("Where is it?", "Where can I find it now?"), ko=("어디에 있어요?", "지금 어디에서 찾을 수 있어요?")),
        wordings(
            en=("It is in the {where}.", "The {what} is in the {where}."),
            ko=("{where}에 있어요.", "{what}[은|는] {where}에 있어요."),
        ),
    ),
    "number": Exchange(
        wordings(
            en=("My number is {n}.", "Please remember the number {n}."),
            ko=("제 번호는 {n}[이에요|예요].", "숫자 {n}[을|를] 기억해 주세요."),
        ),
        wordings(en=("I will remember that.",), ko=("기억할게요.",)),
        wordings(en=("Which number was it?", "What was the number?"), ko=("몇 번이었어요?", "그 숫자가 뭐였어요?")),
        wordings(en=("It was {n}.", "The number is {n}."), ko=("{n}[이에요|예요].", "숫자는 {n}[이에요|예요].")),
    ),
    "colour": Exchange(
        wordings(en=("My {what} is {colour}.", "I have a {colour} {what}."), ko=("제 {what}[은|는] {colour}[이에요|예요].",)),
        wordings(en=("That sounds nice.",), ko=("멋지네요.",)),
        wordings(en=("What colour is it?", "Which colour did I say?"), ko=("무슨 색이에요?", "제가 무슨 색이라고 했지요?")),
        wordings(
            en=("It is {colour}.", "Your {what} is {colour}."),
            ko=("{colour}[이에요|예요].", "{what}[은|는] {colour}[이에요|예요]."),
        ),
    ),
    "step": Exchange(
        wordings(en=("I have {a} coins.", "There are {a} coins in my bag."), ko=("동전이 {a}개 있어요.",)),
        wordings(en=("I see.",), ko=("그렇군요.",)),
        wordings(en=("I get {b} more. How many now?", "How many are {b} more than that?"), ko=("{b}개 더 생기면 몇 개예요?",)),
        wordings(en=("Now it is {n}.", "That makes {n} coins."), ko=("이제 {n}개예요.", "모두 {n}개예요.")),
    ),
}
_ACCEPTED: dict[str, Wordings] = {
    "name": wordings(en=("{who}",), ko=("{who}",)),
    "place": wordings(en=("In the {where}",), ko=("{where}에요",)),
    "number": wordings(en=("{n}",), ko=("{n}",)),
    "colour": wordings(en=("{colour}",), ko=("{colour}",)),
    "step": wordings(en=("{n}",), ko=("{n}", "{n}개")),
}
_WORDS: dict[str, dict[str, str]] = {"who": PEOPLE, "what": ITEMS, "where": PLACES, "colour": COLOURS}
_SLOTS: dict[str, tuple[str, ...]] = {
    "name": ("who",),
    "place": ("what", "where"),
    "number": ("n",),
    "colour": ("what", "colour"),
    "step": ("a", "b"),
}
_ASKED = {"name": "who", "place": "where", "number": "n", "colour": "colour", "step": "n"}


class TwoTurn(Family):
    """Remembering a name, a place, a number or a colour, or adding to a number: (kind of exchange, what was said…)."""

    name = "twoturn"
    word_budget: ClassVar = {"en": 16, "ko": 11}

    def intents(self) -> list[Content]:
        told: list[Content] = [("name", who) for who in PEOPLE]
        told += [("place", what, where) for what in ITEMS for where in PLACES]
        told += [("number", n) for n in range(LARGEST_REMEMBERED + 1)]
        told += [("colour", what, colour) for what in ITEMS for colour in COLOURS]
        return told + [("step", a, b) for a in range(1, 21) for b in range(1, LARGEST_STEP + 1)]

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
            asked = read_any(exchange.question[language], turns[2])
            for told in read_any(exchange.telling[language], turns[0]) if asked else ():
                content = _read_slots(kind, told | asked[0], language)
                if content is not None:
                    return content
        return None

    def write_right(self, content: Content, language: str, rng: Random) -> str:
        return pick(EXCHANGES[content[0]].answer[language], rng, **_answer_slots(content, language))

    def write_wrong(self, content: Content, language: str, rng: Random) -> str:
        slots, asked = _answer_slots(content, language), _ASKED[content[0]]
        if asked == "n":
            slots["n"] = slip(slots["n"], rng)
        else:
            words = _WORDS[asked]
            slots[asked] = rng.choice([w for w in (words if language == "en" else words.values()) if w != slots[asked]])
        return pick(EXCHANGES[content[0]].answer[language], rng, **slots)

    def is_right(self, content: Content, language: str, answer: str) -> bool:
        kind, expected = content[0], _answer_slots(content, language)
        return any(
            all(found.lower() == str(expected[slot]).lower() for slot, found in slots.items())
            for slots in read_any(EXCHANGES[kind].answer[language] + _ACCEPTED[kind][language], answer)
        )


def _write_slots(content: Content, language: str) -> dict[str, Any]:
    kind, *values = content
    return {
        slot: _WORDS[slot][value] if slot in _WORDS and language == "ko" else value
        for slot, value in zip(_SLOTS[kind], values, strict=True)
    }


def _answer_slots(content: Content, language: str) -> dict[str, Any]:
    slots = _write_slots(content, language)
    if content[0] == "step":
        slots["n"] = content[1] + content[2]
    return slots


def _read_slots(kind: str, slots: dict[str, str], language: str) -> Content | None:
    values: list[str | int] = []
    for slot in _SLOTS[kind]:
        if slot not in _WORDS:
            values.append(int(slots[slot]))
            continue
        words = {(en if language == "en" else ko).lower(): en for en, ko in _WORDS[slot].items()}
        if slots[slot].lower() not in words:
            return None
        values.append(words[slots[slot].lower()])
    return (kind, *values)
