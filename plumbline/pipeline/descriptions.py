"""The description of a run in MLflow, in Markdown: what the stage does, from what, and what came out."""

import ast
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from plumbline.pipeline.provenance import Input, source_file
from plumbline.pipeline.sources import ROOT

DIGITS = 8  # of a digest, as it is shown
LONGEST_ERROR = 600  # characters


@cache
def purpose(stage: str) -> str:
    """What a stage does: the first sentence of its file; empty if there is no such file."""
    file = ROOT / source_file(stage)
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else None
    return " ".join((text or "").partition("\n\n")[0].split())


def description(
    stage: str,
    choices: Mapping[str, Any],
    inputs: Sequence[Input],
    figures: Mapping[str, float],
    experiment: str,
    error: str = "",
) -> str:
    """The Markdown of a run. Inputs link to the runs that made them.

    choices: what the recipe chose, such as method, judge or policy.
    error: why the stage ended, if it failed.
    """
    chosen = ", ".join(f"{key} {value}" for key, value in choices.items())
    parts = [f"{f'{chosen}: ' if chosen else ''}{purpose(stage) or stage}"]
    if error:
        parts.append(f"**It failed**: {error[:LONGEST_ERROR]}")
    if figures:
        rows = [f"| {name} | {value:.4g} |" for name, value in figures.items()]
        parts.append("\n".join(["| figure | value |", "|---|---|", *rows]))
    if inputs:
        parts.append("\n".join(["**Inputs**", "", *(f"- {_input_line(one, experiment)}" for one in inputs)]))
    parts.append(f"Code: `{source_file(stage)}`. Values: under Parameters, explained in `conf/`.")
    return "\n\n".join(parts)


def _input_line(one: Input, experiment: str) -> str:
    made = f", made by [this run](#/experiments/{experiment}/runs/{one.maker})" if one.maker else ""
    return f"`{one.path}` ({one.digest[:DIGITS]}){made}"
