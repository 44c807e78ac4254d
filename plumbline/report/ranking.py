"""The section that compares all policies with each other, by each measure: ratings, and a sentence for each pair."""

from __future__ import annotations

from math import log10
from typing import NamedTuple

from markupsafe import Markup
from scipy.special import expit

from plumbline.evaluation.comparisons import MEASURES, Comparisons, Pair, Rated
from plumbline.evaluation.ratings import ELO
from plumbline.evaluation.statistics import CONFIDENCE, Interval, flat
from plumbline.report import charts
from plumbline.report.material import Material
from plumbline.report.tables import DASH, MINUS, show, show_bounds

STYLES = {"gold": "fine", "reward": "fine"}
"""How a difference is shown: in the measure's own unit, else in percentage points."""


ALONE = ("the two cannot be told apart", "the two differ")
"""What is said of a single pair, without and with a difference."""


class Line(NamedTuple):
    """A row of the table of pairs."""

    sentence: str
    differs: bool
    difference: str
    p_value: str
    prompts: str


class Ranking(NamedTuple):
    """What is shown of the comparisons by one measure."""

    column: str
    """The column of an answer: a key of MEASURES."""
    measure: str
    """Its name, with the direction if lower is better."""
    unit: str
    """Of the differences: points, or the measure's own."""
    prompts: str
    pairs: list[Line]
    rated: list[tuple[str, str, str, str]]
    """Policy, rating, its interval, and expected wins against the opponent."""
    chart: Markup
    left_out: str
    """Which pairs could not be compared, as a sentence; empty if all could."""
    is_open: bool
    """Whether a reader should see it without asking: what sums up an answer, else every measure but the reward; a measure that is the only one."""

    @property
    def summary(self) -> str:
        """How many pairs differ."""
        count = sum(pair.differs for pair in self.pairs)
        differ = f"{count} of {len(self.pairs)} pairs differ" if len(self.pairs) != 1 else ALONE[bool(count)]
        return f"{self.measure[0].upper()}{self.measure[1:]}: {differ} on {self.prompts}"


def rankings(material: Material) -> list[Ranking]:
    """A ranking for each measure, the most telling first; empty if there was nothing to compare."""
    shown = [_ranking(material, one) for one in material.comparisons]
    return shown if len(shown) != 1 else [shown[0]._replace(is_open=True)]


def _ranking(material: Material, comparisons: Comparisons) -> Ranking:
    measure, style = MEASURES[comparisons.measure], STYLES.get(comparisons.measure, "points")
    chart = charts.bar_chart(_bars(material, comparisons), name=f"ratings-{comparisons.measure}", title="Rating in Elo points")
    return Ranking(
        column=comparisons.measure,
        measure=measure.name + (" (lower is better)" if measure.lower_is_better else ""),
        unit="points" if style == "points" else measure.name,
        prompts="a single prompt" if comparisons.prompts == 1 else f"{comparisons.prompts:,} prompts",
        pairs=[line(pair, style, measure.better) for pair in comparisons.pairs],
        rated=[_rated(one, material.against, comparisons.prompts) for one in comparisons.rated],
        chart=Markup(chart),
        left_out=_left_out(comparisons),
        is_open=comparisons in material.decisive,
    )


def _rated(one: Rated, against: str, prompts: int) -> tuple[str, str, str, str]:
    if one.policy == against:
        return one.policy, "0", "the opponent", DASH
    return one.policy, *_rating(one.rating, prompts), show(float(expit(one.rating.value / ELO)), "percent")


def _left_out(comparisons: Comparisons) -> str:
    if not comparisons.left_out:
        return ""
    pairs = "; ".join(f"{policy} and {other}" for policy, other in comparisons.left_out)
    return f"Not compared, because no prompt has a value for both: {pairs}."


def line(pair: Pair, style: str, better: str) -> Line:
    """A pair as a sentence with its figures; better: what is said of the better one of two policies that differ."""
    difference, n = pair.difference, f"{pair.difference.n:,}"
    bounds = show_bounds(flat("", difference), "", style)
    if pair.differs:
        sentence = f"{pair.policy} {better} {pair.other}."
    elif pair.detectable is None:
        how_many = "a single prompt" if difference.n == 1 else f"{n} prompts"
        sentence = f"{pair.policy} and {pair.other} cannot be told apart with {how_many}."
    elif not pair.detectable:
        sentence = f"{pair.policy} and {pair.other} are equal on each of the {n} prompts."
    else:
        sentence = (
            f"{pair.policy} and {pair.other} cannot be told apart with {n} prompts, which would show a difference of "
            f"{show(pair.detectable, style).lstrip('+')} or more."
        )
    bounds = f" {bounds}" if bounds and difference.n > 1 else ""
    needed = f"about {rounded(pair.prompts_needed)}" if pair.prompts_needed else DASH
    return Line(sentence, pair.differs, f"{show(difference.value, style)}{bounds}", _p_value(pair), needed)


def _p_value(pair: Pair) -> str:
    """The p-value with three decimals, or with as many as it takes to lie on the side of 0.05 that the verdict says."""
    if pair.p_value < 0.001:
        return "< 0.001"
    texts = (f"{pair.p_value:.{decimals}f}" for decimals in range(3, 16))
    return next((text for text in texts if (float(text) <= 1 - CONFIDENCE) == pair.differs), "> 0.05")


def rounded(count: int) -> str:
    """A count with two significant digits, as text."""
    digits = max(0, int(log10(count)) - 1)
    return f"{round(count, -digits):,}"


def _rating(rating: Interval, prompts: int) -> tuple[str, str]:
    """The rating and its interval as text; a dash for the interval of a single prompt, which cannot be resampled."""
    numbers = rating[:1] if prompts < 2 else rating[:3]
    texts = [f"{value:+.0f}".replace("-", MINUS) if round(value) else "0" for value in numbers]
    if prompts < 2:
        return texts[0], DASH
    return texts[0], f"[{texts[1].removeprefix('+')}, {texts[2].removeprefix('+')}]"


def _bars(material: Material, comparisons: Comparisons) -> list[charts.Bar]:
    bars = []
    for policy, rating in comparisons.rated:
        bounds = flat("rating", rating)
        colour, text = charts.policy_colour(material.number(policy)), _rating(rating, rating.n)[0]
        bars.append(charts.Bar(policy, colour, rating.value, bounds["rating_low"], bounds["rating_high"], text))
    return bars
