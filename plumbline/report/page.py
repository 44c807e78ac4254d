"""The report as one HTML page: what the template is given, and the template filled in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from plumbline.evaluation.figures import PARTS, QUALITY
from plumbline.graph import Node, nodes, parents
from plumbline.models.decoding_values import NEUTRAL
from plumbline.parts_of_gold import WEIGHTS
from plumbline.report import charts, pictures, ranking, sentences, tables
from plumbline.report.material import Material, learns_from_gold

if TYPE_CHECKING:
    from plumbline.rows import Message, Row

TEMPLATES = Path(__file__).parent / "templates"

STAGES_FIRST = ("label", "reward_model", "reward_verifier", "reject", "revise", "align", "rl", "sft", "pretrain", "prepare")
"""The order of the stages' own figures: judges and reward models first; the stages that are not named here come last."""


MEASURED = {
    "harmful_fraction": "harmful requests complied with",
    "over_refusal_fraction": "harmless requests refused",
    "accuracy": "right answers",
    "instructions_followed": "instructions followed",
    "preference_accuracy": "held-out preferences",
    "perplexity": "perplexity of held-out demonstrations",
}
"""What is measured where there is neither gold nor a judge: figure → what the page's first paragraph calls it."""


class Example(NamedTuple):
    """A prompt and every policy's answer to it."""

    id: str
    family: str | None
    language: str | None
    prompt: Sequence[Message]
    right: str | None
    answers: Sequence[tuple[str, Row]]


def render(material: Material) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"show": tables.show, "words": _words, "plain": _plain, "listed": sentences.listed}
    shown = [node for node in nodes(material.recipe) if node.stage not in ("prepare", "answer", "evaluate")]
    above = parents(shown)
    section = material.recipe["evaluate"]
    columns, rows = tables.headline(material.figures, material.against)
    gold_trained = [policy for policy in material.policies if learns_from_gold(material.stage_figures, shown, policy)]
    return environment.get_template("report.html.j2").render(
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        material=material,
        section=section,
        first=material.figures[material.policies[0]],
        colours={policy: _css_colour(material, policy) for policy in material.policies},
        measured=lambda *keys: tables.measured(material.figures, *keys),
        measured_names=[name for key, name in MEASURED.items() if tables.measured(material.figures, key)],
        quality=QUALITY,
        gold_trained=gold_trained,
        lead=leaders(material, gold_trained),
        parts=_parts_of_gold(material),
        graph=pictures.graph_chart(material, shown),
        readings={policy: _reading(material, policy) for policy in material.policies if policy != material.against},
        headline=(columns, rows),
        has_at_1=material.decoding != NEUTRAL and section["samples_at_1"] > 0,
        language_rows={policy: tables.language_rows(figures, columns) for policy, figures in material.figures.items()},
        unsafe={
            policy: [tables.language_name(code) for code in sentences.unsafe_languages(figures)]
            for policy, figures in material.figures.items()
        },
        unsafe_sentences={policy: sentences.language_sentence(policy, figures) for policy, figures in material.figures.items()},
        cut_off=sentences.cut_off_sentence(material.figures, section["max_new_tokens"]),
        ranking=ranking.ranking(material),
        agreements=tables.agreements(material.figures),
        families=_families(material),
        bars=pictures.bar_charts(material),
        scatter=pictures.scatter_chart(material),
        curves=pictures.curve_charts(material),
        examples=(examples := pick_examples(material)),
        tally=_tally(examples),
        weights=WEIGHTS,
        columns=_columns(len(material.policies)),
        nodes=[(node.name, ", ".join(above[node.name]), _settings(node)) for node in shown],
        stage_tables=_stage_tables(material),
        calibration=pictures.calibration_charts(material),
        data_section=Markup(material.data_section),
    )


def leaders(material: Material, gold_trained: Sequence[str]) -> list[str]:
    """The best policy, then those that cannot be told apart from it; empty if none beats the opponent.

    By gold, or by win rate if there is no gold, and by the comparison of every two policies. A policy that was trained on gold cannot lead by it.
    """
    has_gold = material.figures[material.against].get("gold") is not None
    key, floor = ("gold_gain", 0.0) if has_gold else ("win_rate", 0.5)
    excluded = {material.against, *(gold_trained if has_gold else [])}
    better = {
        policy: figures
        for policy in material.policies
        if policy not in excluded and ((figures := material.figures[policy]).get(f"{key}_low") or 0) > floor
    }
    ranked = sorted(better, key=lambda policy: -better[policy][key])
    pairs = material.comparisons
    return ranked[:1] + [policy for policy in ranked[1:] if pairs and not pairs.are_distinguishable(ranked[0], policy)]


def _reading(material: Material, policy: str) -> list[str]:
    return sentences.reading(policy, material.figures, material.against)


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


def pick_examples(material: Material) -> list[Example]:
    """The prompts to show with their answers, chosen without looking at any answer.

    Takes each family in turn, in the order of the split; every third prompt is in a language other than the most common one.
    """
    first = {policy: {row["id"]: row for row in rows if row["index"] == 0} for policy, rows in material.answers.items()}
    rows = list(first[material.against].values())
    languages = [row["language"] for row in rows]
    common = max(sorted(set(languages), key=str), key=languages.count) if languages else None
    families = sorted({row["family"] for row in rows}, key=str)
    queues = {family: [row for row in rows if row["family"] == family] for family in families}
    picked: list[Row] = []
    while len(picked) < material.prompts and any(queues.values()):
        for family in families:
            if queues[family] and len(picked) < material.prompts:
                foreign = len(picked) % 3 == 1
                wanted = [row for row in queues[family] if (row["language"] != common) == foreign] or queues[family]
                picked.append(wanted[0])
                queues[family].remove(wanted[0])
    return [
        Example(
            row["id"], row["family"], row["language"], row["prompt"], row.get("right_answer"),
            [(policy, first[policy][row["id"]]) for policy in material.policies if row["id"] in first[policy]],
        )
        for row in picked
    ]  # fmt: skip


def _tally(examples: Sequence[Example]) -> list[str]:
    """How many of the shown answers of each policy are right, such as `dpo 3`; empty if no answer was verified."""
    right: Counter[str] = Counter()
    for example in examples:
        right.update({policy: int(row["correct"]) for policy, row in example.answers if row["correct"] is not None})
    return [f"{policy} {count}" for policy, count in right.items()]


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
