"""A study's figure: an SVG with labelled axes, in greys that printing keeps apart, with its content in words for screen readers.

Each point is the mean over seeds with its 95 % t interval; the small open marks beside it are the seeds. Series differ in mark and line as well as in
grey.
"""

import io
import re
import textwrap
from html import escape
from typing import Any

from plumbline.studies.declaration import Study
from plumbline.studies.outcome import Outcome, Point, alternative_text

MARKS = (("o", "-", "0.0"), ("s", "--", "0.45"), ("^", ":", "0.25"), ("D", "-.", "0.6"))
"""Mark, line and grey of each series; more series begin again."""
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "plumbline", "font.size": 10, "font.family": "sans-serif", "axes.spines.top": False,
         "axes.spines.right": False}  # fmt: skip


def draw(study: Study, outcome: Outcome) -> str:
    """The figure as the text of an SVG file, the same bytes for the same result."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        several = len(study.conditions) > 1
        names = [*dict.fromkeys(point.name.condition if several else point.name.series for point in outcome.points)]
        for number, series in enumerate(study.read):
            points = [point for point in outcome.points if point.name.series == series]
            _draw_series(axes, study, points, names, number)
        if all(point.x is None for point in outcome.points):
            axes.set_xticks(range(len(names)), ["\n".join(textwrap.wrap(name, 16)) for name in names])
            axes.margins(x=0.15)
        if study.figure.log_x:
            axes.set_xscale("log")
            places = sorted({point.x.mean for point in outcome.points if point.x})
            axes.set_xticks(places, [f"{place:g}" for place in places])
            axes.minorticks_off()
        if study.figure.style == "percent":
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        axes.set_xlabel(study.figure.x)
        axes.set_ylabel(study.figure.y)
        axes.set_title("\n".join(textwrap.wrap(study.question, 70)), loc="left", fontsize=11)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        if len(study.read) > 1 and (several or any(point.x for point in outcome.points)):
            axes.legend(frameon=False)
        return _described(figure, study.question, alternative_text(study, outcome))


def _draw_series(axes: Any, study: Study, points: list[Point], names: list[str], number: int) -> None:
    mark, line, grey = MARKS[number % len(MARKS)]
    several = len(study.conditions) > 1
    shift = (number - (len(study.read) - 1) / 2) * 0.12 if several else 0.0
    categorical = any(point.x is None for point in points)
    places = [
        names.index(point.name.condition if several else point.name.series) + shift if point.x is None else point.x.mean
        for point in points
    ]
    for place, point in zip(places, points, strict=True):
        beside = place + 0.06 if categorical else place
        axes.plot(
            [beside] * len(point.values),
            [*point.values.values()],
            mark,
            markersize=4,
            markerfacecolor="none",
            markeredgecolor="0.5",
        )
    y = [point.y.mean for point in points]
    bars = [[point.y.mean - point.y.low for point in points], [point.y.high - point.y.mean for point in points]]
    x_bars: Any = None
    if any(point.x and point.x.high > point.x.low for point in points):
        pooled = [point.x for point in points if point.x]
        x_bars = [[one.mean - one.low for one in pooled], [one.high - one.mean for one in pooled]]
    axes.errorbar(
        places,
        y,
        yerr=bars,
        xerr=x_bars,
        fmt=mark,
        linestyle="none" if categorical else line,
        color=grey,
        capsize=3,
        label=points[0].name.series,
    )


def _described(figure: Any, title: str, description: str) -> str:
    """The SVG with a title and a description that screen readers read out, and without the date."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", buffer.getvalue(), flags=re.DOTALL)
    words = f'<title id="title">{escape(title)}</title>\n <desc id="desc">{escape(description)}</desc>\n'
    return re.sub(r"(<svg [^>]*)>", lambda found: f'{found[1]} role="img" aria-labelledby="title desc">\n {words}', text, count=1)
