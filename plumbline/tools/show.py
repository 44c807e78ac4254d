"""Compares DVC's experiments in the terminal (`make show`): what each one changed, and the headline figures of its policies.

Experiments of one commit that differ in their seed alone are also shown together, with the mean and the spread of their figures.

The workspace has the figures of its last run: `dvc status` tells whether an edit has made them out of date. Arguments are passed on to
`dvc exp show`: `python -m plumbline.tools.show -n 3` shows the last three commits.
"""

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from plumbline.evaluation.statistics import pool_seeds
from plumbline.report.tables import HEADLINE, Column, Figures, plain, show

WIDTH = 120
NAME_WIDTH = 48
POLICY_WIDTH = 24
VALUE_WIDTH = 40
CHANGES_SHOWN = 12
SEED = "seed"
"""The parameter whose values are pooled."""
UNFINISHED = ("queued", "running", "failed")
"""States of an experiment without figures of its own. For a failed one DVC lists those of the commit that it started from."""

_METRICS_FILE = re.compile(r"metrics/([^/]+)\.json")
_LOWER_BOUND = Column("gold_gain_low", "at least", "gain", "")
_COLUMNS = [column for main in HEADLINE for column in ([main, _LOWER_BOUND] if main.key == "gold_gain" else [main])]

Params = Mapping[str, Any]
"""Parameters by dotted key."""


class Row(NamedTuple):
    """The figures of one policy in one experiment. An experiment without figures has one row, without a policy."""

    experiment: str
    changes: tuple[str, ...]
    policy: str
    figures: Figures


class Experiment(NamedTuple):
    """The workspace, a commit, or an experiment that started from a commit."""

    name: str
    params: Params
    start: Params
    """The parameters that it is compared with: those of the commit that it started from."""
    by_policy: Mapping[str, Figures]
    commit: str = ""
    """The revision that it is, or started from; empty for the workspace."""

    def changed(self) -> list[str]:
        """The keys of the parameters that differ from the start's."""
        keys = dict.fromkeys([*self.start, *self.params])
        return [key for key in keys if (key in self.params, self.params.get(key)) != (key in self.start, self.start.get(key))]


def table(rows: Sequence[Row], width: int = WIDTH) -> str:
    """A line for each row, below a heading with the name and the changes of its experiment; no line is longer than `width`.

    Columns in which no row has a figure are left out. `at least` is the lower bound of the gain.
    """
    columns = [column for column in _COLUMNS if any(row.figures.get(column.key) is not None for row in rows)]
    titles = [column.title.lower() for column in columns]
    cells = [[plain(show(row.figures.get(column.key), column.style)) for column in columns] for row in rows]
    widths = [max(map(len, texts)) for texts in zip(titles, *cells, strict=True)]
    room = width - 2 - sum(2 + column for column in widths)
    policy_width = min(POLICY_WIDTH, room, max((len(row.policy) for row in rows), default=0))

    def line(policy: str, texts: Sequence[str]) -> str:
        figures = "".join(f"  {text:>{column}}" for text, column in zip(texts, widths, strict=True))
        return f"  {_shortened(policy, policy_width):{policy_width}}{figures}"

    lines = [line("", titles)]
    lines.append("─" * len(lines[0]))
    for (experiment, changes), group in groupby(zip(rows, cells, strict=True), key=lambda pair: pair[0][:2]):
        lines += _heading(experiment, changes, width)
        lines += [line(row.policy, texts) if row.policy else "  no figures" for row, texts in group]
    return "\n".join(lines)


def _heading(experiment: str, changes: Sequence[str], width: int) -> list[str]:
    """The experiment and its changes, on as many lines as they need."""
    more = [f"and {len(changes) - CHANGES_SHOWN} more"] if len(changes) > CHANGES_SHOWN else []
    whole = [text.replace(" ", "\N{NO-BREAK SPACE}") for text in (*changes[:CHANGES_SHOWN], *more)]
    text = "  ".join([_shortened(experiment, width), *whole])
    lines = textwrap.wrap(text, width, subsequent_indent="    ", break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"


def experiment_rows(listing: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows of what `dvc exp show --json` lists.

    An experiment shows the parameters that it changed; the latest commit shows its values of all that anything changed. The
    workspace is left out if it equals that commit.
    """
    shown = list(_experiments(listing))
    latest = next((experiment for experiment in shown if experiment.name != "workspace"), None)
    changed = list(dict.fromkeys(key for experiment in shown for key in experiment.changed()))
    rows: list[Row] = []
    for experiment in shown:
        if latest and experiment.name == "workspace" and experiment[1:4] == latest[1:4]:
            continue
        keys = [key for key in changed if key in experiment.params] if experiment is latest else experiment.changed()
        changes = tuple(_change(key, experiment.params) for key in keys)
        rows += [Row(experiment.name, changes, policy, figures) for policy, figures in experiment.by_policy.items()] or [
            Row(experiment.name, changes, "", {})
        ]
    return rows + _seed_rows(shown)


def _seed_rows(experiments: Sequence[Experiment]) -> list[Row]:
    """Two rows for each policy of experiments that differ in their seed alone: the means of its figures, and their standard deviations."""
    groups: dict[str, dict[Any, Experiment]] = {}
    for experiment in experiments:
        if experiment.commit and experiment.by_policy and SEED in experiment.params:
            rest = {key: value for key, value in experiment.params.items() if key != SEED}
            key = json.dumps([experiment.commit, sorted(rest.items())])
            groups.setdefault(key, {}).setdefault(experiment.params[SEED], experiment)
    rows: list[Row] = []
    for group in groups.values():
        if len(group) > 1:
            first = next(iter(group.values()))
            name = f"{len(group)} seeds of {first.name}: mean, ± standard deviation"
            rows += _pooled(name, (f"{SEED}={', '.join(map(str, sorted(group)))}",), [one.by_policy for one in group.values()])
    return rows


def _pooled(name: str, changes: tuple[str, ...], seeds: Sequence[Mapping[str, Figures]]) -> list[Row]:
    """The rows of the policies that every seed has, with the figures that every seed has of them."""
    rows = []
    for policy in seeds[0]:
        if all(policy in seed for seed in seeds):
            shared = [key for key in seeds[0][policy] if all(seed[policy].get(key) is not None for seed in seeds)]
            pooled = {key: pool_seeds([seed[policy][key] for seed in seeds]) for key in shared}
            rows.append(Row(name, changes, policy, {key: one.mean for key, one in pooled.items()}))
            rows.append(Row(name, changes, "  ±", {key: one.deviation for key, one in pooled.items()}))
    return rows


def _experiments(listing: Sequence[Mapping[str, Any]]) -> Iterator[Experiment]:
    latest = next((_params(state) for state in listing if state["rev"] != "workspace"), {})
    for state in listing:
        commit = "" if state["rev"] == "workspace" else state["rev"]
        yield _experiment(state, latest)._replace(commit=commit)
        for branch in state["experiments"] or []:
            progress = (branch["executor"] or {}).get("state", "")
            yield _experiment(branch["revs"][0], _params(state), progress)._replace(commit=commit)


def _experiment(state: Mapping[str, Any], start: Params, progress: str = "") -> Experiment:
    revision = state["rev"] if state["rev"] == "workspace" else state["rev"][:7]
    name = f"{_shortened(state['name'], NAME_WIDTH)} {revision}" if state["name"] else revision
    if state["data"] is None:
        return Experiment(f"{name}, unreadable: {(state['error'] or {}).get('msg')}", start, start, {})
    if progress in UNFINISHED:
        return Experiment(f"{name}, {progress}", _params(state), start, {})
    files = {match[1]: file for path, file in state["data"]["metrics"].items() if (match := _METRICS_FILE.fullmatch(path))}
    return Experiment(name, _params(state), start, {policy: file["data"] for policy, file in files.items() if "data" in file})


def _params(state: Mapping[str, Any]) -> dict[str, Any]:
    files = (state["data"] or {}).get("params", {})
    return dict(leaf for file in files.values() for leaf in _leaves(file.get("data") or {}))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _change(key: str, params: Params) -> str:
    if key not in params:
        return f"{key} removed"
    value = params[key]
    return f"{key}={_shortened(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), VALUE_WIDTH)}"


def main() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "show", "--json", *sys.argv[1:]], stdout=subprocess.PIPE, text=True, check=False
    )
    if process.returncode:
        sys.exit(process.returncode)
    rows = experiment_rows(json.loads(process.stdout))
    if not any(row.policy for row in rows):
        sys.exit("show: no experiment has figures yet; `make repro` computes the first ones")
    print(table(rows))


if __name__ == "__main__":
    main()
