"""A study as its file declares it: conf/study/<name>.yaml, read and checked before anything runs.

    question: Does DPO need supervised fine-tuning first?
    recipe: default               # a file of conf/recipe
    seeds: [17, 18, 19]
    set: {model: nano}            # values of every run: a key of params.yaml, or <file of conf/>:<key>
    vary:                         # the conditions, each with its values; left out: one condition, the recipe as it is
      from SFT: {set: {align.dpo1.init: sft}}
      from base: {set: {align.dpo1.init: base}}
    read:                         # the series: which figure of which node
      gold: {node: evaluate@dpo1, metric: gold}
    compare: {first: {condition: from SFT}, second: {condition: from base}}
    figure: {x: start of DPO, y: gold}
    sentence: "DPO from SFT {verdict} DPO from the base model: {difference}."

`also` has more comparisons of the same points, under names of your own, each with `compare` and `sentence`.

A point of a study is a condition, a series and, if the series is read from a node's curve (`at`), a row of it. Where it stands on the horizontal
axis, its reading says (`x_metric`, a figure of the same node, or `at`), or its condition (`x`), or it stands under its name.
"""

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from plumbline.graph import nodes
from plumbline.pipeline.composing import CONF, conf_values
from plumbline.pipeline.misfits import misfits, suggestion
from plumbline.pipeline.params import Params, load_params

STUDIES = CONF / "study"
RECIPES = CONF / "recipe"
LEAST_SEEDS = 3
"""Two seeds have a t interval of 12.7 standard errors to either side, which says nothing."""
ONLY = "the recipe"
"""The condition of a study that varies nothing."""
PLACEHOLDERS = ("difference", "first", "second", "verdict")
STYLES = ("number", "percent")
AXES = ("y", "x")


@dataclass
class Condition:
    """What one condition changes."""

    set: dict[str, Any] = field(default_factory=dict)
    x: float | None = None


@dataclass
class Reading:
    """Where a figure is read."""

    node: str = MISSING
    metric: str = MISSING
    at: list[float] = field(default_factory=list)
    """The rows of the node's curve, by its first column (a step, or n), that `metric` is read from; []: the node's figures."""
    x_metric: str | None = None

    def rows(self) -> list[float | None]:
        """The rows that are read; None stands for the node's figures."""
        return [*self.at] or [None]


@dataclass
class End:
    """One side of the comparison; what there is only one of may be left out."""

    condition: str | None = None
    series: str | None = None
    at: float | None = None


@dataclass
class Comparison:
    """Whose figure is compared with whose: first less second."""

    first: End = field(default_factory=End)
    second: End = field(default_factory=End)
    axis: str = "y"
    """Which figure: y, or x for the `x_metric` of both series."""


@dataclass
class Answer:
    """A comparison and the sentence that it completes."""

    compare: Comparison = field(default_factory=Comparison)
    sentence: str = MISSING


@dataclass
class FigureTexts:
    """What stands at the axes, and how values are written."""

    x: str = MISSING
    y: str = MISSING
    style: str = "number"
    log_x: bool = False


@dataclass
class Study:
    """A study; values and their meaning: the head of this module."""

    question: str = MISSING
    recipe: str = MISSING
    seeds: list[int] = MISSING
    set: dict[str, Any] = field(default_factory=dict)
    vary: dict[str, Condition] = field(default_factory=dict)
    read: dict[str, Reading] = MISSING
    compare: Comparison = field(default_factory=Comparison)
    figure: FigureTexts = field(default_factory=FigureTexts)
    sentence: str = MISSING
    also: dict[str, Answer] = field(default_factory=dict)

    @property
    def answers(self) -> dict[str, Answer]:
        """All comparisons with their sentences, by what leads to their keys; the study's own comes first."""
        return {"": Answer(self.compare, self.sentence), **{f"also.{name}.": answer for name, answer in self.also.items()}}

    @property
    def conditions(self) -> dict[str, Condition]:
        """The conditions by name, in order."""
        return self.vary or {ONLY: Condition()}

    def problems(self) -> list[str]:
        """What does not fit, as `key: expected …, found …`; empty if all does."""
        complaints = []
        if len({*self.seeds}) < LEAST_SEEDS or len({*self.seeds}) < len(self.seeds):
            complaints.append(f"seeds: expected {LEAST_SEEDS} or more different seeds, found {self.seeds}")
        if not self.read:
            complaints.append("read: expected a figure to read, found none")
        for where, condition in {"": Condition(self.set), **{f"vary.{name}.": one for name, one in self.vary.items()}}.items():
            if "seed" in condition.set:
                complaints.append(f"{where}set: expected no seed, which `seeds` varies, found seed: {condition.set['seed']}")
        if self.figure.style not in STYLES:
            complaints.append(f"figure.style: expected one of {', '.join(STYLES)}, found {self.figure.style!r}")
        for where, answer in self.answers.items():
            wrong = [*self._wrong_ends(answer.compare), *_wrong_placeholders(answer.sentence)]
            complaints += [f"{where}{complaint}" for complaint in wrong]
        return complaints

    def ends(self, compare: Comparison) -> "tuple[PointName, PointName]":
        """The two points that are compared, of a study without problems."""
        return self._point(compare.first), self._point(compare.second)

    def points(self) -> "list[PointName]":
        """Every point, in the order of the conditions, the series and the rows of their curves."""
        return [
            PointName(condition, series, at)
            for condition in self.conditions
            for series, reading in self.read.items()
            for at in reading.rows()
        ]

    def _point(self, end: End) -> "PointName":
        """The point that one side of the comparison names, with what there is only one of filled in."""
        series = end.series or next(iter(self.read))
        rows = self.read[series].rows()
        return PointName(
            end.condition or next(iter(self.conditions)), series, rows[0] if end.at is None and len(rows) == 1 else end.at
        )

    def _wrong_ends(self, compare: Comparison) -> Iterator[str]:
        complaints = [*self._wrong_end("first", compare.first), *self._wrong_end("second", compare.second)]
        yield from complaints
        if not self.read or complaints:
            return
        ends = self.ends(compare)
        if len({*ends}) == 1:
            yield "compare: expected two different points, found the same twice"
        if compare.axis not in AXES:
            yield f"compare.axis: expected one of {', '.join(AXES)}, found {compare.axis!r}"
        elif compare.axis == "x":
            without = [end.series for end in ends if self.read[end.series].x_metric is None]
            yield from (
                f"compare.axis: expected y, since read.{series} has no x_metric, found x" for series in dict.fromkeys(without)
            )

    def _wrong_end(self, side: str, end: End) -> Iterator[str]:
        for key, value, options in (("condition", end.condition, [*self.conditions]), ("series", end.series, [*self.read])):
            if value is None and len(options) > 1:
                yield f"compare.{side}.{key}: expected one of {', '.join(options)}, found none"
            elif value is not None and value not in options:
                yield f"compare.{side}.{key}: expected one of {', '.join(options)}, found {value!r}.{suggestion(value, options)}"
        series = end.series or next(iter(self.read), "")
        if series in self.read and self._point(end).at not in self.read[series].rows():
            listed = ", ".join(f"{row:g}" for row in self.read[series].at) or "none, since the series is not read from a curve"
            found = "none" if end.at is None else end.at
            yield f"compare.{side}.at: expected one of `at` of its series ({listed}), found {found}"


def _wrong_placeholders(sentence: str) -> Iterator[str]:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(sentence) if name is not None]
    except ValueError as error:
        yield f"sentence: expected text with placeholders in braces, found {sentence!r}: {error}"
        return
    if unknown := [name for name in names if name not in PLACEHOLDERS]:
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        yield f"sentence: expected placeholders among {known}, found {{{unknown[0]}}}"
    if "difference" not in names:
        yield "sentence: expected {difference}, which has the interval, found none"


class PointName(NamedTuple):
    """A condition, a series, and the row of a curve if the series has several."""

    condition: str
    series: str
    at: float | None = None


def names() -> list[str]:
    """The studies: the files of conf/study."""
    return sorted(file.stem for file in STUDIES.glob("*.yaml"))


def load_study(name: str, recipe: str | None = None) -> Study:
    """Reads a study; `recipe` takes the place of the one that it names.

    Raises:
        ValueError: there is no such study, or its file does not fit; all faults at once, each with its key.
    """
    if name not in names():
        raise ValueError(
            f"expected the name of a file of conf/study, found {name!r}.{suggestion(name, names())} There are: {', '.join(names())}"
        )
    where = f"conf/study/{name}.yaml"
    values = conf_values(STUDIES / f"{name}.yaml") | ({"recipe": recipe} if recipe else {})
    faults = [*misfits(values, Study, where)]
    if not faults:
        try:
            composed = OmegaConf.merge(OmegaConf.structured(Study), values)
        except OmegaConfBaseException as error:  # a key that is not a text
            raise ValueError(f"{where}: {' '.join(str(error).split())}") from error
        faults = [f"{where}: {key}: expected a value, found none" for key in sorted(OmegaConf.missing_keys(composed))]
    if not faults:
        study: Any = OmegaConf.to_object(composed)
        faults = [f"{where}: {problem}" for problem in [*study.problems(), *wrong_places(study)]]
        if not faults:
            return study
    raise ValueError("\n- ".join(dict.fromkeys(faults)))


def wrong_places(study: Study) -> Iterator[str]:
    """What a study names that its recipe, with the values of each condition, does not have."""
    recipes = sorted(file.stem for file in RECIPES.glob("*.yaml"))
    if study.recipe not in recipes:
        yield (
            f"recipe: expected the name of a file of conf/recipe, found {study.recipe!r}.{suggestion(study.recipe, recipes)} There are: "
            f"{', '.join(recipes)}"
        )
        return
    for name in study.conditions:
        try:
            declared = [node.name for node in nodes(params_of(study, name, study.seeds[0]))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield f"vary.{name}: expected values that fit the recipe {study.recipe}, found a fault: {error}"
            return
        for series, reading in study.read.items():
            if reading.node not in declared:
                yield (
                    f"read.{series}.node: expected a node of the recipe {study.recipe}, found {reading.node!r}.{suggestion(reading.node, declared)}"
                )
        yield from (f"{fault}" for key in (study.set | study.conditions[name].set) for fault in _wrong_file(key))


def _wrong_file(key: str) -> Iterator[str]:
    file, colon, _ = key.rpartition(":")
    if colon and not (CONF.parent / file).is_file():
        yield f"set.{key}: expected a file before the colon, found none of this name"


def params_of(study: Study, condition: str, seed: int) -> Params:
    """The params.yaml of one run.

    Raises:
        ValueError: a value stands below what is not a mapping.
    """
    params = load_params(RECIPES / f"{study.recipe}.yaml")
    for key, value in {**values_of(study, condition), "seed": seed}.items():
        if ":" not in key:
            put(params, key, value)
    return params


def values_of(study: Study, condition: str) -> dict[str, Any]:
    """What a condition's runs set: the study's values, and its own."""
    return study.set | study.conditions[condition].set


def put(params: Params, key: str, value: Any) -> None:
    """Sets a value under a dotted key; mappings on the way are made.

    Raises:
        ValueError: something else than a mapping is on the way.
    """
    *above, last = key.split(".")
    place: Any = params
    for name in above:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise ValueError(f"set.{key}: expected a mapping at {name}, found {place!r}")
    place[last] = value


def figures_path(node: str) -> Path:
    """The file of a node's figures."""
    stage, _, entry = node.partition("@")
    return Path(
        f"artifacts/evaluate/{entry}/figures.json" if stage == "evaluate" else f"artifacts/figures/{stage}/{entry or stage}.json"
    )


def curve_path(node: str) -> Path:
    """The file of a node's curve."""
    stage, _, entry = node.partition("@")
    return Path(f"artifacts/curves/{stage}/{entry or stage}.csv")


def targets(study: Study) -> list[str]:
    """The nodes that each run has to make, with all that they build on."""
    return list(dict.fromkeys(reading.node for reading in study.read.values()))


Values = Mapping[PointName, Mapping[int, float]]
"""Point → seed → value."""
