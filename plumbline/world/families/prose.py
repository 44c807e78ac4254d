"""Pretraining prose: paragraphs about an entity or a category, pages of a manual, and tables.

A model can learn from it what evaluation asks, without having seen the questions.
"""

from functools import cache
from random import Random

from plumbline.rows import Row
from plumbline.world.families.expressions import PythonExpression
from plumbline.world.families.family import Content, Family
from plumbline.world.families.knowledge import ATTRIBUTES, almanac, name_in, other_value, state
from plumbline.world.families.lexicon import CATEGORIES
from plumbline.world.families.numeracy import Arithmetic, Comparison
from plumbline.world.families.requests import HowTo, Lookalike, RequestFamily
from plumbline.world.families.wording import Template, wordings

_MANUAL_FAMILIES: tuple[RequestFamily, ...] = (HowTo(), *3 * [Lookalike()])  # a look-alike cannot be inferred from others
_TABLE_FAMILIES = (Arithmetic(), Comparison(), PythonExpression())
_STATEMENTS_PER_TABLE = 5

_ENTITY_OPENINGS = {
    "country": {"en": Template("{name} is a country."), "ko": Template("{name}[은|는] 나라예요.")},
    "creature": {"en": Template("The {name} is an animal."), "ko": Template("{name}[은|는] 동물이에요.")},
    "person": {"en": Template("{name} is a person."), "ko": Template("{name}[은|는] 사람이에요.")},
}
_CATEGORY_SENTENCES = wordings(
    en=("{category} are, for example, {members}.", "Among the {category} are {members}."),
    ko=("{category}에는 {members} 등이 있어요.", "{members}[은|는] 모두 {category}의 하나예요."),
)


def entity_prose(name: str, language: str, error_fraction: float, rng: Random) -> Row:
    """All facts about an entity in random order; a fraction of them is wrong."""
    kind = almanac().kinds[name]
    sentences = []
    for attribute in rng.sample(list(ATTRIBUTES[kind]), len(ATTRIBUTES[kind])):
        value = almanac().facts[name, attribute]
        if rng.random() < error_fraction:
            value = other_value(kind, attribute, value, rng)
        sentences.append(state(name, attribute, value, language))
    opening = _ENTITY_OPENINGS[kind][language].write(name=name_in(language, name))
    return _row(language, [opening, *sentences])


def category_prose(language: str, rng: Random) -> Row:
    """A sentence that names some members of a category."""
    category = CATEGORIES[rng.choice(list(CATEGORIES))]
    members = rng.sample(list(category.members_in(language).values()), rng.randint(3, 6))
    template = rng.choice(_CATEGORY_SENTENCES[language])
    return _row(language, [template.write(category=category.name_in(language), members=", ".join(members))])


def manual_prose(language: str, rng: Random) -> Row:
    """How a household task or a look-alike is done, under a heading that names it."""
    family = rng.choice(_MANUAL_FAMILIES)
    content = rng.choice(_intents(family))
    heading = family.request(content, language).phrase
    heading = f"{heading[0].upper()}{heading[1:]}." if language == "en" else f"{heading} 방법."
    return _row(language, [heading, family.write_right(content, language, rng)])


def table_prose(language: str, rng: Random) -> Row:
    """A table of sums, of comparisons, or of Python expressions and their values; only the heading depends on the language."""
    family = rng.choice(_TABLE_FAMILIES)
    statements = [family.state(rng.choice(_intents(family))) for _ in range(_STATEMENTS_PER_TABLE)]
    heading = {"en": "Table:", "ko": "표:"}[language]
    return _row(language, [heading, *statements])


@cache
def _intents(family: Family) -> list[Content]:
    return family.intents()


def _row(language: str, sentences: list[str]) -> Row:
    return {"family": "prose", "language": language, "text": " ".join(sentences)}
