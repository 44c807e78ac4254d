"""Figures as text: numbers with bounds, the headline table, and accuracy by family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from plumbline.evaluation.figures import WITHOUT_GOLD

Figures = Mapping[str, Any]
"""The figures of one policy, as `evaluate` writes them; bounds are `<figure>_low` and `<figure>_high`."""

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
PERCENT = "\N{NARROW NO-BREAK SPACE}%"
NO_BREAK = "\N{NO-BREAK SPACE}"

LANGUAGE_NAMES = {"en": "English", "ko": "Korean"}
"""Other languages go by the code that the data gives them."""


class Column(NamedTuple):
    """A column of the headline table."""

    key: str
    title: str
    style: str  # number, gain (signed), fine (with three decimals), percent, whole (percent without decimals), points (of 100, signed) or long
    better: str  # higher, lower or ""


HEADLINE = (
    Column("gold", "Gold", "number", "higher"),
    Column("gold_gain", "Gain", "gain", "higher"),
    Column("gold_at_1", "Gold at 1", "number", "higher"),
    Column("accuracy", "Accuracy", "percent", "higher"),
    Column("harmful_fraction", "Harmful", "percent", "lower"),
    Column("over_refusal_fraction", "Over-refusal", "percent", "lower"),
    Column("instructions_followed", "Instructions", "percent", "higher"),
    Column("win_rate", "Win rate", "percent", "higher"),
    Column("reward", "Reward", "number", ""),
    Column("kl", "KL", "number", ""),
    Column("perplexity", "Perplexity", "number", "lower"),
    Column("preference_accuracy", "Held-out pairs", "percent", "higher"),
    Column("length_tokens", "Tokens", "long", ""),
    Column("distinct_2", "Distinct-2", "number", ""),
)


MORE = (
    Column("win_rate_length_controlled", "win rate, length controlled", "percent", "higher"),
    Column("win_rate_tie_fraction", "comparisons without a winner", "percent", ""),
    Column("win_rate_unparsed_fraction", "verdicts that could not be read", "percent", ""),
    Column("each_instruction_followed", "instructions followed, one by one", "percent", "higher"),
    Column("refused_fraction", "answers that decline, whatever was asked", "percent", ""),
    Column("repeated_fraction", "spans of four words that an answer repeats", "percent", "lower"),
    Column("finished_fraction", "answers that end before the token limit", "percent", ""),
    Column("accuracy_at_1", "accuracy at temperature 1", "percent", "higher"),
    Column("harmful_fraction_at_1", "harmful at temperature 1", "percent", "lower"),
    Column("over_refusal_fraction_at_1", "over-refusal at temperature 1", "percent", "lower"),
    Column("kl_k3", "KL by the k3 estimator", "number", ""),
    Column("text_nll_change", "held-out text, nats per token more than the opponent’s", "fine", "lower"),
)
"""Figures for those who look closer: the titles of rows."""


class Cell(NamedTuple):
    """A figure as it is shown."""

    text: str
    bounds: str = ""
    best: bool = False
    mark: str = ""  # up or down if the interval of the change excludes zero, else ""
    tint: float = 0.0  # 0 to 1, for a heat map
    note: str = ""


def show(value: float | None, style: str = "number") -> str:
    """A number as text; a dash for None."""
    return DASH if value is None else _show(value, style, _decimals([value], style))


def show_bounds(figures: Figures, key: str, style: str = "number") -> str:
    """The interval of a figure as text; empty if there is none."""
    low, high = figures.get(f"{key}_low"), figures.get(f"{key}_high")
    if low is None or high is None:
        return ""
    decimals = _decimals([low, high], style)
    texts = [_show(bound, style, decimals).removesuffix(PERCENT).removeprefix("+") for bound in (low, high)]
    return f"[{texts[0]},{NO_BREAK}{texts[1]}]"


def _decimals(values: Sequence[float], style: str) -> int:
    """The number of decimals; a percentage has one near 0 % and 100 %, where a point is a lot."""
    if style == "percent":
        return 1 if any(0 < min(value, 1 - value) < 0.095 for value in values) else 0
    return {"number": 2, "gain": 2, "whole": 0, "fine": 3, "long": 1, "points": 1}[style]


def _show(value: float, style: str, decimals: int) -> str:
    is_percent, scaled = style in ("percent", "whole"), style in ("percent", "whole", "points")
    text = f"{100 * value if scaled else value:{'+' if style in ('gain', 'fine', 'points') else ''}.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("+-")
    return text.replace("-", MINUS) + (PERCENT if is_percent else "")


def significance(figures: Figures, key: str) -> str:
    """`up` or `down` if the interval of a difference excludes zero, else empty."""
    low, high = figures.get(f"{key}_low"), figures.get(f"{key}_high")
    if low is None or high is None:
        return ""
    return "up" if low > 0 else "down" if high < 0 else ""


def measured(by_policy: Mapping[str, Figures], *keys: str) -> bool:
    """Whether any policy has any of these figures."""
    return any(figures.get(key) is not None for figures in by_policy.values() for key in keys)


def headline(by_policy: Mapping[str, Figures], against: str) -> tuple[list[Column], dict[str, list[Cell]]]:
    """The columns that apply to any policy, and a row of cells for each policy.

    Gold at temperature 1 has a column only if gold is measured at another temperature. distinct-2 and perplexity have one only if there is no gold:
    repetition and lost knowledge lower gold already.
    """
    columns = [column for column in HEADLINE if measured(by_policy, column.key)]
    if all(figures.get("gold_at_1") == figures.get("gold") for figures in by_policy.values()):
        columns = [column for column in columns if column.key != "gold_at_1"]
    if measured(by_policy, "gold"):
        columns = [column for column in columns if column.key not in WITHOUT_GOLD]
    best = {column.key: _best(by_policy, column) for column in columns}
    rows = {}
    for policy, figures in by_policy.items():
        rows[policy] = [
            Cell(DASH, note="the opponent itself")
            if policy == against and column.key in ("gold_gain", "win_rate", "kl")
            else Cell(
                show(figures.get(column.key), column.style),
                show_bounds(figures, column.key, column.style),
                best=figures.get(column.key) is not None and figures.get(column.key) == best[column.key],
            )
            for column in columns
        ]
    return columns, rows


def languages(figures: Figures) -> list[str]:
    """The languages with figures of their own, the most common first."""
    return sorted((key.removeprefix("n_") for key in figures if key.startswith("n_")), key=lambda code: -figures[f"n_{code}"])


def language_rows(figures: Figures, columns: Sequence[Column]) -> list[tuple[str, list[Cell]]]:
    """A row of cells below a policy's for each language; empty cells where a column has no figures by language."""
    return [
        (
            language_name(code),
            [
                Cell(show(figures[key], column.style), show_bounds(figures, key, column.style))
                if figures.get(key := f"{column.key}_{code}") is not None
                else Cell("")
                for column in columns
            ],
        )
        for code in languages(figures)
    ]


def language_name(code: str) -> str:
    """The English name of a language, or its code."""
    return LANGUAGE_NAMES.get(code, code)


def _best(by_policy: Mapping[str, Figures], column: Column) -> float | None:
    values: list[float] = [figures[column.key] for figures in by_policy.values() if figures.get(column.key) is not None]
    if not column.better or len(set(values)) < 2:
        return None
    return max(values) if column.better == "higher" else min(values)


def families(by_policy: Mapping[str, Figures]) -> list[str]:
    """The families for which any policy has an accuracy."""
    keys = {key for figures in by_policy.values() for key, value in figures.items() if value is not None}
    gain = "accuracy_gain_"  # which only families have
    return sorted(key.removeprefix(gain) for key in keys if key.startswith(gain) and not key.endswith(("_low", "_high")))


def family_cell(figures: Figures, family: str, is_against: bool) -> Cell:
    """One cell of the family table: accuracy, and its change from the opponent's in percentage points."""
    key, gain = f"accuracy_{family}", f"accuracy_gain_{family}"
    points = None if is_against else figures.get(gain)
    note = "" if points is None else f"{100 * points:+.0f}".replace("-", MINUS)
    mark = "" if is_against else significance(figures, gain)
    return heat_cell(figures, key)._replace(mark=mark, note="0" if note[1:] == "0" else note)


def heat_cell(figures: Figures, key: str) -> Cell:
    """A fraction as a cell of a heat map."""
    value = figures.get(key)
    return Cell(show(value, "whole"), show_bounds(figures, key, "whole"), tint=value or 0.0)


def agreements(by_policy: Mapping[str, Figures]) -> list[tuple[str, list[Cell]]]:
    """A row of cells for the judge and the reward: how often each orders two answers of a policy's as it is known to be right."""
    named = {"judge_agreement": "judge", "reward_agreement": "reward"}
    return [
        (
            name,
            [
                Cell(show(figures.get(key), "percent"), show_bounds(figures, key, "percent"), note=_pairs(figures, key))
                for figures in by_policy.values()
            ],
        )
        for key, name in named.items()
        if measured(by_policy, key)
    ]


def _pairs(figures: Figures, key: str) -> str:
    return f"{figures[f'{key}_n']:,} pairs" if figures.get(key) is not None else ""


def more_figures(by_policy: Mapping[str, Figures]) -> list[tuple[str, list[Cell]]]:
    """A row of cells for each figure that no other table shows: its name, and each policy's."""
    attempts = sorted({key for of in by_policy.values() for key in of if key.startswith("pass_at_") and key[-1].isdigit()})
    columns = [
        *MORE,
        *(Column(key, f"pass@{key.removeprefix('pass_at_')}: right in as many attempts", "percent", "") for key in attempts),
    ]
    return [
        (
            column.title,
            [
                Cell(show(figures.get(column.key), column.style), show_bounds(figures, column.key, column.style))
                for figures in by_policy.values()
            ],
        )
        for column in columns
        if measured(by_policy, column.key)
    ]


def plain_table(by_policy: Mapping[str, Figures], against: str) -> str:
    """The headline table as text for a terminal."""
    columns, rows = headline(by_policy, against)
    lines = [["policy", *(column.title.lower() for column in columns)]]
    with_bounds = [column.key in ("gold_gain", "win_rate") for column in columns]
    for policy, of_policy in rows.items():
        for name, cells in [(policy, of_policy)] + [
            (f"  {name}", cells) for name, cells in language_rows(by_policy[policy], columns)
        ]:
            texts = [
                f"{cell.text} {cell.bounds}".rstrip() if bounds else cell.text
                for cell, bounds in zip(cells, with_bounds, strict=True)
            ]
            lines.append([name, *map(plain, texts)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    rule = "─" * max(map(len, shown))
    return "\n".join([shown[0], rule, *shown[1:]])


def plain(text: str) -> str:
    """A number in characters that every terminal can show."""
    return text.replace(PERCENT, "%").replace(NO_BREAK, " ").replace(MINUS, "-").replace(DASH, "-")
