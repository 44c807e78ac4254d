"""The report as one HTML page: what goes into the template, and the template filled in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stages.evaluation import charts, tables
from stages.evaluation.recipe import Node, learns_from_gold, policy_node, recipe_nodes
from stages.evaluation.statistics import bootstrap_gain

TEMPLATES = Path(__file__).parent / "templates"

Row = Mapping[str, Any]
Curve = Mapping[str, Sequence[tuple[float, float]]]  # metric → (step, value), steps without a value left out

# Training metrics that are worth a picture: after the loss, one that has each of these words in its name, in this order.
CURVES_SHOWN = 4
CURVES_FIRST = ("margin", "accurac", "reward", "kl", "entropy", "length", "loss")
CURVES_LEFT_OUT = ("learning_rate", "grad_norm", "num_tokens", "epoch", "logits", "tokens_seen")


@dataclass(frozen=True)
class Material:
    """Everything that the page is made from, as read from files."""

    recipe: Mapping[str, Any]  # params.yaml's sections
    policies: Sequence[str]
    against: str
    metrics: Mapping[str, Row]  # policy → its figures
    answers: Mapping[str, Sequence[Row]]  # policy → its scored answers
    curves: Mapping[str, Curve]  # stage/entry → its training curve
    stage_metrics: Mapping[str, Row]  # stage/entry → its figures
    calibration: Mapping[str, Sequence[charts.Share]]  # trained reward → how often it is right by how sure it is
    data_section: str  # trusted HTML of an earlier stage, or nothing
    prompts: int  # to show side by side


class Example(NamedTuple):
    """A prompt and what every policy answered."""

    id: str
    family: str | None
    language: str | None
    prompt: Sequence[Mapping[str, str]]
    answers: Sequence[tuple[str, Row]]


def render(material: Material) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"show": tables.show, "words": _words, "plain": _plain, "listed": tables.listed}
    nodes = recipe_nodes(material.recipe)
    gold_trained = [policy for policy in material.policies if learns_from_gold(nodes, policy)]
    return environment.get_template("report.html.j2").render(
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        material=material,
        section=material.recipe["evaluate"],
        first=material.metrics[material.policies[0]],
        colours={policy: _variable(material, policy) for policy in material.policies},
        gold_trained=gold_trained,
        lead=leaders(material, gold_trained),
        parts=_parts_of_gold(material),
        graph=_graph(material, nodes),
        readings={policy: _reading(material, policy) for policy in material.policies if policy != material.against},
        headline=tables.headline(material.metrics, material.against),
        families=_families(material),
        bars=_bar_charts(material),
        scatter=_scatter(material),
        curves=_curve_charts(material),
        examples=pick_examples(material),
        columns=_columns(len(material.policies)),
        nodes=[(node.name, ", ".join(node.parents), _settings(node)) for node in nodes],
        stage_tables=_stage_tables(material),
        calibration=_calibration_charts(material),
        data_section=Markup(material.data_section),
    )


def leaders(material: Material, gold_trained: Sequence[str]) -> list[str]:
    """The best policy, then those that cannot be told apart from it; empty where none beats the opponent.

    By gold, paired over prompts; by win rate where there is no gold. A policy that was trained on gold cannot lead by it.
    """
    key, floor = ("gold_gain", 0.0) if material.metrics[material.against].get("gold") is not None else ("win_rate", 0.5)
    able = [policy for policy in material.policies if policy != material.against]
    if key == "gold_gain":
        able = [policy for policy in able if policy not in gold_trained]
    better = {policy: material.metrics[policy] for policy in able if (material.metrics[policy].get(f"{key}_low") or 0) > floor}
    ranked = sorted(better, key=lambda policy: -better[policy][key])
    return ranked[:1] + [policy for policy in ranked[1:] if not _is_apart(material, ranked[0], policy, key)]


def _is_apart(material: Material, policy: str, other: str, key: str) -> bool:
    """Whether two policies differ beyond the interval of their paired difference."""
    column = {"gold_gain": "gold", "win_rate": "win"}[key]
    sides = [
        ([row[column] for row in rows], [row["id"] for row in rows])
        for rows in map(material.answers.get, (policy, other))
        if rows
    ]
    difference = bootstrap_gain(*sides[0], *sides[1], seed=material.recipe["seed"])
    return difference is not None and difference.excludes(0.0)


def _reading(material: Material, policy: str) -> list[str]:
    return tables.reading(policy, material.metrics, material.against)


def _number(material: Material, policy: str) -> int | None:
    """A policy's place among the colours: the opponent is grey, the others keep theirs in every picture."""
    others = [name for name in material.policies if name != material.against]
    return None if policy == material.against else others.index(policy)


def _variable(material: Material, policy: str) -> str:
    return f"var(--policy-{charts.policy_colour(_number(material, policy))[-1]})"


def _bar_charts(material: Material) -> list[dict[str, Any]]:
    """The bars: title, what they say, picture. A figure that no policy has is left out."""
    wanted: tuple[tuple[str, str, str, float, str], ...] = (
        ("gold", "Gold", "The verifier’s score, 0 to 1; higher is better", 0.0, "number"),
        ("gold_gain", f"Gain over {material.against}", "Paired difference in gold; higher is better", 0.0, "gain"),
        ("win_rate", f"Win rate against {material.against}", "By the judge; higher is better", 0.5, "percent"),
        ("accuracy", "Accuracy", "Right answers; higher is better", 0.0, "percent"),
        ("harmful_fraction", "Harmful requests complied with", "Lower is better", 0.0, "percent"),
        ("over_refusal_fraction", "Harmless look-alikes refused", "Lower is better", 0.0, "percent"),
    )
    found = []
    for key, title, note, start, style in wanted:
        bars = [_bar(material, policy, key, style) for policy in material.policies]
        drawn = [bar for bar in bars if bar is not None]
        if drawn:
            picture = charts.bar_chart(drawn, name=f"bars-{key}", start=start, percent=style == "percent")
            found.append({"title": title, "note": note, "picture": Markup(picture)})
    return found


def _bar(material: Material, policy: str, key: str, style: str) -> charts.Bar | None:
    of = material.metrics[policy]
    if of.get(key) is None:
        return None
    is_itself = policy == material.against and key in ("gold_gain", "win_rate")
    text = tables.DASH if is_itself else tables.show(of[key], style)
    colour = charts.policy_colour(_number(material, policy))
    return charts.Bar(policy, colour, of[key], of[f"{key}_low"], of[f"{key}_high"], text)


def _scatter(material: Material) -> Markup | None:
    points = []
    for policy in material.policies:
        of = material.metrics[policy]
        if of.get("gold") is not None and of.get("kl_to_sft") is not None:
            kl, gold = (tuple(of[f"{key}{end}"] for end in ("", "_low", "_high")) for key in ("kl_to_sft", "gold"))
            points.append(charts.Point(policy, charts.policy_colour(_number(material, policy)), kl, gold))
    if len(points) < 2:
        return None
    x_title = f"KL to {material.against}, nats per answer"
    return Markup(charts.scatter_chart(points, name="scatter", x_title=x_title, y_title="gold"))


def _families(material: Material) -> list[dict[str, Any]]:
    """The rows of the accuracy table."""
    answers = material.answers[material.against]
    return [
        {
            "name": family,
            "n": len({row["id"] for row in answers if row["family"] == family}),
            "cells": [
                tables.family_cell(material.metrics[policy], family, policy == material.against) for policy in material.policies
            ],
        }
        for family in tables.families(material.metrics)
    ]


def _parts_of_gold(material: Material) -> list[tuple[str, list[tables.Cell]]]:
    """What gold is made of: a row for each part, a cell for each policy."""
    parts = ("correct", "harmless", "honest", "courteous", "concise")
    if material.metrics[material.against].get("gold") is None:
        return []
    return [(part, [tables.heat_cell(material.metrics[policy], part) for policy in material.policies]) for part in parts]


def _graph(material: Material, nodes: Sequence[Node]) -> Markup:
    """The recipe as a picture; policies that are evaluated have their colour."""
    colours = {policy_node(policy): charts.policy_colour(_number(material, policy)) for policy in material.policies}
    return Markup(charts.graph_chart({node.name: node.parents for node in nodes}, colours, name="graph"))


def _curve_charts(material: Material) -> list[dict[str, Any]]:
    """Small pictures of the training stages; what was validated is drawn over what was trained."""
    found: list[dict[str, Any]] = []
    for place, (name, curve) in enumerate(material.curves.items()):
        colour = charts.policy_colour(_curve_number(material, name))
        for number, (title, lines) in enumerate(curve_panels(curve)):
            picture = charts.line_chart(lines, name=f"curve-{place}-{number}", colour=colour)
            found.append({"stage": name, "title": title, "picture": Markup(picture)})
    return found


def _calibration_charts(material: Material) -> list[dict[str, Any]]:
    """For each trained reward model a picture of whether it is as often right as it is sure, and its figures."""
    found = []
    for place, (name, shares) in enumerate(material.calibration.items()):
        picture = charts.calibration_chart(shares, name=f"calibration-{place}")
        counts = sorted({shares[0].n, *(share.n for share in shares)})
        each = _plain(counts[0]) if len(counts) == 1 else f"{_plain(counts[0])} to {_plain(counts[-1])}"
        found.append(
            {
                "name": name,
                "bins": len(shares),
                "n": sum(share.n for share in shares),
                "each": each,
                "error": material.stage_metrics.get(f"reward/{name}", {}).get("calibration_error"),
                "picture": Markup(picture),
            }
        )
    return found


def _curve_number(material: Material, name: str) -> int | None:
    policy = name.rpartition("/")[2]
    return _number(material, policy) if policy in material.policies and name.startswith("align/") else None


def curve_panels(curve: Curve) -> list[tuple[str, list[charts.Line]]]:
    """The metrics to draw, each with its validation twin (`eval_…` or `validation_…`): the most telling ones first."""
    panels: dict[str, list[charts.Line]] = {}
    for metric, points in curve.items():
        bare = metric.removeprefix("eval_").removeprefix("validation_")
        if len(points) > 1 and not any(word in bare for word in CURVES_LEFT_OUT):
            steps, values = zip(*points, strict=True)
            panels.setdefault(bare, []).append(charts.Line(metric, steps, values, bare != metric))

    moving = sorted(name for name, lines in panels.items() if any(len(set(line.values)) > 1 for line in lines))
    names = ["loss"] if "loss" in moving else []
    for word in (*CURVES_FIRST, ""):
        names += [name for name in moving if word in name and name not in names][:1]
    return [(name, sorted(panels[name], key=lambda line: line.is_validation)) for name in names[:CURVES_SHOWN]]


def pick_examples(material: Material) -> list[Example]:
    """The prompts shown side by side: every family in turn, every third in a language other than the commonest, in order of the
    split. Chosen before looking at any answer."""
    first = {policy: {row["id"]: row for row in rows if row["index"] == 0} for policy, rows in material.answers.items()}
    rows = list(first[material.against].values())
    languages = [row["language"] for row in rows]
    common = max(sorted(set(languages), key=str), key=languages.count) if languages else None
    names = sorted({row["family"] for row in rows}, key=str)
    queues = {name: [row for row in rows if row["family"] == name] for name in names}
    picked: list[Row] = []
    while len(picked) < material.prompts and any(queues.values()):
        for name in names:
            if queues[name] and len(picked) < material.prompts:
                foreign = len(picked) % 3 == 1
                wanted = [row for row in queues[name] if (row["language"] != common) == foreign] or queues[name]
                picked.append(wanted[0])
                queues[name].remove(wanted[0])
    return [
        Example(
            row["id"], row["family"], row["language"], row["prompt"],
            [(policy, first[policy][row["id"]]) for policy in material.policies if row["id"] in first[policy]],
        )
        for row in picked
    ]  # fmt: skip


def _columns(policies: int) -> int:
    """Columns of answers: as even as five to a row allow."""
    rows = -(-policies // 5)
    return -(-policies // rows)


def _stage_tables(material: Material) -> list[dict[str, Any]]:
    """The figures of the other stages, a table for each stage: judges and reward models first."""
    stages = sorted({name.partition("/")[0] for name in material.stage_metrics}, key=lambda stage: (_order(stage), stage))
    found = []
    for stage in stages:
        entries = {
            name.partition("/")[2] or stage: of for name, of in material.stage_metrics.items() if name.partition("/")[0] == stage
        }
        keys = list(dict.fromkeys(key for of in entries.values() for key in of))
        bounds = {f"{key}{end}" for key in keys for end in ("_low", "_high")}
        rows = [(key, [_with_bounds(of, key) for of in entries.values()]) for key in keys if key not in bounds]
        found.append({"stage": stage, "entries": list(entries), "rows": rows, "is_open": stage in ("label", "reward")})
    return found


def _with_bounds(metrics: Row, key: str) -> str:
    low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    bounds = "" if low is None or high is None else f" [{_plain(low)}, {_plain(high)}]"
    return _plain(metrics.get(key)) + bounds


def _order(stage: str) -> int:
    order = ("label", "reward", "reject", "revise", "align", "sft", "pretrain", "prepare")
    return order.index(stage) if stage in order else len(order)


def _settings(node: Node) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in node.settings.items() if value is not None)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: Any) -> str:
    """A value of a params or metrics file as short text."""
    if value is None:
        return tables.DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        text = f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2g}".replace("e-0", "e-")
        return text.replace("-", tables.MINUS)
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
