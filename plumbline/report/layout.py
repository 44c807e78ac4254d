"""Where the nodes of a graph stand when it is drawn from left to right (Sugiyama, Tagawa and Toda, 1981)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

Position = tuple[int, float]
"""A column and a row."""


def layered(parents: Mapping[str, Sequence[str]]) -> dict[str, Position]:
    """A position for each node, and for each stop: the points in the columns that an edge crosses between its ends.

    `parents` lists every node after the nodes that it builds on. A node's column is the length of the longest path to it; a node
    without parents stands just before its first child. Within a column, nodes and stops are sorted by the mean row of what leads to them.
    """
    column = _columns(parents)
    before: dict[str, list[str]] = {node: [] for node in parents}
    for node, above in parents.items():
        for parent in above:
            path = [parent, *(_stop(parent, node, x) for x in range(column[parent] + 1, column[node]))]
            for previous, stop in pairwise(path):
                before[stop] = [previous]
                column[stop] = column[previous] + 1
            before[node].append(path[-1])
    layers = [[node for node in before if column[node] == x] for x in range(max(column.values()) + 1)]
    rows: dict[str, float] = {}
    for layer in layers:
        ordered = sorted(layer, key=lambda node: sum(rows[stop] for stop in before[node]) / max(1, len(before[node])))
        offset = (max(map(len, layers)) - len(layer)) / 2
        rows |= {node: row + offset for row, node in enumerate(ordered)}
    return {node: (column[node], rows[node]) for node in before}


def edge_path(start: str, end: str, positions: Mapping[str, Position]) -> list[str]:
    """The node, stops and node that an edge connects, in order."""
    return [start, *(_stop(start, end, x) for x in range(positions[start][0] + 1, positions[end][0])), end]


def _columns(parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    column: dict[str, int] = {}
    for node, above in parents.items():
        column[node] = 1 + max((column[parent] for parent in above), default=-1)
    for node, above in parents.items():
        if not above:
            column[node] = min((column[child] - 1 for child, its_parents in parents.items() if node in its_parents), default=0)
    return column


def _stop(start: str, end: str, column: int) -> str:
    return f"{start} > {end} @ {column}"
