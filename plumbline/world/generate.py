"""The data sets of the closed world: pretraining text of mixed quality, demonstrations, and prompts to train and test on.

Splits are disjoint by intent, which is what a prompt asks, independent of its wording and language. What validation or test prompts
ask occurs in no demonstration and no rollout prompt. Knowledge (facts, sums, how things are done) is in the pretraining text: told in
prose, and asked in dialogues whose prompts differ from those of evaluation.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, islice, pairwise
from math import ceil
from random import Random
from typing import NamedTuple

from omegaconf import MISSING

from plumbline.pipeline.ranges import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, outside
from plumbline.rows import LANGUAGES, Message, Row, assistant
from plumbline.world.answers import Habits, Style, draw_style, write_answer
from plumbline.world.families.catalog import FAMILIES, GENERAL_FAMILIES, ask
from plumbline.world.families.family import Content, Task
from plumbline.world.families.knowledge import almanac
from plumbline.world.families.prose import category_prose, entity_prose, manual_prose, table_prose

__all__ = [
    "FAMILIES",
    "ClosedWorldConfig",
    "Habits",
    "Style",
    "Task",
    "World",
    "ask",
    "draw_style",
    "generate",
    "split_intents",
    "write_answer",
]

_MOST_DRAWS = 200  # draws for one prompt before a split is declared too small for distinct prompts
_SMALLEST_COUNT = 4  # prompts of a family, however small the scale
_KNOWLEDGE = ("fact", "arithmetic", "comparison", "python", "list", "howto", "lookalike")  # pretraining asks all their intents


@dataclass
class PromptCounts:
    """How many prompts of each general family, of harmful requests and of look-alikes, and which fraction of each is Korean."""

    korean: float = MISSING
    per_general_family: int = MISSING
    harmful: int = MISSING
    lookalike: int = MISSING

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        counts = dict.fromkeys(("per_general_family", "harmful", "lookalike"), NOT_NEGATIVE)
        return outside(self, korean=FRACTION, **counts)


@dataclass
class PretrainMix:
    """How many pretraining documents there are, and which fraction of them is of each kind."""

    documents: int = MISSING
    validation_documents: int = MISSING
    korean: float = MISSING  # fraction of the documents that are Korean
    fact_prose: float = MISSING  # documents that tell the facts about one entity
    list_prose: float = MISSING  # documents that name members of a category
    manual_prose: float = MISSING  # documents that tell how something is done
    table_prose: float = MISSING  # documents that list sums, comparisons or values of expressions
    asked: dict[str, float] = MISSING  # the other documents are dialogues: how often each family is asked, relative to the others
    prose_errors: float = MISSING  # fraction of the statements about entities that are wrong
    careful: float = MISSING  # fraction of the dialogues that the careful persona answers; the careless one answers the others

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        kinds = ("fact_prose", "list_prose", "manual_prose", "table_prose")
        complaints = outside(self, documents=COUNT, validation_documents=COUNT)
        complaints += outside(self, **dict.fromkeys((*kinds, "korean", "prose_errors", "careful"), FRACTION))
        if not complaints and (total := sum(getattr(self, kind) for kind in kinds)) > 1:
            complaints.append(f"{', '.join(kinds)}: expected at most 1 together, found {total:g}")
        if set(self.asked) != set(FAMILIES) or min(self.asked.values()) < 0 or not sum(self.asked.values()):
            complaints.append(f"asked: expected a number of at least 0 for each of {', '.join(FAMILIES)}, found {self.asked}")
        return complaints


@dataclass
class ClosedWorldConfig:
    """The values of conf/data/closed_world.yaml, which explains each."""

    scale: float = MISSING
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

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        complaints = outside(self, scale=POSITIVE, validation_intents=FRACTION, test_intents=FRACTION)
        if not complaints and self.validation_intents + self.test_intents >= 1:
            complaints.append(
                f"validation_intents, test_intents: expected less than 1 together, found {self.validation_intents} and {self.test_intents}"
            )
        return complaints


class World(NamedTuple):
    """All rows, named like the files below artifacts/data/ that hold them."""

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
    """The data sets of the closed world. The same config and seed give the same rows, byte for byte.

    Raises:
        ValueError: a split asks for more distinct prompts than its intents allow.
    """
    intents = split_intents(seed, config.validation_intents, config.test_intents)
    validation = _prompts(config, "validation", config.validation, intents.validation, seed)
    test = _prompts(config, "test", config.test, intents.test, seed)
    pretrain = _pretraining(config, intents, {repr(row["prompt"]) for row in validation + test}, seed)
    held_out = _held_out(pretrain, round(config.pretrain.validation_documents * config.scale), config.pretrain.korean)
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
    """Every family's intents, divided among the splits at random."""
    split = Intents({}, {}, {})
    for name, family in FAMILIES.items():
        pool = family.intents()
        Random(f"{seed}/intents/{name}").shuffle(pool)
        test, validation = round(test_fraction * len(pool)), round(validation_fraction * len(pool))
        split.test[name] = pool[:test]
        split.validation[name] = pool[test : test + validation]
        split.train[name] = pool[test + validation :]
    return split


def _scaled(count: int, config: ClosedWorldConfig) -> int:
    return max(round(count * config.scale), _SMALLEST_COUNT)


def _plan(counts: PromptCounts, config: ClosedWorldConfig) -> list[tuple[str, str]]:
    """(family, language) of every prompt of a split, with the Korean share exact within each family."""
    by_family = dict.fromkeys(GENERAL_FAMILIES, counts.per_general_family)
    by_family |= {"harmful": counts.harmful, "lookalike": counts.lookalike}
    return [
        (family, language)
        for family, count in by_family.items()
        for language in _languages(_scaled(count, config), counts.korean)
    ]


def _languages(count: int, korean: float) -> list[str]:
    """`count` languages, with 'ko' evenly spaced and its share rounded up."""
    return ["ko" if ceil((i + 1) * korean) > ceil(i * korean) else "en" for i in range(count)]


def _distinct_prompts(
    plan: list[tuple[str, str]], intents: dict[str, list[Content]], rng: Random
) -> Iterator[tuple[Task, list[Message]]]:
    """A task and its prompt for every item of the plan. Intents take turns, and no two prompts have the same text."""
    decks: dict[tuple[str, str], list[Content]] = {}
    seen: set[str] = set()
    for family, language in plan:
        for _ in range(_MOST_DRAWS):
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
                f"closed world: expected {len(plan)} distinct prompts, found no new one for family {family!r} in language "
                f"{language!r} after {_MOST_DRAWS} draws. Lower its count, or raise its share of intents, in conf/data/closed_world.yaml."
            )
        seen.add(text)
        yield task, prompt


def _prompts(
    config: ClosedWorldConfig, name: str, counts: PromptCounts, intents: dict[str, list[Content]], seed: int
) -> list[Row]:
    """The prompts of a split in random order."""
    rng = Random(f"{seed}/prompts/{name}")
    rows = [_provenance(task) | {"prompt": prompt} for task, prompt in _distinct_prompts(_plan(counts, config), intents, rng)]
    rng.shuffle(rows)
    return _numbered(name, rows)


def _demonstrations(config: ClosedWorldConfig, intents: dict[str, list[Content]], seed: int) -> list[Row]:
    """Demonstrations for training, then those for validation. No prompt is in both."""
    rng = Random(f"{seed}/sft")
    train, validation = _plan(config.sft, config), _plan(config.sft_validation, config)
    prompts = _distinct_prompts(train + validation, intents, rng)
    rows: list[Row] = []
    for plan in (train, validation):
        split = [
            _provenance(task) | {"prompt": prompt, "completion": _answer(task, config.demonstrator, rng)}
            for task, prompt in islice(prompts, len(plan))
        ]
        rng.shuffle(split)
        rows += split
    return rows


def _answer(task: Task, habits: Habits, rng: Random) -> list[Message]:
    return assistant(write_answer(task, draw_style(task, habits, rng), rng))


def _provenance(task: Task) -> Row:
    return {"family": task.family, "language": task.language, "intent": task.intent}


def _numbered(name: str, rows: Iterable[Row]) -> list[Row]:
    return [{"id": f"{name}-{index:05d}"} | row for index, row in enumerate(rows)]


# ---- pretraining text ------------------------------------------------------------------------------------------------


def _pretraining(config: ClosedWorldConfig, intents: Intents, evaluated: set[str], seed: int) -> list[Row]:
    """Prose and dialogues in random order; `evaluated` holds the prompts that no dialogue may ask."""
    rng = Random(f"{seed}/pretrain")
    mix, korean = config.pretrain, config.pretrain.korean
    total = round((mix.documents + mix.validation_documents) * config.scale)
    entities = max(round(total * mix.fact_prose), 2 * len(almanac().kinds))  # each at least once in English
    lists, manuals, tables = (round(total * share) for share in (mix.list_prose, mix.manual_prose, mix.table_prose))
    dialogues = _spread(max(total - entities - lists - manuals - tables, 0), mix.asked)
    contents = intents.train | {family: FAMILIES[family].intents() for family in _KNOWLEDGE}
    rows = _entity_prose(config.pretrain, entities, rng)
    rows += [category_prose(language, rng) for language in _languages(lists, korean)]
    rows += [manual_prose(language, rng) for language in _languages(manuals, korean)]
    rows += [table_prose(language, rng) for language in _languages(tables, korean)]
    rows += [
        _dialogue(family, language, contents[family], evaluated, config, rng)
        for family, count in dialogues.items()
        for language in _languages(count, korean)
    ]
    rng.shuffle(rows)
    return rows


def _spread(count: int, weights: Mapping[str, float]) -> dict[str, int]:
    """How many dialogues ask something of each family, in proportion to the weights."""
    ends = [round(count * total / sum(weights.values())) for total in accumulate(weights.values(), initial=0.0)]
    return {family: end - start for family, (start, end) in zip(weights, pairwise(ends), strict=True)}


def _held_out(rows: list[Row], count: int, korean: float) -> dict[int, None]:
    """Indices of the first rows of each language, `count` in all (a dict for its order and its fast `in`)."""
    languages = _languages(max(count, _SMALLEST_COUNT), korean)
    indices = {language: [i for i, row in enumerate(rows) if row["language"] == language] for language in LANGUAGES}
    held_out = [i for language in LANGUAGES for i in indices[language][: languages.count(language)]]
    return dict.fromkeys(sorted(held_out))


def _dialogue(
    family: str, language: str, contents: list[Content], evaluated: set[str], config: ClosedWorldConfig, rng: Random
) -> Row:
    """A question and the answer of a persona. The prompt is never, word for word, one of evaluation."""
    while True:
        task = Task(family, language, rng.choice(contents))
        prompt = ask(task, rng)
        if repr(prompt) not in evaluated:
            break
    persona = config.careful if rng.random() < config.pretrain.careful else config.careless
    return _provenance(task) | {"messages": prompt + _answer(task, persona, rng)}


def _entity_prose(mix: PretrainMix, count: int, rng: Random) -> list[Row]:
    """Entities in turn in each language, so that each has about equally many paragraphs."""
    rows: list[Row] = []
    decks: dict[str, list[str]] = {language: [] for language in LANGUAGES}
    for language in _languages(count, mix.korean):
        deck = decks[language]
        if not deck:
            deck.extend(rng.sample(list(almanac().kinds), len(almanac().kinds)))
        rows.append(entity_prose(deck.pop(), language, mix.prose_errors, rng))
    return rows
