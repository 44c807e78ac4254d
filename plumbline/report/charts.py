"""Charts as inline SVG that takes its colours and font from the page; the same values give the same bytes.

Matplotlib draws with placeholder colours, which are then replaced by the page's CSS variables, so that a chart follows the page into
dark mode and print. Text stays text. Nothing refers to a file or to the network.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#050505"
PALETTE_COUNT = 8
DPI = 72  # so that one point in matplotlib is one pixel on the page

_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "plumbline",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so that text has the same width everywhere
    "font.size": 11,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 12,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": GRID,
    "grid.linewidth": 1,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.8,
    "path.simplify": False,
}


class Bar(NamedTuple):
    """One bar with its interval; no bounds if there is none."""

    label: str
    colour: str
    value: float
    low: float | None
    high: float | None
    text: str


class Point(NamedTuple):
    """One policy by two figures, each with bounds if it has an interval."""

    label: str
    colour: str
    x: tuple[float, float | None, float | None]  # value, low, high
    y: tuple[float, float | None, float | None]


class Line(NamedTuple):
    """One series of a training curve."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    is_validation: bool = False


class Share(NamedTuple):
    """How often a model is right among the cases in which it is about equally confident."""

    predicted: float  # the model's mean probability of being right
    right: float  # the fraction in which it is
    low: float
    high: float
    n: int


def policy_colour(number: int | None) -> str:
    """The placeholder colour of a policy by its number; None is the opponent, which is grey."""
    return "#040009" if number is None else f"#04000{number % PALETTE_COUNT}"


def bar_chart(
    bars: Sequence[Bar],
    *,
    name: str,
    title: str,
    start: float = 0.0,
    limits: tuple[float, float] | None = None,
    percent: bool = False,
) -> str:
    """Horizontal bars from `start` with their intervals, and each figure as text on the right.

    title: what the bars show. Every chart is read out as its title and its values.
    """
    height = 26 + 26 * len(bars)
    with _drawing(320, height) as figure:
        axes = figure.add_axes((0.22, 20 / height, 0.6, 1 - 22 / height))
        for row, bar in enumerate(bars):
            axes.barh(row, bar.value - start, left=start, height=0.62, color=bar.colour, alpha=0.82, linewidth=0)
            if bar.low is not None and bar.high is not None and bar.low < bar.high:
                axes.plot([bar.low, bar.high], [row, row], color=INK, linewidth=1.4, solid_capstyle="butt")
                axes.plot([[bar.low, bar.high]] * 2, [[row - 0.13] * 2, [row + 0.13] * 2], color=INK, linewidth=1.4)
            axes.text(1.03, row, bar.text, transform=axes.get_yaxis_transform(), va="center", color=INK)
        axes.axvline(start, color=MUTED, linewidth=1)
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars], color=INK)
        axes.set_ylim(len(bars) - 0.45, -0.55)
        axes.set_xlim(*(limits or _limits([start, *(bound for bar in bars for bound in (bar.value, bar.low, bar.high))])))
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.grid(axis="x")
        _ticks(axes.xaxis, 4, percent)
        return _svg(figure, name, f"{title}: {'; '.join(f'{bar.label} {bar.text}' for bar in bars)}.")


def scatter_chart(points: Sequence[Point], *, name: str, x_title: str, y_title: str) -> str:
    """Policies as labelled points with intervals in both directions."""
    with _drawing(520, 300) as figure:
        axes = figure.add_axes((0.1, 0.16, 0.87, 0.8))
        for point in points:
            (x, left, right), (y, lower, upper) = point.x, point.y
            if left is not None and right is not None:
                axes.plot([left, right], [y, y], color=point.colour, linewidth=1.6)
            if lower is not None and upper is not None:
                axes.plot([x, x], [lower, upper], color=point.colour, linewidth=1.6)
            axes.plot([x], [y], "o", color=point.colour, markersize=9, markeredgecolor=PAPER)
            axes.annotate(point.label, (x, y), (8, 7), textcoords="offset points", color=INK, fontsize=12)
        axes.set_xlim(*_limits([value for point in points for value in point.x] + [0.0], right=0.14))
        axes.set_ylim(*_limits([value for point in points for value in point.y], right=0.1))
        axes.set_xlabel(x_title)
        axes.set_ylabel(y_title)
        axes.grid()
        axes.spines[["left", "bottom"]].set_visible(False)
        _ticks(axes.xaxis, 6)
        _ticks(axes.yaxis, 5)
        read = "; ".join(f"{point.label} {_number(point.y[0])} at {_number(point.x[0])}" for point in points)
        return _svg(figure, name, f"{y_title} by {x_title}: {read}.")


def line_chart(lines: Sequence[Line], *, name: str, title: str, colour: str, over: str = "step") -> str:
    """A small chart of curves, such as those of a training: training as a line, validation as a line with dots.

    over: what the horizontal axis shows, for the alternative text.
    """
    with _drawing(240, 130) as figure:
        axes = figure.add_axes((0.17, 0.16, 0.8, 0.8))
        for line in lines:
            style: dict[str, Any] = {"marker": "o", "markersize": 4, "color": INK} if line.is_validation else {"color": colour}
            axes.plot(line.steps, line.values, **style, linewidth=1.3 if line.is_validation else 1.8)
        axes.grid(axis="y")
        axes.spines[["left"]].set_visible(False)
        axes.margins(x=0.02, y=0.1)
        _ticks(axes.xaxis, 4)
        _ticks(axes.yaxis, 4)
        digits = 0 if all(float(step).is_integer() for line in lines for step in line.steps) else 2
        read = "; ".join(
            f"{line.label} {_number(line.values[0])} at {over} {line.steps[0]:.{digits}f}, "
            f"{_number(line.values[-1])} at {over} {line.steps[-1]:.{digits}f}"
            for line in lines
        )
        return _svg(figure, name, f"{title}: {read}.")


def calibration_chart(shares: Sequence[Share], *, name: str, title: str) -> str:
    """How often a model is right against how confident it is, both from one half up; on the diagonal the two agree.

    A dot's area is proportional to its count. The vertical axis begins at the lowest interval if that is below one half.
    """
    lowest = min([0.5, *(share.low for share in shares)])
    most = max(share.n for share in shares)
    colour = policy_colour(0)
    with _drawing(300, 240) as figure:
        axes = figure.add_axes((0.18, 0.19, 0.79, 0.78))
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        for share in shares:
            axes.plot([share.predicted] * 2, [share.low, share.high], color=colour, linewidth=1.3, alpha=0.7)
            size = 7 * (share.n / most) ** 0.5
            axes.plot([share.predicted], [share.right], "o", color=colour, markersize=size, markeredgecolor=PAPER)
        axes.set_xlim(0.485, 1.015)
        axes.set_ylim(lowest - 0.03, 1.02)
        axes.set_xlabel("predicted: σ(margin)")
        axes.set_ylabel("right")
        axes.grid()
        axes.spines[["left", "bottom"]].set_visible(False)
        _ticks(axes.xaxis, 6, percent=True)
        _ticks(axes.yaxis, 6, percent=True)
        read = "; ".join(f"predicted {100 * share.predicted:.0f} %, right {100 * share.right:.0f} %" for share in shares)
        return _svg(figure, name, f"{title}: {read}.")


def _limits(values: Sequence[float | None], right: float = 0.04) -> tuple[float, float]:
    """The ends of an axis that shows these values; None are bounds of a figure without an interval."""
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    room = (high - low) or 1.0
    return low - 0.04 * room, high + right * room


def _ticks(axis: Any, count: int, percent: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 5, 10] if percent else [1, 2, 2.5, 5, 10]))
    if percent:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %".replace("-", "\N{MINUS SIGN}")))


@contextmanager
def _drawing(width: int, height: int) -> Iterator[Figure]:
    """A figure of this size in pixels, in the style above."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = dict(matplotlib.rcParamsDefault) | _STYLE
    with matplotlib.rc_context(style):
        yield Figure(figsize=(width / DPI, height / DPI), dpi=DPI)


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an inline `<svg>` that is read out as `label`, with ids made unique by `name`, and colours and font left to the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, variable)
    text = re.sub(r"#04000(\d)", r"var(--policy-\1)", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--sans)", text)
    text = re.sub(r"font-family: [^;\"]+", "font-family: var(--sans)", text)
    text = re.sub(r'<svg ([^>]*?)width="([\d.]+)pt" height="([\d.]+)pt"', r'<svg \1width="\2" height="\3"', text)
    return text.strip().replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
