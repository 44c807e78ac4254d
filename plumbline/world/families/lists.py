"""Lists of members of a category, such as three fruits other than the apple."""

from random import Random
from typing import ClassVar

from plumbline.rows import Message
from plumbline.world.families.family import Content, Family, user_turn
from plumbline.world.families.lexicon import CATEGORIES, COUNTS
from plumbline.world.families.wording import pick, read_any, wordings


class MemberList(Family):
    """A number of different members of a category: (category, count, member that must not be named, or '')."""

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
            (name, count, excluded)
            for name, category in CATEGORIES.items()
            for count in COUNTS
            for excluded in ("", *category.members)
        ]

    def ask(self, content: Content, language: str, rng: Random) -> list[Message]:
        name, _, excluded = content
        choices = tuple(template for template in self.questions[language] if ("{excluded}" in template.text) == bool(excluded))
        word = CATEGORIES[name].members_in(language)[excluded] if excluded else ""
        return user_turn(pick(choices, rng, **self._slots(content, language), excluded=word))

    def understand(self, turns: tuple[str, ...], language: str) -> Content | None:
        if len(turns) != 1:
            return None
        counts = {words[language]: count for count, words in COUNTS.items()}
        for slots in read_any(self.questions[language], turns[0]):
            for name, category in CATEGORIES.items():
                if slots["category"].lower() != category.name_in(language):
                    continue
                members = {word: member for member, word in category.members_in(language).items()} | {"": ""}
                count, excluded = counts.get(slots["count"].lower()), members.get(slots.get("excluded", "").lower())
                if count is not None and excluded is not None:
                    return (name, count, excluded)
        return None

    def write_right(self, content: Content, language: str, rng: Random) -> str:
        return self._write(content, language, self._draw(content, language, content[1], rng), rng)

    def write_wrong(self, content: Content, language: str, rng: Random) -> str:
        name, count, _ = content
        slip = rng.choice(("count", "stranger", "repeat"))
        if slip == "count":
            members = self._draw(content, language, count + rng.choice((-1, 1)), rng)
        elif slip == "repeat":
            members = self._draw(content, language, count - 1, rng)
            members.append(rng.choice(members))
        else:
            members = self._draw(content, language, count - 1, rng)
            other = rng.choice([category for category in CATEGORIES if category != name])
            members.append(rng.choice(list(CATEGORIES[other].members_in(language).values())))
            if self._all_right(content, language, members):  # 배 is both a pear and a ship
                members.append(members[0])
        return self._write(content, language, members, rng)

    def is_right(self, content: Content, language: str, answer: str) -> bool:
        expected = self._slots(content, language)
        return any(
            all(slots.get(slot, value).lower() == value for slot, value in expected.items())
            and self._all_right(content, language, _split_members(slots["members"], language))
            for slots in read_any(self.answers[language], answer)
        )

    @staticmethod
    def _slots(content: Content, language: str) -> dict[str, str]:
        name, count, _ = content
        return {"category": CATEGORIES[name].name_in(language), "count": COUNTS[count][language]}

    @staticmethod
    def _allowed(content: Content, language: str) -> list[str]:
        name, _, excluded = content
        return [word for member, word in CATEGORIES[name].members_in(language).items() if member != excluded]

    def _draw(self, content: Content, language: str, count: int, rng: Random) -> list[str]:
        return rng.sample(self._allowed(content, language), count)

    def _all_right(self, content: Content, language: str, members: list[str]) -> bool:
        """Whether the members are as many as asked for, all different, and all allowed."""
        allowed = self._allowed(content, language)
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
