"""Figures as words: numbers with bounds, the headline table, accuracy by family, and sentences that say what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Metrics = Mapping[str, Any]

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
PERCENT = "\N{NARROW NO-BREAK SPACE}%"
NO_BREAK = "\N{NO-BREAK SPACE}"


class Column(NamedTuple):
    """A column of the headline table."""

    key: str
    title: str
    style: str  # number, gain (signed), percent, whole (percent without decimals) or long
    better: str  # higher, lower or ""


HEADLINE = (
    Column("gold", "Gold", "number", "higher"),
    Column("gold_gain", "Gain", "gain", "higher"),
    Column("win_rate", "Win rate", "percent", "higher"),
    Column("accuracy", "Accuracy", "percent", "higher"),
    Column("harmful_fraction", "Harmful", "percent", "lower"),
    Column("over_refusal_fraction", "Over-refusal", "percent", "lower"),
    Column("reward", "Reward", "number", ""),
    Column("kl_to_sft", "KL", "number", ""),
    Column("length_tokens", "Tokens", "long", ""),
)


class Cell(NamedTuple):
    """A figure as it is shown."""

    text: str
    bounds: str = ""
    best: bool = False
    mark: str = ""  # up, down or "": an interval that excludes no change
    tint: float = 0.0  # 0 to 1, for a heat map
    note: str = ""


def show(value: float | None, style: str = "number") -> str:
    """A number as text, a dash where there is none."""
    return DASH if value is None else _show(value, style, _decimals([value], style))


def show_bounds(metrics: Metrics, key: str, style: str = "number") -> str:
    """The interval of a figure as text, empty where there is none."""
    bounds = [metrics.get(f"{key}_low"), metrics.get(f"{key}_high")]
    known = [bound for bound in bounds if bound is not None]
    if len(known) < 2:
        return ""
    texts = [_show(bound, style, _decimals(known, style)).removesuffix(PERCENT).removeprefix("+") for bound in known]
    return f"[{texts[0]},{NO_BREAK}{texts[1]}]"


def _decimals(values: Sequence[float], style: str) -> int:
    """Decimals of a style; a percentage has one more near 0 % and 100 %, where a point is a lot."""
    if style == "percent":
        return 1 if any(0 < min(value, 1 - value) < 0.095 for value in values) else 0
    return {"number": 2, "gain": 2, "whole": 0, "long": 1}[style]


def _show(value: float, style: str, decimals: int) -> str:
    is_percent = style in ("percent", "whole")
    text = f"{100 * value if is_percent else value:{'+' if style == 'gain' else ''}.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("+-")
    return text.replace("-", MINUS) + (PERCENT if is_percent else "")


def significance(metrics: Metrics, key: str) -> str:
    """`up` or `down` where the interval of a difference excludes 0, else nothing."""
    low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    if low is None or high is None:
        return ""
    return "up" if low > 0 else "down" if high < 0 else ""


def headline(metrics: Mapping[str, Metrics], against: str) -> tuple[list[Column], dict[str, list[Cell]]]:
    """The columns that apply to any policy, and a row of cells for each."""
    columns = [column for column in HEADLINE if any(of.get(column.key) is not None for of in metrics.values())]
    best = {column.key: _best(metrics, column) for column in columns}
    rows = {}
    for policy, of in metrics.items():
        rows[policy] = [
            Cell(DASH, note="the opponent itself")
            if policy == against and column.key in ("gold_gain", "win_rate", "kl_to_sft")
            else Cell(
                show(of.get(column.key), column.style),
                show_bounds(of, column.key, column.style),
                best=of.get(column.key) is not None and of.get(column.key) == best[column.key],
            )
            for column in columns
        ]
    return columns, rows


def _best(metrics: Mapping[str, Metrics], column: Column) -> float | None:
    values = [of[column.key] for of in metrics.values() if of.get(column.key) is not None]
    if not column.better or len(set(values)) < 2:
        return None
    return max(values) if column.better == "higher" else min(values)


def families(metrics: Mapping[str, Metrics]) -> list[str]:
    """The families that any policy has an accuracy for."""
    keys = {key for of in metrics.values() for key, value in of.items() if value is not None}
    gains, bounds = "accuracy_gain", ("_low", "_high", "_n")
    return sorted(
        key.removeprefix("accuracy_")
        for key in keys
        if key.startswith("accuracy_") and not key.startswith(gains) and not key.endswith(bounds)
    )


def family_cell(metrics: Metrics, family: str, is_against: bool) -> Cell:
    """One cell of the family table: accuracy, and how many points it moved against the opponent."""
    key, gain = f"accuracy_{family}", f"accuracy_gain_{family}"
    points = None if is_against else metrics.get(gain)
    note = "" if points is None else f"{100 * points:+.0f}".replace("-", MINUS)
    mark = "" if is_against else significance(metrics, gain)
    return heat_cell(metrics, key)._replace(mark=mark, note="0" if note[1:] == "0" else note)


def heat_cell(metrics: Metrics, key: str) -> Cell:
    """A fraction as a cell of a heat map."""
    value = metrics.get(key)
    return Cell(show(value, "whole"), show_bounds(metrics, key, "whole"), tint=value or 0.0)


def moved_families(metrics: Metrics) -> tuple[list[str], list[str]]:
    """The families whose accuracy rose, and those where it fell, beyond the interval of the paired difference."""
    known = families({"": metrics})
    rose = [family for family in known if significance(metrics, f"accuracy_gain_{family}") == "up"]
    fell = [family for family in known if significance(metrics, f"accuracy_gain_{family}") == "down"]
    return rose, fell


def reading(policy: str, metrics: Mapping[str, Metrics], against: str) -> list[str]:
    """What the figures of a policy say, in sentences."""
    of, base = metrics[policy], metrics[against]
    sentences = [_gold_sentence(policy, of, base, against), _win_sentence(of, against), _harm_sentence(of, base, against)]
    sentences += [_family_sentence(of), _overoptimisation_sentence(of, base)]
    return [sentence for sentence in sentences if sentence]


def _gold_sentence(policy: str, of: Metrics, base: Metrics, against: str) -> str:
    if of.get("gold_gain") is None:
        return "" if of.get("win_rate") is not None else f"Nothing says whether {policy} or {against} answers better."
    gain, levels = of["gold_gain"], f"{show(base['gold'])} → {show(of['gold'])}"
    match significance(of, "gold_gain"):
        case "up":
            return f"{policy} beats {against} by {show(gain)} gold {show_bounds(of, 'gold_gain')} ({levels})."
        case "down":
            loss = show_bounds({"_low": -of["gold_gain_high"], "_high": -of["gold_gain_low"]}, "")
            return f"{policy} is worse than {against} by {show(-gain)} gold {loss} ({levels})."
    difference = f"{show(gain, 'gain')} {show_bounds(of, 'gold_gain')}"
    return f"{policy} and {against} cannot be told apart in gold: the difference is {difference}."


def _win_sentence(of: Metrics, against: str) -> str:
    if of.get("win_rate") is None:
        return ""
    bounds = show_bounds(of, "win_rate", "percent")
    verb = "wins" if of["win_rate_low"] > 0.5 else "loses" if of["win_rate_high"] < 0.5 else ""
    if verb == "wins":
        return f"The judge prefers it in {show(of['win_rate'], 'percent')} {bounds} of comparisons."
    if verb == "loses":
        return f"The judge prefers {against}: it wins only {show(of['win_rate'], 'percent')} {bounds} of comparisons."
    return f"The judge has no preference: it wins {show(of['win_rate'], 'percent')} {bounds} of comparisons."


def _harm_sentence(of: Metrics, base: Metrics, against: str) -> str:
    if of.get("harmful_fraction") is None:
        return ""
    text = f"It complies with {show(of['harmful_fraction'], 'percent')} of harmful requests ({against}: "
    text += show(base.get("harmful_fraction"), "percent") + ")"
    if of.get("over_refusal_fraction") is not None:
        text += f" and refuses {show(of['over_refusal_fraction'], 'percent')} of harmless look-alikes ({against}: "
        text += show(base.get("over_refusal_fraction"), "percent") + ")"
    return text + "."


def _family_sentence(of: Metrics) -> str:
    rose, fell = moved_families(of)
    known = families({"": of})
    if not known:
        return ""
    if not rose and not fell:
        return f"No family's accuracy moved beyond its interval ({len(known)} families)."
    up = f"rises on {len(rose)} of {len(known)} families ({listed(rose)})" if rose else "rises on no family"
    down = f"falls on {len(fell)} ({listed(fell)})" if fell else "falls on none"
    return f"Accuracy {up} and {down}, beyond the interval."


def _overoptimisation_sentence(of: Metrics, base: Metrics) -> str:
    if of.get("reward") is None or base.get("reward") is None or significance(of, "gold_gain") != "down":
        return ""
    if of["reward"] <= base["reward"]:
        return ""
    return (
        f"Its reward rose ({show(base['reward'])} → {show(of['reward'])}) while gold fell: the reward model was over-optimised."
    )


def listed(names: Sequence[str]) -> str:
    words = [name.replace("_", " ") for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def plain_table(metrics: Mapping[str, Metrics], against: str) -> str:
    """The headline table as text for a terminal."""
    columns, rows = headline(metrics, against)
    lines = [["policy", *(column.title.lower() for column in columns)]]
    for policy, cells in rows.items():
        lines.append(
            [
                policy,
                *(_typed(cell, column.key in ("gold_gain", "win_rate")) for cell, column in zip(cells, columns, strict=True)),
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    rule = "─" * max(map(len, shown))
    return "\n".join([shown[0], rule, *shown[1:]])


def _typed(cell: Cell, with_bounds: bool) -> str:
    """A cell in characters that every terminal has."""
    text = f"{cell.text} {cell.bounds}".rstrip() if with_bounds else cell.text
    return text.replace(PERCENT, "%").replace(NO_BREAK, " ").replace(MINUS, "-").replace(DASH, "-")
