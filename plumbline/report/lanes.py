"""Where the nodes of a graph stand when it is drawn from top to bottom, a row for each node, as version histories are drawn."""

from collections.abc import Mapping, Sequence


def depth_first(parents: Mapping[str, Sequence[str]]) -> list[str]:
    """Every node after those that it builds on and as soon after them as may be, so that what belongs together stands together.

    parents: every node → the nodes that it builds on; the graph has to be acyclic.
    """
    order: dict[str, None] = {}

    def visit(node: str) -> None:
        if node not in order:
            for parent in parents[node]:
                visit(parent)
            order[node] = None

    for node in sorted(
        parents, key=lambda node: _has_children(node, parents)
    ):  # what leads to no other node first: it brings the rest
        visit(node)
    return [*order]


def _has_children(node: str, parents: Mapping[str, Sequence[str]]) -> bool:
    return any(node in above for above in parents.values())


def nearest(parents: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The parents of each node without those that another parent builds on already (the transitive reduction)."""
    above: dict[str, set[str]] = {}
    for node in depth_first(parents):
        above[node] = {ancestor for parent in parents[node] for ancestor in (parent, *above[parent])}
    return {
        node: [parent for parent in of_node if not any(parent in above[other] for other in of_node)]
        for node, of_node in parents.items()
    }


def lanes(order: Sequence[str], parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The column of each node: its own from its row to that of its last child.

    order: the nodes from top to bottom, each after its parents.
    """
    last = {parent: row for row, node in enumerate(order) for parent in parents[node]}
    taken: list[str | None] = []
    lane: dict[str, int] = {}
    for row, node in enumerate(order):
        for position, holder in enumerate(taken):
            if holder is not None and last.get(holder, -1) <= row:
                taken[position] = None
        ending = [lane[parent] for parent in parents[node] if last[parent] == row]
        free = [position for position, holder in enumerate(taken) if holder is None]
        lane[node] = min(ending or free, default=len(taken))
        if lane[node] == len(taken):
            taken.append(None)
        taken[lane[node]] = node
    return lane
