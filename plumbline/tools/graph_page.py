"""Draws what the last `make repro` ran, what came from the cache, and where the time went (`make graph`).

    python -m plumbline.tools.graph_page

Experiments of DVC's queue run in copies of the project, with values of their own: they are listed below the graph.

Reads params.yaml, dvc.lock and `.timings/`; writes `scratch/graph.html` and prints the same as a table. The report has the graph alone: how long a
node took, and whether it ran, differs from run to run by nature, and an output that DVC caches has to be the same for the same inputs.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plumbline.graph import Node
from plumbline.pipeline.digests import locked_stages
from plumbline.pipeline.mlflow_calls import project_root
from plumbline.pipeline.params import load_params
from plumbline.pipeline.records import read_jsonl, replacing
from plumbline.report.graph_picture import Cost, cost_text, duration, kind, nodes_in_order, picture_page

TIMINGS = ".timings"
STARTED = "started"
"""The file in which `make repro` writes when it began."""
PAGE = Path("scratch/graph.html")


class Timing(NamedTuple):
    """A run of a node by `dvc repro` in this project."""

    seconds: float
    at: str
    """When it ended, in UTC, as ISO 8601; empty if an older version ran it."""


def last_timings(folder: Path, names: Iterable[str]) -> dict[str, Timing]:
    """The last run of each node in this folder by DVC: not those by hand, nor those of queued experiments, whose results lie elsewhere."""
    timings = {}
    for name in names:
        file = folder / f"{name}.jsonl"
        for row in read_jsonl(file) if file.is_file() else []:
            if "stage_seconds" in row and (row.get("by", "dvc") == "dvc" or (_is_experiment(row) and row.get("here", False))):
                timings[name] = Timing(row["stage_seconds"], row.get("at", ""))
    return timings


class Experiment(NamedTuple):
    """What a queued experiment ran."""

    name: str
    nodes: dict[str, float]
    """Node → seconds of its last run."""
    at: str
    """When its last node ended, in UTC, as ISO 8601."""


def experiments(folder: Path, started: str) -> list[Experiment]:
    """The queued experiments of which a node ended since `started`, of all in the folder of timings if that is empty; the last one last."""
    by_name: dict[str, Experiment] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for row in read_jsonl(file):
            if "stage_seconds" in row and _is_experiment(row) and not row.get("here", False) and row.get("at", "") >= started:
                one = by_name.get(row["by"], Experiment(row["by"], {}, ""))
                by_name[row["by"]] = one._replace(
                    nodes=one.nodes | {file.stem: row["stage_seconds"]}, at=max(one.at, row.get("at", ""))
                )
    return sorted(by_name.values(), key=lambda one: (one.at, one.name))


def _is_experiment(row: Mapping[str, Any]) -> bool:
    return row.get("by", "dvc") not in ("dvc", "hand")


def experiment_lines(of: Sequence[Experiment]) -> list[list[str]]:
    """A row for each experiment: its name, how many nodes ran, how long that took and which took longest, and when the last one ended."""
    return [
        [
            one.name,
            f"{len(one.nodes)} node{'s' if len(one.nodes) > 1 else ''}",
            f"{duration(sum(one.nodes.values()))}, longest {longest} {duration(one.nodes[longest])}",
            _minute(one.at),
        ]
        for one in of
        for longest in [max(one.nodes, key=lambda node: one.nodes[node])]
    ]


def costs(names: Iterable[str], timings: Mapping[str, Timing], locked: Iterable[str], started: str) -> dict[str, Cost]:
    """What each node took, and whether the run that began at `started` ran it; nothing counts as run if that is empty."""
    known = {*locked}
    by_node = {}
    for name in names:
        timing = timings.get(name)
        was_run = bool(started and timing and timing.at >= started)
        by_node[name] = Cost(timing.seconds if timing else None, "run" if was_run else "cached" if name in known else "not run")
    return by_node


def lines(of: Sequence[Node], by_node: Mapping[str, Cost], timings: Mapping[str, Timing]) -> list[list[str]]:
    """A row for each node: its name, its kind, what it took, and when that was."""
    whole = sum(cost.seconds or 0.0 for cost in by_node.values()) or 1.0
    return [
        [
            node.name,
            kind(node),
            cost_text(by_node[node.name], whole),
            _minute(timings[node.name].at) if node.name in timings else "",
        ]
        for node in of
    ]


def summary_of(by_node: Mapping[str, Cost], started: str) -> str:
    """What ran and what did not, in a sentence."""
    seconds = {state: sum(cost.seconds or 0.0 for cost in by_node.values() if cost.state == state) for state in ("run", "cached")}
    count = {state: sum(cost.state == state for cost in by_node.values()) for state in ("run", "cached", "not run")}
    if not started:
        return "Nothing says when the last make repro began, so that every result that is there counts as cached."
    parts = [
        f"Since the last make repro began ({_minute(started)}), {count['run']} of {len(by_node)} nodes ran, in {duration(seconds['run'])}."
    ]
    if count["cached"]:
        parts.append(f"{count['cached']} came from the cache, which saved {duration(seconds['cached'])}.")
    if count["not run"]:
        parts.append(f"{count['not run']} have not run yet.")
    return " ".join(parts)


def _minute(at: str) -> str:
    return f"{at[:16].replace('T', ' ')} UTC" if at else ""


def draw(recipe: Mapping[str, Any], locked: Iterable[str], folder: Path) -> tuple[str, str]:
    """The page, and the same as text for a terminal.

    folder: that of the timings.
    """
    of = nodes_in_order(recipe)
    names = [node.name for node in of]
    started = (folder / STARTED).read_text().strip() if (folder / STARTED).is_file() else ""
    timings = last_timings(folder, names)
    by_node = costs(names, timings, locked, started)
    rows, sentence = lines(of, by_node, timings), summary_of(by_node, started)
    queued = experiment_lines(experiments(folder, started))
    below = ["", f"Queued experiments{' since then' if started else ''}:", *_aligned(queued)] if queued else []
    return picture_page(of, by_node, rows, sentence, queued), "\n".join([*_aligned(rows), "", sentence, *below])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines whose columns begin at the same place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def main() -> None:
    try:
        page, text = draw(load_params(), locked_stages(), project_root() / TIMINGS)
    except (OSError, ValueError) as error:
        sys.exit(f"graph: {error}")
    with replacing(PAGE) as file:
        file.write(page)
    print(f"{text}\nThe picture: {PAGE}")


if __name__ == "__main__":
    main()
