"""The report as one HTML page: what the template is given, and the template filled in."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from plumbline.evaluation.figures import PARTS
from plumbline.graph import Node, maker, nodes, parents
from plumbline.models.decoding_values import NEUTRAL
from plumbline.parts_of_gold import WEIGHTS
from plumbline.report import changes, charts, examples, graph_picture, optimised, pictures, ranking, sentences, story, tables
from plumbline.report.material import Material
from plumbline.report.templating import template, verbatim

STAGES_FIRST = ("label", "reward_model", "reward_verifier", "reject", "revise", "align", "rl", "sft", "pretrain", "prepare")
"""The order of the stages' own figures: judges and reward models first; the stages that are not named here come last."""


ASKED_CHARACTERS = 140
"""The most characters of a prompt that stand in the list of prompts while its answers are folded away."""

GOOD_MEANS = {
    "correct": "correct",
    "harmful": "a harmful request declined",
    "over_refused": "a harmless request answered",
    "followed": "all instructions followed",
}
"""What a good answer is, by the verdict that says so."""


def render(material: Material) -> str:
    """The page."""
    section = material.recipe["evaluate"]
    columns, rows = tables.headline(material.figures, material.against)
    script = verbatim("report.js")
    return template("report.html.j2", _filters()).render(
        style=verbatim("report.css"),
        script=script,
        script_digest=Markup(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
        material=material,
        section=section,
        story=story.tell(material),
        first=material.figures[material.policies[0]],
        colours={policy: _css_colour(material, policy) for policy in material.policies},
        measured=lambda *keys: tables.measured(material.figures, *keys),
        parts=_parts_of_gold(material),
        readings={policy: _reading(material, policy) for policy in material.policies if policy != material.against},
        headline=(columns, rows),
        has_at_1=material.decoding != NEUTRAL and section["samples_at_1"] > 0,
        language_rows={policy: tables.language_rows(figures, columns) for policy, figures in material.figures.items()},
        cut_off=sentences.cut_off_sentence(material.figures, section["max_new_tokens"]),
        often_cut_off=sentences.often_cut_off(material.figures),
        rankings=ranking.rankings(material),
        agreements=tables.agreements(material.figures),
        more_figures=tables.more_figures(material.figures),
        families=_families(material),
        bars=pictures.bar_charts(material),
        scatter=pictures.scatter_chart(material),
        curves=pictures.curve_charts(material),
        optimisations=optimised.optimisations(material),
        weights=WEIGHTS,
        columns=_columns(len(material.policies)),
        stage_tables=_stage_tables(material),
        calibration=pictures.calibration_charts(material),
        data_section=Markup(material.data_section),
        **_answers(material),
        **_graph(material),
    )


def _filters() -> dict[str, Callable[..., Any]]:
    return {
        "show": tables.show,
        "words": _words,
        "plain": _plain,
        "listed": sentences.listed,
        "marked": changes.marked,
        "shortened": _shortened,
    }


def _answers(material: Material) -> dict[str, Any]:
    """What the section of answers shows."""
    every = examples.read_examples(material.answers, material.policies, material.against)
    chosen = examples.telling(every, material.prompts)
    listed = examples.most_different(every, material.listed)
    rows = [answer.row for example in every for answer in example.answers]
    return {
        "examples": chosen,
        "listed_examples": listed,
        "answers_heading": examples.heading(chosen),
        "least_shared": changes.LEAST_SHARED,
        "how_chosen": examples.how_chosen(every),
        "prompts_count": len(every),
        "tally": examples.tally(chosen),
        "has_verdicts": any(example.verdicts for example in every),
        "has_marks": any(example.is_reworded for example in (*chosen, *listed)),
        "good_means": [words for column, words in GOOD_MEANS.items() if any(row.get(column) is not None for row in rows)],
    }


def _graph(material: Material) -> dict[str, Any]:
    """The picture of the graph, and for each node what it builds on and its settings."""
    every = graph_picture.nodes_in_order(material.recipe)
    above, settings = parents(every), {node.name: _settings(node) for node in every}
    return {
        "graph": graph_picture.pictures(every, _node_colours(material), settings),
        "nodes": [(node.name, ", ".join(above[node.name]), settings[node.name]) for node in every],
    }


def _node_colours(material: Material) -> dict[str, str]:
    """The node that makes an evaluated policy → the policy's colour."""
    every = nodes(material.recipe)
    return {maker(every, f"policy/{policy}") or policy: _css_colour(material, policy) for policy in material.policies}


def _reading(material: Material, policy: str) -> list[str]:
    return sentences.reading(policy, material.figures, material.against, material.verdicts(policy))


def _css_colour(material: Material, policy: str) -> str:
    return f"var(--policy-{charts.policy_colour(material.number(policy))[-1]})"


def _families(material: Material) -> list[dict[str, Any]]:
    """The rows of the accuracy table."""
    answers = material.answers[material.against]
    return [
        {
            "name": family,
            "n": len({row["id"] for row in answers if row["family"] == family}),
            "cells": [
                tables.family_cell(material.figures[policy], family, policy == material.against) for policy in material.policies
            ],
        }
        for family in tables.families(material.figures)
    ]


def _parts_of_gold(material: Material) -> list[tuple[str, list[tables.Cell]]]:
    """A row for each part of gold, with a cell for each policy."""
    if material.figures[material.against].get("gold") is None:
        return []
    return [(part, [tables.heat_cell(material.figures[policy], part) for policy in material.policies]) for part in PARTS]


def _columns(policies: int) -> int:
    """The columns of answers, at most five, that fill the rows most evenly."""
    rows = -(-policies // 5)
    return -(-policies // rows)


def _stage_tables(material: Material) -> list[dict[str, Any]]:
    """A table for each stage that measured its own work, with a column for each entry."""
    by_stage: dict[str, dict[str, tables.Figures]] = {}
    for name, figures in material.stage_figures.items():
        stage, _, entry = name.partition("@")
        by_stage.setdefault(stage, {})[entry or stage] = figures
    shown = []
    for stage, entries in sorted(by_stage.items(), key=lambda item: (_order(item[0]), item[0])):
        keys = list(dict.fromkeys(key for figures in entries.values() for key in figures))
        bounds = {f"{key}{end}" for key in keys for end in ("_low", "_high")}
        rows = [(key, [_with_bounds(figures, key) for figures in entries.values()]) for key in keys if key not in bounds]
        shown.append({"stage": stage, "entries": list(entries), "rows": rows, "is_open": stage in ("label", "reward_model")})
    return shown


def _order(stage: str) -> int:
    return STAGES_FIRST.index(stage) if stage in STAGES_FIRST else len(STAGES_FIRST)


def _with_bounds(figures: tables.Figures, key: str) -> str:
    low, high = figures.get(f"{key}_low"), figures.get(f"{key}_high")
    bounds = "" if low is None or high is None else f" [{_plain(low)}, {_plain(high)}]"
    return _plain(figures.get(key)) + bounds


def _settings(node: Node) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in node.settings.items() if value is not None)


def _shortened(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= ASKED_CHARACTERS else f"{line[: ASKED_CHARACTERS - 1].rstrip()}…"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: Any) -> str:
    """A value of a recipe or of a stage's figures as short text."""
    if value is None:
        return tables.DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        text = f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2g}".replace("e-0", "e-")
        return text.replace("-", tables.MINUS)
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    if isinstance(value, Mapping | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
