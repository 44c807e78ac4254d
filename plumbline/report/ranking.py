"""The section that compares all policies with each other: ratings, and a sentence for each pair."""

from __future__ import annotations

from math import log10
from typing import Any, NamedTuple

from markupsafe import Markup
from scipy.special import expit

from plumbline.evaluation.comparisons import MEASURES, Comparisons, Pair
from plumbline.evaluation.ratings import ELO
from plumbline.evaluation.statistics import flat
from plumbline.report import charts
from plumbline.report.material import Material
from plumbline.report.tables import DASH, MINUS, show, show_bounds

STYLES = {"gold": "fine", "reward": "fine"}
"""How a difference is shown: in the measure's own unit, else in percentage points."""


class Line(NamedTuple):
    """A row of the table of pairs."""

    sentence: str
    differs: bool
    difference: str
    p_value: str
    prompts: str


def ranking(material: Material) -> dict[str, Any] | None:
    """What the template shows; None if there was nothing to compare."""
    comparisons = material.comparisons
    if comparisons is None:
        return None
    prompts = comparisons.pairs[0].difference.n
    return {
        "measure": MEASURES[comparisons.measure],
        "unit": "points" if _style(comparisons) == "points" else MEASURES[comparisons.measure],
        "prompts": prompts,
        "pairs": [line(pair, _style(comparisons)) for pair in comparisons.pairs],
        "rated": [
            (one.policy, *_rating(one.rating, prompts), show(float(expit(one.rating.value / ELO)), "percent"))
            if one.policy != material.against
            else (one.policy, "0", "the opponent", DASH)
            for one in comparisons.rated
        ],
        "chart": Markup(charts.bar_chart(_bars(material, comparisons), name="ratings", title="Rating in Elo points")),
    }


def line(pair: Pair, style: str) -> Line:
    """A pair as a sentence with its figures."""
    difference, n = pair.difference, f"{pair.difference.n:,}"
    bounds = show_bounds(flat("", difference), "", style)
    if pair.differs:
        sentence = f"{pair.policy} is better than {pair.other}."
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
    p_value = "< 0.001" if pair.p_value < 0.001 else f"{pair.p_value:.3f}"
    needed = f"about {rounded(pair.prompts_needed)}" if pair.prompts_needed else DASH
    return Line(sentence, pair.differs, f"{show(difference.value, style)}{bounds}", p_value, needed)


def rounded(count: int) -> str:
    """A count with two significant digits, as text."""
    digits = max(0, int(log10(count)) - 1)
    return f"{round(count, -digits):,}"


def _style(comparisons: Comparisons) -> str:
    return STYLES.get(comparisons.measure, "points")


def _rating(rating: Any, prompts: int) -> tuple[str, str]:
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
