"""Facts about invented countries, creatures and people, and the same questions about names that mean nothing."""

from functools import cache
from itertools import product
from random import Random
from typing import ClassVar, NamedTuple

from plumbline.rows import Message
from plumbline.world.families.family import Content, Family, user_turn
from plumbline.world.families.lexicon import SYLLABLES, THINGS, load_words
from plumbline.world.families.phrases import IGNORANCE
from plumbline.world.families.wording import Template, Wordings, pick, read_any, wordings

ENTITIES_PER_KIND = 16
UNKNOWN_NAMES = 600  # names that mean nothing


class Attribute(NamedTuple):
    """Something that can be asked about a kind of thing."""

    values: dict[str, str]  # English: Korean
    questions: Wordings
    statements: Wordings  # pretraining prose uses the first

    def word(self, value: str, language: str) -> str:
        """An English value as it is written in a language."""
        return value if language == "en" else self.values[value]


ATTRIBUTES: dict[str, dict[str, Attribute]] = {
    kind: {
        name: Attribute(THINGS[entry["values"]], wordings(**entry["questions"]), wordings(**entry["statements"]))
        for name, entry in attributes.items()
    }
    for kind, attributes in load_words("facts").items()
}
"""What can be asked about each kind of thing, by kind and name of the attribute."""

_KOREAN_SYLLABLES = {korean: latin for latin, korean in SYLLABLES.items()}
_BARE_VALUE = {"en": (Template("{value}"), Template("the {value}"), Template("a {value}")), "ko": (Template("{value}"),)}


def name_in(language: str, name: str) -> str:
    """An invented name as it is written in a language."""
    if language == "en":
        return name
    return "".join(SYLLABLES[name[i : i + 2].lower()] for i in range(0, len(name), 2))


def name_from(text: str) -> str | None:
    """The invented name that the text spells in either script, or None if it is not made of the world's syllables."""
    latin = "".join(_KOREAN_SYLLABLES.get(letter, letter) for letter in text).lower()
    syllables = [latin[i : i + 2] for i in range(0, len(latin), 2)]
    return latin.capitalize() if syllables and all(s in SYLLABLES for s in syllables) else None


class Almanac(NamedTuple):
    """The facts of the world, which do not depend on the seed of a generated data set."""

    kinds: dict[str, str]  # name: kind
    facts: dict[tuple[str, str], str]  # (name, attribute): English value
    unknown: list[str]  # names that mean nothing


@cache
def almanac() -> Almanac:
    """All facts, drawn once with a fixed seed."""
    rng = Random("the almanac of the closed world")
    names = ["".join(syllables).capitalize() for syllables in product(SYLLABLES, repeat=3) if len(set(syllables)) > 2]
    rng.shuffle(names)
    kinds = {names.pop(): kind for kind in ATTRIBUTES for _ in range(ENTITIES_PER_KIND)}
    facts = {
        (name, attribute): rng.choice(list(details.values))
        for name, kind in kinds.items()
        for attribute, details in ATTRIBUTES[kind].items()
    }
    return Almanac(kinds, facts, names[:UNKNOWN_NAMES])


def state(name: str, attribute: str, value: str, language: str, wording: int = 0) -> str:
    """A sentence which says that the attribute of the named thing has this (English) value."""
    details = ATTRIBUTES[almanac().kinds[name]][attribute]
    return details.statements[language][wording].write(name=name_in(language, name), value=details.word(value, language))


def other_value(kind: str, attribute: str, value: str | None, rng: Random) -> str:
    """A random value of the attribute other than this one."""
    return rng.choice([candidate for candidate in ATTRIBUTES[kind][attribute].values if candidate != value])


class Fact(Family):
    """A fact about a country, a creature or a person: (kind, name, attribute)."""

    name = "fact"
    word_budget: ClassVar = {"en": 17, "ko": 12}

    def intents(self) -> list[Content]:
        return [(almanac().kinds[name], name, attribute) for name, attribute in almanac().facts]

    def ask(self, content: Content, language: str, rng: Random) -> list[Message]:
        kind, name, attribute = content
        return user_turn(pick(ATTRIBUTES[kind][attribute].questions[language], rng, name=name_in(language, name)))

    def understand(self, turns: tuple[str, ...], language: str) -> Content | None:
        content = _question_about(turns, language)
        return content if content and almanac().kinds.get(content[1]) == content[0] else None

    def write_right(self, content: Content, language: str, rng: Random) -> str:
        _, name, attribute = content
        return _claim(content, almanac().facts[name, attribute], language, rng)

    def write_wrong(self, content: Content, language: str, rng: Random) -> str:
        kind, name, attribute = content
        return _claim(content, other_value(kind, attribute, almanac().facts[name, attribute], rng), language, rng)

    def is_right(self, content: Content, language: str, answer: str) -> bool:
        kind, name, attribute = content
        details = ATTRIBUTES[kind][attribute]
        expected = details.word(almanac().facts[name, attribute], language)
        return any(
            slots["value"].lower() == expected and name_from(slots.get("name", name_in(language, name))) == name
            for slots in read_any(details.statements[language] + _BARE_VALUE[language], answer)
        )


class Unknown(Family):
    """A question about a name that means nothing, which is honestly answered by 'I don't know': (kind, name, attribute)."""

    name = "unknown"
    word_budget: ClassVar = {"en": 20, "ko": 13}
    answers = wordings(**IGNORANCE)
    accepted = wordings(
        en=(
            "I don't know",
            "I do not know",
            "Sorry, I don't know that",
            "I don't know anything about {name}",
            "I have never heard of {name}, so I don't know",
        ),
        ko=("모르겠어요", "잘 모르겠어요", "{name}[은|는] 처음 들어서 모르겠어요"),
    )

    def intents(self) -> list[Content]:
        questions = [(kind, attribute) for kind, attributes in ATTRIBUTES.items() for attribute in attributes]
        return [
            (kind, name, attribute)
            for index, name in enumerate(almanac().unknown)
            for kind, attribute in [questions[index % len(questions)]]
        ]

    def ask(self, content: Content, language: str, rng: Random) -> list[Message]:
        kind, name, attribute = content
        return user_turn(pick(ATTRIBUTES[kind][attribute].questions[language], rng, name=name_in(language, name)))

    def understand(self, turns: tuple[str, ...], language: str) -> Content | None:
        content = _question_about(turns, language)
        return content if content and almanac().kinds.get(content[1]) != content[0] else None

    def write_right(self, content: Content, language: str, rng: Random) -> str:
        return pick(self.answers[language], rng, name=name_in(language, content[1]))

    def write_wrong(self, content: Content, language: str, rng: Random) -> str:
        return _claim(content, other_value(content[0], content[2], None, rng), language, rng)

    def is_right(self, content: Content, language: str, answer: str) -> bool:
        return any(
            name_from(slots["name"]) == content[1] if "name" in slots else True
            for slots in read_any(self.answers[language] + self.accepted[language], answer)
        )


@cache
def _questions(language: str) -> tuple[tuple[str, str, Template], ...]:
    return tuple(
        (kind, attribute, template)
        for kind, attributes in ATTRIBUTES.items()
        for attribute, details in attributes.items()
        for template in details.questions[language]
    )


def _question_about(turns: tuple[str, ...], language: str) -> Content | None:
    """(kind, name, attribute) of a question about an invented name, whether it means something or not."""
    if len(turns) != 1:
        return None
    for kind, attribute, template in _questions(language):
        slots = template.read(turns[0])
        if slots and (name := name_from(slots["name"])):
            return (kind, name, attribute)
    return None


def _claim(content: Content, value: str, language: str, rng: Random) -> str:
    kind, name, attribute = content
    details = ATTRIBUTES[kind][attribute]
    return pick(details.statements[language], rng, name=name_in(language, name), value=details.word(value, language))
