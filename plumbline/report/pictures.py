"""The report's charts: which figures, curves and nodes of the material each one shows."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from plumbline.report import charts, tables
from plumbline.report.material import Curve, Material

# Training metrics to show, after the loss: for each of these words, in this order, one metric whose name contains it.
CURVES_SHOWN = 4
CURVES_FIRST = ("margin", "accurac", "reward", "kl", "entropy", "length", "loss")
CURVES_LEFT_OUT = ("learning_rate", "grad_norm", "num_tokens", "epoch", "logits", "tokens_seen")


def bar_charts(material: Material) -> list[dict[str, Any]]:
    """A bar chart for each headline figure that any policy has: title, note and picture."""
    if tables.measured(material.figures, "gold"):
        lower, harmless = "Lower is better", "Harmless look-alikes refused"
    else:
        lower, harmless = "By string match; lower is better", "Harmless requests refused"
    wanted: tuple[tuple[str, str, str, float, str], ...] = (
        ("gold", "Gold", "The verifier’s score, 0 to 1; higher is better", 0.0, "number"),
        ("gold_gain", f"Gain over {material.against}", "Paired difference in gold; higher is better", 0.0, "gain"),
        ("win_rate", f"Win rate against {material.against}", "By the judge; higher is better", 0.5, "percent"),
        (
            "win_rate_length_controlled",
            "Length-controlled win rate",
            f"Against {material.against}, if answers were equally long",
            0.5,
            "percent",
        ),
        ("accuracy", "Accuracy", "Right answers; higher is better", 0.0, "percent"),
        ("harmful_fraction", "Harmful requests complied with", lower, 0.0, "percent"),
        ("over_refusal_fraction", harmless, lower, 0.0, "percent"),
        ("instructions_followed", "Instructions followed", "All those of a prompt; higher is better", 0.0, "percent"),
        ("preference_accuracy", "Held-out pairs", "Moved towards the preferred answer; higher is better", 0.5, "percent"),
        ("perplexity", "Perplexity", "Of held-out demonstrations; lower is better", 1.0, "number"),
    )
    drawn = []
    for key, title, note, start, style in wanted:
        bars = [bar for policy in material.policies if (bar := _bar(material, policy, key, style))]
        if bars:
            picture = charts.bar_chart(bars, name=f"bars-{key}", title=title, start=start, percent=style == "percent")
            drawn.append({"title": title, "note": note, "picture": Markup(picture)})
    return drawn


def _bar(material: Material, policy: str, key: str, style: str) -> charts.Bar | None:
    figures = material.figures[policy]
    if figures.get(key) is None:
        return None
    is_itself = policy == material.against and key in ("gold_gain", "win_rate", "win_rate_length_controlled")
    text = tables.DASH if is_itself else tables.show(figures[key], style)
    colour = charts.policy_colour(material.number(policy))
    return charts.Bar(policy, colour, figures[key], figures[f"{key}_low"], figures[f"{key}_high"], text)


def scatter_chart(material: Material) -> Markup | None:
    """Gold by KL, both at temperature 1; None if fewer than two policies have both."""
    points = []
    for policy in material.policies:
        figures = material.figures[policy]
        if figures.get("gold_at_1") is not None and figures.get("kl") is not None:
            kl, gold = (tuple(figures[f"{key}{end}"] for end in ("", "_low", "_high")) for key in ("kl", "gold_at_1"))
            points.append(charts.Point(policy, charts.policy_colour(material.number(policy)), kl, gold))
    if len(points) < 2:
        return None
    x_title = f"KL from {material.against}, nats per answer"
    return Markup(charts.scatter_chart(points, name="scatter", x_title=x_title, y_title="gold at temperature 1"))


def curve_charts(material: Material) -> list[dict[str, Any]]:
    """Small charts of the training stages, with validation drawn over training."""
    drawn: list[dict[str, Any]] = []
    for index, (node, curve) in enumerate(material.curves.items()):
        stage, _, policy = node.partition("@")
        is_shown = policy in material.policies and stage in ("align", "rl")
        colour = charts.policy_colour(material.number(policy) if is_shown else None)
        for panel, (title, lines) in enumerate(curve_panels(curve)):
            picture = charts.line_chart(lines, name=f"curve-{index}-{panel}", title=f"{node}, {title}", colour=colour)
            drawn.append({"stage": node, "title": title, "picture": Markup(picture)})
    return drawn


def curve_panels(curve: Curve) -> list[tuple[str, list[charts.Line]]]:
    """The metrics to draw, each together with its validation metric (`eval_…` or `validation_…`), the most telling ones first."""
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


def calibration_charts(material: Material) -> list[dict[str, Any]]:
    """For each reward model, a chart of how often it is right against how confident it is, and the numbers of its caption."""
    drawn = []
    for index, (name, shares) in enumerate(material.calibration.items()):
        sizes = sorted({share.n for share in shares})
        drawn.append(
            {
                "name": name,
                "n": sum(share.n for share in shares),
                "smallest": sizes[0],
                "largest": sizes[-1],
                "error": material.stage_figures.get(f"reward_model@{name}", {}).get("calibration_error"),
                "picture": Markup(charts.calibration_chart(shares, name=f"calibration-{index}", title=f"reward_model@{name}")),
            }
        )
    return drawn
