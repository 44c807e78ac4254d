"""What there is to know in the world: invented countries, creatures and people, and the members of categories."""

from functools import cache
from itertools import product
from random import Random
from typing import ClassVar, NamedTuple

from stages.world.family import Content, Family, Message, user_turn
from stages.world.lexicon import (
    ANIMALS,
    CATEGORIES,
    COLOURS,
    COUNTS,
    FOODS,
    HABITATS,
    INSTRUMENTS,
    JOBS,
    SYLLABLES,
)
from stages.world.phrases import IGNORANCE
from stages.world.wording import Template, Wordings, pick, read_any, wordings

ENTITIES_PER_KIND = 28
UNKNOWN_NAMES = 600  # names of nothing, to ask about


class Attribute(NamedTuple):
    """Something that can be asked of a kind of thing."""

    values: dict[str, str]  # English: Korean
    questions: Wordings
    statements: Wordings  # the first is also how prose says it


def _attribute(
    values: dict[str, str], *, ask: tuple[str, ...], say: tuple[str, ...], ask_ko: tuple[str, ...], say_ko: tuple[str, ...]
) -> Attribute:
    return Attribute(values, wordings(en=ask, ko=ask_ko), wordings(en=say, ko=say_ko))


ATTRIBUTES: dict[str, dict[str, Attribute]] = {
    "country": {
        "food": _attribute(
            FOODS,
            ask=("What do people eat in {name}?", "Which food is popular in {name}?"),
            say=("People in {name} eat {value}.", "They eat {value}."),
            ask_ko=("{name} 사람들은 무엇을 먹어요?", "{name} 나라의 음식은 뭐예요?"),
            say_ko=("{name} 사람들은 {value}[을|를] 먹어요.", "{value}[을|를] 먹어요."),
        ),
        "animal": _attribute(
            ANIMALS,
            ask=("What is the national animal of {name}?", "Which animal stands for {name}?"),
            say=("The national animal of {name} is the {value}.", "It is the {value}."),
            ask_ko=("{name} 나라의 동물은 뭐예요?", "어떤 동물이 {name}[을|를] 상징해요?"),
            say_ko=("{name} 나라의 동물은 {value}[이에요|예요].", "{value}[이에요|예요]."),
        ),
        "flag": _attribute(
            COLOURS,
            ask=("What colour is the flag of {name}?", "Which colour does {name} have on its flag?"),
            say=("The flag of {name} is {value}.", "It is {value}."),
            ask_ko=("{name} 국기는 무슨 색이에요?", "{name} 나라의 국기 색을 알려 주세요."),
            say_ko=("{name} 국기는 {value}[이에요|예요].", "{value}[이에요|예요]."),
        ),
    },
    "creature": {
        "home": _attribute(
            HABITATS,
            ask=("Where does the {name} live?", "Where can I find a {name}?"),
            say=("The {name} lives in the {value}.", "It lives in the {value}."),
            ask_ko=("{name} 동물은 어디에 살아요?", "{name} 동물은 어디에서 볼 수 있어요?"),
            say_ko=("{name} 동물은 {value}에 살아요.", "{value}에 살아요."),
        ),
        "diet": _attribute(
            FOODS,
            ask=("What does the {name} eat?", "What do I feed a {name}?"),
            say=("The {name} eats {value}.", "It eats {value}."),
            ask_ko=("{name} 동물은 무엇을 먹어요?", "{name} 동물의 먹이는 뭐예요?"),
            say_ko=("{name} 동물은 {value}[을|를] 먹어요.", "먹이는 {value}[이에요|예요]."),
        ),
        "colour": _attribute(
            COLOURS,
            ask=("What colour is the {name}?", "Which colour does a {name} have?"),
            say=("The {name} is {value}.", "It is {value}."),
            ask_ko=("{name} 동물은 무슨 색이에요?", "{name} 동물의 색을 알려 주세요."),
            say_ko=("{name} 동물은 {value}[이에요|예요].", "{value}[이에요|예요]."),
        ),
    },
    "person": {
        "job": _attribute(
            JOBS,
            ask=("What is the job of {name}?", "What does {name} do for a living?"),
            say=("{name} is a {value}.", "The job of {name} is {value}."),
            ask_ko=("{name} 씨의 직업은 뭐예요?", "{name} 씨는 무슨 일을 해요?"),
            say_ko=("{name} 씨는 {value}[이에요|예요].", "직업은 {value}[이에요|예요]."),
        ),
        "instrument": _attribute(
            INSTRUMENTS,
            ask=("Which instrument does {name} play?", "What does {name} play?"),
            say=("{name} plays the {value}.", "It is the {value}."),
            ask_ko=("{name} 씨는 무슨 악기를 연주해요?", "{name} 씨의 악기는 뭐예요?"),
            say_ko=("{name} 씨는 {value}[을|를] 연주해요.", "악기는 {value}[이에요|예요]."),
        ),
        "pet": _attribute(
            ANIMALS,
            ask=("Which animal does {name} keep?", "What pet does {name} have?"),
            say=("{name} keeps a {value}.", "The pet of {name} is a {value}."),
            ask_ko=("{name} 씨는 무슨 동물을 길러요?", "{name} 씨의 반려동물은 뭐예요?"),
            say_ko=("{name} 씨는 {value}[을|를] 길러요.", "반려동물은 {value}[이에요|예요]."),
        ),
    },
}

_KOREAN_SYLLABLES = {korean: latin for latin, korean in SYLLABLES.items()}
_BARE_VALUE = {"en": (Template("{value}"), Template("the {value}"), Template("a {value}")), "ko": (Template("{value}"),)}


def name_in(language: str, name: str) -> str:
    """An invented name as it is written in a language."""
    if language == "en":
        return name
    return "".join(SYLLABLES[name[i : i + 2].lower()] for i in range(0, len(name), 2))


def name_from(text: str) -> str | None:
    """The invented name that the text writes, or None if it is no such name."""
    latin = "".join(_KOREAN_SYLLABLES.get(letter, letter) for letter in text).lower()
    syllables = [latin[i : i + 2] for i in range(0, len(latin), 2)]
    return latin.capitalize() if syllables and all(s in SYLLABLES for s in syllables) else None


class Almanac(NamedTuple):
    """The facts of the world, the same whatever the seed of a generated data set."""

    kinds: dict[str, str]  # name: kind
    facts: dict[tuple[str, str], str]  # (name, attribute): English value
    unknown: list[str]  # names that mean nothing


@cache
def almanac() -> Almanac:
    """The facts of the world."""
    rng = Random("the almanac of the closed world")
    names = ["".join(syllables).capitalize() for syllables in product(SYLLABLES, repeat=3) if len(set(syllables)) > 2]
    rng.shuffle(names)
    kinds = {names.pop(): kind for kind in ATTRIBUTES for _ in range(ENTITIES_PER_KIND)}
    facts = {
        (name, attribute): rng.choice(list(about.values))
        for name, kind in kinds.items()
        for attribute, about in ATTRIBUTES[kind].items()
    }
    return Almanac(kinds, facts, names[:UNKNOWN_NAMES])


def state(name: str, attribute: str, value: str, language: str, wording: int = 0) -> str:
    """A sentence saying that the attribute of what is so named has this value."""
    about = ATTRIBUTES[almanac().kinds[name]][attribute]
    word = value if language == "en" else about.values[value]
    return about.statements[language][wording].write(name=name_in(language, name), value=word)


def other_value(kind: str, attribute: str, value: str | None, rng: Random) -> str:
    """Some value that the attribute might have, other than the given one."""
    return rng.choice([candidate for candidate in ATTRIBUTES[kind][attribute].values if candidate != value])


class Fact(Family):
    """Something that is known of a country, a creature or a person of the world: (kind, name, attribute)."""

    name = "fact"
    word_budget: ClassVar = {"en": 17, "ko": 12}

    def intents(self) -> list[Content]:
        known = almanac()
        return [(known.kinds[name], name, attribute) for name, attribute in known.facts]

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
        about = ATTRIBUTES[kind][attribute]
        value = almanac().facts[name, attribute]
        expected = value if language == "en" else about.values[value]
        return any(
            slots["value"].lower() == expected and name_from(slots.get("name", name_in(language, name))) == name
            for slots in read_any(about.statements[language] + _BARE_VALUE[language], answer)
        )


class Unknown(Family):
    """The same questions about names that mean nothing: the honest answer is 'I don't know', in words."""

    name = "unknown"
    word_budget: ClassVar = {"en": 20, "ko": 13}
    answers = wordings(en=IGNORANCE["en"], ko=IGNORANCE["ko"])
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
        kinds = [(kind, attribute) for kind, about in ATTRIBUTES.items() for attribute in about]
        return [
            (kind, name, attribute)
            for index, name in enumerate(almanac().unknown)
            for kind, attribute in [kinds[index % len(kinds)]]
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
        for attribute, about in attributes.items()
        for template in about.questions[language]
    )


def _question_about(turns: tuple[str, ...], language: str) -> Content | None:
    if len(turns) != 1:
        return None
    for kind, attribute, template in _questions(language):
        slots = template.read(turns[0])
        if slots and (name := name_from(slots["name"])):
            return (kind, name, attribute)
    return None


def _claim(content: Content, value: str, language: str, rng: Random) -> str:
    kind, name, attribute = content
    about = ATTRIBUTES[kind][attribute]
    word = value if language == "en" else about.values[value]
    return pick(about.statements[language], rng, name=name_in(language, name), value=word)


class MemberList(Family):
    """So many members of a category, none twice: (category, count, member not to name or '')."""

    name = "list"
    word_budget: ClassVar = {"en": 19, "ko": 14}
    questions = wordings(
        en=(
            "Name {count} {category}.",
            "Can you list {count} {category}?",
            "Please give me {count} {category}.",
            "Name {count} {category} other than {excluded}.",
            "Please list {count} {category}, but not {excluded}.",
        ),
        ko=(
            "{category} {count} 가지를 말해 주세요.",
            "{category} {count} 가지만 알려 주세요.",
            "{excluded} 말고 {category} {count} 가지를 말해 주세요.",
            "{excluded} 말고 {category} {count} 가지만 알려 주세요.",
        ),
    )
    answers = wordings(
        en=("{members}.", "Here you are: {members}.", "{count} {category} are {members}."),
        ko=("{members}.", "{members}[이|가] 있어요.", "{category}에는 {members}[이|가] 있어요."),
    )

    def intents(self) -> list[Content]:
        return [
            (category, count, excluded)
            for category, (_, members) in CATEGORIES.items()
            for count in COUNTS
            for excluded in ("", *members)
        ]

    def ask(self, content: Content, language: str, rng: Random) -> list[Message]:
        excluded = content[2]
        choices = tuple(t for t in self.questions[language] if ("{excluded}" in t.text) == bool(excluded))
        return user_turn(
            pick(choices, rng, **self._slots(content, language), excluded=excluded and self._members(content, language)[excluded])
        )

    def understand(self, turns: tuple[str, ...], language: str) -> Content | None:
        if len(turns) != 1:
            return None
        for slots in read_any(self.questions[language], turns[0]):
            for category, (korean, members) in CATEGORIES.items():
                if slots["category"].lower() != (category if language == "en" else korean):
                    continue
                counts = {words[language == "ko"]: count for count, words in COUNTS.items()}
                excluded = {(en if language == "en" else ko): en for en, ko in members.items()} | {"": ""}
                count, without = counts.get(slots["count"].lower()), excluded.get(slots.get("excluded", "").lower())
                if count is not None and without is not None:
                    return (category, count, without)
        return None

    def write_right(self, content: Content, language: str, rng: Random) -> str:
        return self._write(content, language, self._draw(content, language, content[1], rng), rng)

    def write_wrong(self, content: Content, language: str, rng: Random) -> str:
        count, slipped = content[1], rng.choice(("count", "stranger", "repeat"))
        if slipped == "count":
            members = self._draw(content, language, count + rng.choice((-1, 1)), rng)
        elif slipped == "repeat":
            members = self._draw(content, language, count - 1, rng)
            members.append(rng.choice(members))
        else:
            members = self._draw(content, language, count - 1, rng)
            others = [c for c in CATEGORIES if c != content[0]]
            members.append(rng.choice(list(self._members((rng.choice(others),), language).values())))
            if self._names_right_ones(content, language, members):  # red may be a colour and a flower's name
                members.append(members[0])
        return self._write(content, language, members, rng)

    def is_right(self, content: Content, language: str, answer: str) -> bool:
        expected = self._slots(content, language)
        return any(
            all(slots.get(slot, str(value)).lower() == value for slot, value in expected.items())
            and self._names_right_ones(content, language, _split_members(slots["members"], language))
            for slots in read_any(self.answers[language], answer)
        )

    @staticmethod
    def _members(content: Content, language: str) -> dict[str, str]:
        return {en: en if language == "en" else ko for en, ko in CATEGORIES[content[0]][1].items()}

    @staticmethod
    def _slots(content: Content, language: str) -> dict[str, str]:
        category, korean = content[0], language == "ko"
        return {"category": CATEGORIES[category][0] if korean else category, "count": COUNTS[content[1]][korean]}

    def _draw(self, content: Content, language: str, count: int, rng: Random) -> list[str]:
        return rng.sample([word for en, word in self._members(content, language).items() if en != content[2]], count)

    def _names_right_ones(self, content: Content, language: str, members: list[str]) -> bool:
        allowed = [word for en, word in self._members(content, language).items() if en != content[2]]
        return len(members) == content[1] and len(set(members)) == len(members) and all(member in allowed for member in members)

    def _write(self, content: Content, language: str, members: list[str], rng: Random) -> str:
        return pick(self.answers[language], rng, members=join_members(members, language), **self._slots(content, language))


def join_members(members: list[str], language: str) -> str:
    """'a, b and c' in English, 'a, b, c' in Korean."""
    if language == "ko" or len(members) < 2:
        return ", ".join(members)
    return f"{', '.join(members[:-1])} and {members[-1]}"


def _split_members(text: str, language: str) -> list[str]:
    joined = text.lower().replace(" and ", ", ") if language == "en" else text
    return [member.strip() for member in joined.split(",")]
