"""What a study found: each point's mean over seeds, and the differences of points that are compared, paired by seed.

The interval is a t interval over seeds, with n − 1 degrees of freedom. Each seed has its own data, training and prompts, so the spread between seeds
holds all of these, and no bootstrap over prompts has to be added. With three seeds it is 2.5 standard deviations to either side: wide, and honest.
Resampling three seeds would give intervals that are far too narrow.

A difference is called one if its interval excludes 0.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from plumbline.evaluation.statistics import Interval, Pooled, pool_seeds, rounded
from plumbline.pipeline.misfits import suggestion
from plumbline.report.tables import plain, show
from plumbline.studies.declaration import Answer, PointName, Reading, Study, Values, curve_path, figures_path

METHOD = "95 % t interval over seeds, paired by seed"
VERDICTS = {1: "is higher than", -1: "is lower than", 0: "cannot be told apart from"}

ReadFile = Callable[[Path], str]
"""A path below the project → the text of that file in one experiment."""


class Point(NamedTuple):
    """A point of the figure."""

    name: PointName
    x: Pooled | None
    """Its place on the horizontal axis over seeds; None if it stands under its name."""
    y: Pooled
    values: Mapping[int, float]
    """Seed → figure."""


class Compared(NamedTuple):
    """Two points compared."""

    first: PointName
    second: PointName
    axis: str
    difference: Interval
    """First less second; `n` counts the seeds."""
    sentence: str

    def record(self) -> dict[str, Any]:
        """As the study's file of results holds it."""
        return {
            "compared": {"first": self.first._asdict(), "second": self.second._asdict(), "axis": self.axis},
            "difference": {key: rounded(value) for key, value in self.difference._asdict().items() if key != "n"},
        }


class Outcome(NamedTuple):
    """A study's result."""

    points: tuple[Point, ...]
    compared: tuple[Compared, ...]
    """The study's own comparison, and then those of `also`."""

    @property
    def sentence(self) -> str:
        """The answer, a sentence for each comparison."""
        return " ".join(one.sentence for one in self.compared)


def figure_of(reading: Reading, metric: str, at: float | None, read: ReadFile) -> float:
    """A figure of one experiment; `at` is the row of the node's curve, None for the node's figures.

    Raises:
        ValueError: the node has no such figure, or it does not apply; the message names figures that there are.
    """
    path = figures_path(reading.node) if at is None else curve_path(reading.node)
    try:
        text = read(path)
    except FileNotFoundError as error:
        raise ValueError(f"expected {path} of {reading.node}, found no such file: this kind of stage writes none") from error
    figures = json.loads(text) if at is None else _row(text, at, path)
    value = figures.get(metric)
    if not isinstance(value, int | float) or isinstance(value, bool):
        numbers = [key for key, one in figures.items() if isinstance(one, int | float) and not key.endswith(("_low", "_high"))]
        what = "null, which stands for a figure that does not apply" if metric in figures else "no such figure"
        raise ValueError(
            f"expected a number for {metric} of {reading.node}, found {what}.{suggestion(metric, numbers)} There are: {', '.join(numbers)}"
        )
    return float(value)


def _row(text: str, at: float, path: Path) -> dict[str, float | None]:
    """The row of a curve whose first column has this value."""
    rows = [*csv.DictReader(io.StringIO(text))]
    first = next(iter(rows[0])) if rows else ""
    row = next((row for row in rows if float(row[first]) == at), None)
    if row is None:
        raise ValueError(f"expected a row with {first} {at:g} in {path}, found {', '.join(one[first] for one in rows)}")
    return {key: float(value) if value else None for key, value in row.items()}


def outcome_of(study: Study, ys: Values, xs: Values) -> Outcome:
    """The result of a study from the figures of all its runs.

    xs: the measured places on the horizontal axis, of readings with `x_metric`.
    """
    points = tuple(Point(name, _place(study, name, xs), pool_seeds([*of_seed.values()]), of_seed) for name, of_seed in ys.items())
    answers = study.answers.values()
    compared = [
        _compared(study, answer, *((ys, study.figure.style) if answer.compare.axis == "y" else (xs, "number")))
        for answer in answers
    ]
    return Outcome(points, (*compared,))


def _compared(study: Study, answer: Answer, values: Values, style: str) -> Compared:
    """Two points by the figures of one axis."""
    first, second = study.ends(answer.compare)
    pooled = pool_seeds([values[first][seed] - values[second][seed] for seed in study.seeds])
    difference = Interval(pooled.mean, pooled.low, pooled.high, pooled.seeds)
    texts = {
        "first": shown(pool_seeds([*values[first].values()]).mean, style),
        "second": shown(pool_seeds([*values[second].values()]).mean, style),
        "difference": difference_text(difference, style),
        "verdict": VERDICTS[int(difference.low > 0) - int(difference.high < 0)],
    }
    return Compared(first, second, answer.compare.axis, difference, answer.sentence.format(**texts))


def _place(study: Study, name: PointName, xs: Values) -> Pooled | None:
    if name in xs:
        return pool_seeds([*xs[name].values()])
    x = study.conditions[name.condition].x if name.at is None else name.at
    return None if x is None else Pooled(x, 0.0, x, x, len(study.seeds))


def difference_text(difference: Interval, style: str) -> str:
    """A difference with its interval and the number of seeds."""
    signed = "points" if style == "percent" else "gain"
    unit = " points" if style == "percent" else ""
    bounds = " to ".join(_text(value, signed) for value in (difference.low, difference.high))
    return f"{_text(difference.value, signed)}{unit} (95 % interval over {difference.n} seeds: {bounds})"


def shown(value: float, style: str) -> str:
    """A figure as the sentence says it."""
    return _text(value, style)


def _text(value: float, style: str) -> str:
    return plain(show(value, style)).replace("-", "\N{MINUS SIGN}")


def alternative_text(study: Study, outcome: Outcome) -> str:
    """The figure in words, for those who cannot see it."""
    parts = []
    for point in outcome.points:
        label = label_of(study, point)
        at = "" if point.x is None else f" at {study.figure.x} {point.x.mean:.3g}"
        low, high = (shown(value, study.figure.style) for value in (point.y.low, point.y.high))
        parts.append(f"{label}{at}: {shown(point.y.mean, study.figure.style)} ({low} to {high})")
    return f"{study.question} {study.figure.y}, means of {len(study.seeds)} seeds with 95 % t intervals. {'; '.join(parts)}."


def label_of(study: Study, point: Point) -> str:
    """A point's name: its condition, its series, or both, whichever there are several of."""
    names = ((point.name.series, study.read), (point.name.condition, study.conditions))
    return ", ".join(name for name, of in names if len(of) > 1) or point.name.series


def record(study: Study, outcome: Outcome, code: str) -> dict[str, Any]:
    """What the study's file of results holds."""
    own, *more = outcome.compared
    return {
        "question": study.question,
        "sentence": outcome.sentence,
        "alternative_text": alternative_text(study, outcome),
        "method": METHOD,
        "recipe": study.recipe,
        "code": code,
        "seeds": study.seeds,
        **own.record(),
        "also": {name: one.record() for name, one in zip(study.also, more, strict=True)},
        "points": [
            {
                **point.name._asdict(),
                "x": None if point.x is None else rounded(point.x.mean),
                "mean": rounded(point.y.mean),
                "low": rounded(point.y.low),
                "high": rounded(point.y.high),
                "values": {str(seed): rounded(value) for seed, value in point.values.items()},
            }
            for point in outcome.points
        ],
    }
