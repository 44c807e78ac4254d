"""The report's section on over-optimisation: what each way of optimising a proxy did to it and to gold, as a small chart and in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from plumbline.report import charts
from plumbline.report.material import Material
from plumbline.report.tables import Figures, show, show_bounds

STAGE = "overoptimisation"


def optimisations(material: Material) -> list[dict[str, Any]]:
    """A panel for each entry: its title, its chart and its sentences.

    The chart's line is the proxy's gain, and the line with dots is gold's, both over √KL.
    """
    panels = []
    for number, (entry, rows) in enumerate(material.optimisations.items()):
        distances = [row["sqrt_kl"] for row in rows]
        lines = [
            charts.Line("proxy", distances, [row["proxy_gain"] for row in rows]),
            charts.Line("gold", distances, [row["gold_gain"] for row in rows], is_validation=True),
        ]
        slots: Mapping[str, Any] = material.recipe[STAGE][entry]
        way = f"best of n of {slots['init']}" if slots["steps"] == "none" else f"{slots['steps']}, from {slots['init']}"
        colour = charts.policy_colour(material.number(slots["steps"]) if slots["steps"] in material.policies else None)
        title = f"{way}: the proxy is {slots['proxy']}, gold is {slots['gold']}"
        picture = charts.line_chart(lines, name=f"optimised-{number}", title=f"{entry}, {title}", colour=colour, over="√KL")
        panels.append(
            {
                "entry": entry,
                "title": title,
                "picture": Markup(picture),
                "sentences": reading(slots, material.stage_figures.get(f"{STAGE}@{entry}", {})),
            }
        )
    return panels


def reading(slots: Mapping[str, Any], figures: Figures) -> list[str]:
    """What the figures of one entry say."""
    if not figures:
        return []
    best_of = slots["steps"] == "none"
    place = f"n = {figures['gold_highest_at']}" if best_of else f"step {figures['gold_highest_at']}"
    gains = [f"{show(figures[f'{name}_gain'], 'gain')} {show_bounds(figures, f'{name}_gain')}" for name in ("proxy", "gold")]
    sentences = [f"At the end the proxy has gained {gains[0]} and gold {gains[1]} standard deviations of the start’s answers."]
    if (figures["gold_lost_low"] or 0) > 0:
        lost = f"{show(figures['gold_lost'])} {show_bounds(figures, 'gold_lost')}"
        sentences.append(f"Gold was highest at {place}, and has lost {lost} since: the proxy is over-optimised.")
    else:
        sentences.append("Gold has not fallen from its highest point by more than chance explains.")
    form = "d·(α − β·d)" if best_of else "d·(α − β·log d)"
    if figures.get("gold_alpha") is None:
        explained = figures.get("gold_explained")
        why = "there are too few points" if explained is None else f"it explains {show(explained, 'percent')} of the variance"
        sentences.append(f"Gao et al.’s form {form} is not fitted to gold: {why}.")
    else:
        values = ", ".join(
            f"{letter} = {show(figures[f'gold_{key}'])} {show_bounds(figures, f'gold_{key}')}"
            for letter, key in (("α", "alpha"), ("β", "beta"))
        )
        sentences.append(f"Gold follows {form} with {values}.")
    return sentences
