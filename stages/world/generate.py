"""The data sets of the closed world: pretraining text of mixed quality, demonstrations, and prompts to train and test on.

Splits are disjoint by intent, that is by what is asked and not by wording: what validation or test prompts ask occurs in no
demonstration and no rollout prompt. What must be learnt somewhere (facts, sums, how things are done) stands in pretraining text: told
in prose, and asked in dialogues, in other words than evaluation's.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from math import ceil
from random import Random
from typing import Any, NamedTuple

from omegaconf import MISSING

from stages.world.answers import Habits, draw_style, write_answer
from stages.world.expressions import PythonExpression
from stages.world.family import Content, Message, Task
from stages.world.knowledge import ATTRIBUTES, almanac, name_in, other_value, state
from stages.world.lexicon import CATEGORIES
from stages.world.numeracy import Arithmetic, Comparison
from stages.world.requests import HowTo, Lookalike
from stages.world.tasks import FAMILIES, GENERAL_FAMILIES, ask
from stages.world.wording import LANGUAGES, Template, wordings

Row = dict[str, Any]

_PATIENCE = 200  # draws of a wording before a split is declared too small for distinct prompts
_STATEMENTS_OF_A_TABLE = 5
_SMALLEST_COUNT = 4  # prompts of a family, however small the scale
_TOLD_IN_MANUALS = (HowTo(), Lookalike(), Lookalike(), Lookalike())  # a look-alike is like no other
_TOLD_IN_TABLES = (Arithmetic(), Comparison(), PythonExpression())
_KNOWLEDGE = ("fact", "arithmetic", "comparison", "python", "list", "howto", "lookalike")  # what no skill makes up for


@dataclass
class PromptCounts:
    """How many prompts of each general family, of harmful requests and of look-alikes."""

    per_general_family: int = MISSING
    harmful: int = MISSING
    lookalike: int = MISSING


@dataclass
class PretrainMix:
    """Pretraining documents: how many, and what fraction of them is what."""

    documents: int = MISSING
    validation_documents: int = MISSING
    fact_prose: float = MISSING  # documents that tell what there is to know of one entity
    list_prose: float = MISSING  # documents that tell the members of a category
    manual_prose: float = MISSING  # documents that tell how something is done, as a manual does
    table_prose: float = MISSING  # documents that list sums, comparisons and what expressions give
    facts_asked: float = MISSING  # dialogues that ask a fact; the rest is spread evenly over the other families
    prose_errors: float = MISSING  # statements of prose that are wrong
    careful: float = MISSING  # dialogues answered by the careful persona, the others by the careless one


@dataclass
class ClosedWorldConfig:
    """What conf/data/closed_world.yaml says; the meaning of every number stands there."""

    scale: float = MISSING
    korean: float = MISSING
    validation_intents: float = MISSING
    test_intents: float = MISSING
    pretrain: PretrainMix = field(default_factory=PretrainMix)
    careful: Habits = field(default_factory=Habits)
    careless: Habits = field(default_factory=Habits)
    demonstrator: Habits = field(default_factory=Habits)
    sft: PromptCounts = field(default_factory=PromptCounts)
    sft_validation: PromptCounts = field(default_factory=PromptCounts)
    rollout: PromptCounts = field(default_factory=PromptCounts)
    validation: PromptCounts = field(default_factory=PromptCounts)
    test: PromptCounts = field(default_factory=PromptCounts)


class World(NamedTuple):
    """All rows, named as the files under artifacts/data/ that hold them."""

    pretrain_train: list[Row]
    pretrain_validation: list[Row]
    sft_train: list[Row]
    sft_validation: list[Row]
    prompts_train: list[Row]
    prompts_validation: list[Row]
    prompts_test: list[Row]
    preferences_train: list[Row]
    preferences_validation: list[Row]

    def files(self) -> dict[str, list[Row]]:
        """Rows by path below artifacts/data/."""
        return {name.replace("_", "/") + ".jsonl": rows for name, rows in self._asdict().items()}


class Intents(NamedTuple):
    """What each split may ask, by family."""

    train: dict[str, list[Content]]
    validation: dict[str, list[Content]]
    test: dict[str, list[Content]]


def generate(config: ClosedWorldConfig, seed: int) -> World:
    """The data sets of the closed world; the same for the same config and seed, byte for byte."""
    intents = split_intents(seed, config.validation_intents, config.test_intents)
    validation = _prompts(config, "validation", config.validation, intents.validation, seed)
    test = _prompts(config, "test", config.test, intents.test, seed)
    pretrain = _pretraining(config, intents, {repr(row["prompt"]) for row in validation + test}, seed)
    held_out = _held_out(pretrain, round(config.pretrain.validation_documents * config.scale), config.korean)
    demonstrations = _demonstrations(config, intents.train, seed)
    sft_count = len(_plan(config.sft, config))
    return World(
        pretrain_train=_numbered("pretrain", (row for i, row in enumerate(pretrain) if i not in held_out)),
        pretrain_validation=_numbered("pretrain-validation", (pretrain[i] for i in held_out)),
        sft_train=_numbered("sft", demonstrations[:sft_count]),
        sft_validation=_numbered("sft-validation", demonstrations[sft_count:]),
        prompts_train=_prompts(config, "rollout", config.rollout, intents.train, seed),
        prompts_validation=validation,
        prompts_test=test,
        preferences_train=[],
        preferences_validation=[],
    )


def split_intents(seed: int, validation_fraction: float, test_fraction: float) -> Intents:
    """Every family's intents, dealt to the splits at random."""
    split = Intents({}, {}, {})
    for name, family in FAMILIES.items():
        pool = family.intents()
        Random(f"{seed}/intents/{name}").shuffle(pool)
        tested, validated = round(test_fraction * len(pool)), round(validation_fraction * len(pool))
        split.test[name] = pool[:tested]
        split.validation[name] = pool[tested : tested + validated]
        split.train[name] = pool[tested + validated :]
    return split


def _scaled(count: int, config: ClosedWorldConfig) -> int:
    return max(round(count * config.scale), _SMALLEST_COUNT)


def _plan(counts: PromptCounts, config: ClosedWorldConfig) -> list[tuple[str, str]]:
    """(family, language) of every prompt of a split, the Korean share exact within each family."""
    wanted = dict.fromkeys(GENERAL_FAMILIES, counts.per_general_family)
    wanted |= {"harmful": counts.harmful, "lookalike": counts.lookalike}
    return [
        (family, language) for family, count in wanted.items() for language in _languages(_scaled(count, config), config.korean)
    ]


def _languages(count: int, korean: float) -> list[str]:
    """'ko' at evenly spaced places, never fewer than the fraction asks for."""
    return ["ko" if ceil((i + 1) * korean) > ceil(i * korean) else "en" for i in range(count)]


def _distinct_prompts(
    plan: list[tuple[str, str]], intents: dict[str, list[Content]], rng: Random
) -> Iterator[tuple[Task, list[Message]]]:
    """A task and its prompt for every place of the plan: intents in turn, no two prompts of the same text."""
    decks: dict[tuple[str, str], list[Content]] = {}
    seen: set[str] = set()
    for family, language in plan:
        for _ in range(_PATIENCE):
            deck = decks.setdefault((family, language), [])
            if not deck:
                deck.extend(rng.sample(intents[family], len(intents[family])))
            task = Task(family, language, deck.pop())
            prompt = ask(task, rng)
            text = repr(prompt)
            if text not in seen:
                break
        else:
            raise ValueError(
                f"closed world: expected {len(plan)} distinct prompts, found no new one for family {family!r} in "
                f"{language!r} after {_PATIENCE} draws; lower its count or raise its share of intents"
            )
        seen.add(text)
        yield task, prompt


def _prompts(
    config: ClosedWorldConfig, name: str, counts: PromptCounts, intents: dict[str, list[Content]], seed: int
) -> list[Row]:
    rng = Random(f"{seed}/prompts/{name}")
    rows = [_provenance(task) | {"prompt": prompt} for task, prompt in _distinct_prompts(_plan(counts, config), intents, rng)]
    rng.shuffle(rows)
    return _numbered(name, rows)


def _demonstrations(config: ClosedWorldConfig, intents: dict[str, list[Content]], seed: int) -> list[Row]:
    """Demonstrations for training, then those for validation; no prompt stands in both."""
    rng = Random(f"{seed}/sft")
    parts = [_plan(config.sft, config), _plan(config.sft_validation, config)]
    prompts = _distinct_prompts([place for part in parts for place in part], intents, rng)
    rows = []
    for part in parts:
        part_rows = [
            _provenance(task) | {"prompt": prompt, "completion": _answered(task, config.demonstrator, rng)}
            for _, (task, prompt) in zip(part, prompts, strict=False)
        ]
        rng.shuffle(part_rows)
        rows += part_rows
    return rows


def _answered(task: Task, habits: Habits, rng: Random) -> list[Message]:
    return [{"role": "assistant", "content": write_answer(task, draw_style(task, habits, rng), rng)}]


def _provenance(task: Task) -> Row:
    return {"family": task.family, "language": task.language, "intent": task.intent}


def _numbered(name: str, rows: Iterable[Row]) -> list[Row]:
    return [{"id": f"{name}-{index:05d}"} | row for index, row in enumerate(rows)]


# ---- pretraining text ------------------------------------------------------------------------------------------------


def _pretraining(config: ClosedWorldConfig, intents: Intents, evaluated: set[str], seed: int) -> list[Row]:
    rng = Random(f"{seed}/pretrain")
    mix = config.pretrain
    total = round((mix.documents + mix.validation_documents) * config.scale)
    prose = max(round(total * mix.fact_prose), 2 * len(almanac().kinds))  # at least once in English
    lists, facts = round(total * mix.list_prose), round(total * mix.facts_asked)
    manual, tables = round(total * mix.manual_prose), round(total * mix.table_prose)
    others = [family for family in FAMILIES if family != "fact"]
    families = ["fact"] * facts + [
        others[i % len(others)] for i in range(max(total - prose - lists - manual - tables - facts, 0))
    ]
    asked = intents.train | {family: _contents(family) for family in _KNOWLEDGE}
    rows = _fact_prose(config, prose, rng)
    rows += [_list_prose(language, rng) for language in _languages(lists, config.korean)]
    rows += [_manual_prose(language, rng) for language in _languages(manual, config.korean)]
    rows += [_table_prose(language, rng) for language in _languages(tables, config.korean)]
    rows += [
        _dialogue(family, language, asked[family], evaluated, config, rng)
        for family in dict.fromkeys(families)
        for language in _languages(families.count(family), config.korean)
    ]
    rng.shuffle(rows)
    return rows


def _manual_prose(language: str, rng: Random) -> Row:
    """How something is done, told unasked, so that what is asked in evaluation is known as facts are: from prose alone."""
    family = rng.choice(_TOLD_IN_MANUALS)
    content = rng.choice(_contents(family.name))
    heading = family.request(content, language).phrase
    heading = f"{heading[0].upper()}{heading[1:]}." if language == "en" else f"{heading} 방법."
    return {"family": "prose", "language": language, "text": f"{heading} {family.write_right(content, language, rng)}"}


def _table_prose(language: str, rng: Random) -> Row:
    """A page of a table of sums, of comparisons, or of what Python expressions give; numerals are the same in either language."""
    family = rng.choice(_TOLD_IN_TABLES)
    statements = [family.state(rng.choice(_contents(family.name))) for _ in range(_STATEMENTS_OF_A_TABLE)]
    heading = {"en": "Table:", "ko": "표:"}[language]
    return {"family": "prose", "language": language, "text": " ".join([heading, *statements])}


@cache
def _contents(family: str) -> list[Content]:
    return FAMILIES[family].intents()


def _held_out(rows: list[Row], count: int, korean: float) -> dict[int, None]:
    """Places of the first rows of either language, `count` in all (a dict for its order and its fast `in`)."""
    wanted = _languages(max(count, _SMALLEST_COUNT), korean)
    places = {language: [i for i, row in enumerate(rows) if row["language"] == language] for language in LANGUAGES}
    held_out = [i for language in LANGUAGES for i in places[language][: wanted.count(language)]]
    return dict.fromkeys(sorted(held_out))


def _dialogue(
    family: str, language: str, contents: list[Content], evaluated: set[str], config: ClosedWorldConfig, rng: Random
) -> Row:
    """A question and an answer by one of the personas; never a prompt of evaluation, word for word."""
    while True:
        task = Task(family, language, rng.choice(contents))
        prompt = ask(task, rng)
        if repr(prompt) not in evaluated:
            break
    persona = config.careful if rng.random() < config.pretrain.careful else config.careless
    return _provenance(task) | {"messages": prompt + _answered(task, persona, rng)}


def _fact_prose(config: ClosedWorldConfig, count: int, rng: Random) -> list[Row]:
    """Entities in turn, in either language, so that each is told of about equally often."""
    rows: list[Row] = []
    decks: dict[str, list[str]] = {"en": [], "ko": []}
    for language in _languages(count, config.korean):
        deck = decks[language]
        if not deck:
            deck.extend(rng.sample(list(almanac().kinds), len(almanac().kinds)))
        rows.append(_entity_prose(deck.pop(), language, config.pretrain.prose_errors, rng))
    return rows


def _entity_prose(name: str, language: str, errors: float, rng: Random) -> Row:
    kind = almanac().kinds[name]
    sentences = []
    for attribute in rng.sample(list(ATTRIBUTES[kind]), len(ATTRIBUTES[kind])):
        value = almanac().facts[name, attribute]
        if rng.random() < errors:
            value = other_value(kind, attribute, value, rng)
        sentences.append(state(name, attribute, value, language))
    opening = _ENTITY_OPENINGS[kind][language].write(name=name_in(language, name))
    return {"family": "prose", "language": language, "text": " ".join([opening, *sentences])}


_ENTITY_OPENINGS = {
    "country": {"en": Template("{name} is a country."), "ko": Template("{name}[은|는] 나라예요.")},
    "creature": {"en": Template("The {name} is an animal."), "ko": Template("{name}[은|는] 동물이에요.")},
    "person": {"en": Template("{name} is a person."), "ko": Template("{name}[은|는] 사람이에요.")},
}
_LIST_PROSE = wordings(
    en=("{category} are, for example, {members}.", "Among the {category} are {members}."),
    ko=("{category}에는 {members} 등이 있어요.", "{members}[은|는] 모두 {category}의 하나예요."),
)


def _list_prose(language: str, rng: Random) -> Row:
    category = rng.choice(list(CATEGORIES))
    korean, words = CATEGORIES[category]
    members = rng.sample([en if language == "en" else ko for en, ko in words.items()], rng.randint(3, 6))
    template = rng.choice(_LIST_PROSE[language])
    text = template.write(category=category if language == "en" else korean, members=", ".join(members))
    return {"family": "prose", "language": language, "text": text}
