"""The pipeline as a picture: a row for each node, below those that it builds on, with its kind and, where it is known, what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from markupsafe import Markup, escape

from plumbline.graph import Node, nodes, parents
from plumbline.report.lanes import depth_first, lanes, nearest
from plumbline.report.templating import template, verbatim

KINDS = {
    "data": "data",
    "policy": "policy",
    "sample": "completions",
    "feedback": "rows to learn from",
    "label": "rows to learn from",
    "reject": "rows to learn from",
    "revise": "rows to learn from",
    "reward": "reward",
    "answer": "evaluation",
    "evaluate": "evaluation",
    "overoptimisation": "evaluation",
}
"""The folder of artifacts/ that a node writes → the kind of node."""

OTHER = "other"
SHAPES = {
    "data": "M-5,-5H5V5H-5Z",
    "policy": "M-5.5,0A5.5,5.5 0 1 1 5.5,0A5.5,5.5 0 1 1 -5.5,0Z",
    "completions": "M0,-6.5L6.5,0L0,6.5L-6.5,0Z",
    "rows to learn from": "M-6,5L0,-6L6,5Z",
    "reward": "M0,-6.5L1.7,-2.2L6.2,-2L2.7,0.9L3.9,5.3L0,2.8L-3.9,5.3L-2.7,0.9L-6.2,-2L-1.7,-2.2Z",
    "evaluation": "M-5.5,-1.8H-1.8V-5.5H1.8V-1.8H5.5V1.8H1.8V5.5H-1.8V1.8H-5.5Z",
    OTHER: "M-6,-2.5H6V2.5H-6Z",
}
"""Each kind has a shape of its own, so that it is told without colour."""

CORNER = 6


class Cost(NamedTuple):
    """What a node took when it last ran, and whether that was in the run that is shown."""

    seconds: float | None
    """None if it is not known."""
    state: Literal["run", "cached", "not run"]


class Size(NamedTuple):
    """The measures of a picture, in pixels."""

    width: int
    row: int
    lane: int
    letter: float
    """Of the names, which are set in a fixed width."""
    is_wide: bool


WIDE, NARROW = Size(1056, 28, 18, 7.85, True), Size(340, 30, 12, 7.25, False)
NOTE_LETTER = 6.6
"""The mean width of a letter of the notes, in pixels; few fonts need more."""
COST_WIDTH = 95
"""What a share of the time and a state take beside a name, in pixels."""
COSTS_ROW = 40
"""The height of a narrow row with a bar below its name."""


def nodes_in_order(recipe: Mapping[str, Any]) -> list[Node]:
    """Every node as the picture lists them: what leads to the first policy's figures, then what those of the second take besides, and so on."""
    policies = recipe["evaluate"]["policies"]
    by_name = {node.name: node for node in nodes(recipe)}
    first = [name for policy in policies if (name := f"evaluate@{policy}") in by_name]
    above = parents([by_name[name] for name in dict.fromkeys([*first, *by_name])])
    return [by_name[name] for name in depth_first(above)]


def kind(node: Node) -> str:
    """What a node makes, in a word."""
    return KINDS.get(node.makes[0].partition("/")[0], OTHER) if node.makes else OTHER


def picture_page(
    of: Sequence[Node],
    costs: Mapping[str, Cost],
    rows: Sequence[Sequence[str]],
    sentence: str,
    experiments: Sequence[Sequence[str]] = (),
) -> str:
    """A page of its own for a graph with what its nodes took.

    rows: of the table below the picture: name, kind, time, and when it ran. experiments: of a second one, of the experiments that ran elsewhere:
    name, number of nodes, time, and when the last of them ended.
    """
    graph = pictures(of, {}, {}, costs)
    return template("graph.html.j2", {}).render(
        style=verbatim("report.css"), graph=graph, rows=rows, sentence=sentence, experiments=experiments
    )


def pictures(
    of: Sequence[Node], colours: Mapping[str, str], notes: Mapping[str, str], costs: Mapping[str, Cost] | None = None
) -> Markup:
    """The graph for a wide page and for a narrow one, of which the style sheet shows one, and the key of its shapes.

    of: every node after those that it builds on. colours: node → the colour of the policy that it makes. notes: node → what is said of
    it where there is room. costs: node → what it took, which is drawn instead of the notes.
    """
    drawn = [
        Markup(f'<figure class="graph {name}">{_picture(of, colours, notes, costs, size)}</figure>')
        for name, size in _SIZES.items()
    ]
    shown = dict.fromkeys(kind(node) for node in of)
    key = Markup("").join(
        Markup(
            f'<li><svg aria-hidden="true" viewBox="-8 -8 16 16"><path d="{SHAPES[name]}" fill="var(--soft)"/></svg>{name}</li>'
        )
        for name in shown
    )
    return Markup("\n").join([Markup(f'<ul class="kinds">{key}</ul>'), *drawn])


_SIZES = {"wide": WIDE, "narrow": NARROW}


def _picture(
    of: Sequence[Node], colours: Mapping[str, str], notes: Mapping[str, str], costs: Mapping[str, Cost] | None, size: Size
) -> str:
    above = nearest(parents([*of]))
    lane = lanes([node.name for node in of], above)
    height = COSTS_ROW if costs and not size.is_wide else size.row
    centre = {node.name: (10 + size.lane * lane[node.name], height * row + 14) for row, node in enumerate(of)}
    edges = "".join(f'<path d="{_edge(*centre[parent], *centre[node.name])}"/>' for node in of for parent in above[node.name])
    text_x = 10 + size.lane * (max(lane.values(), default=0) + 1)
    room = size.width - text_x - (COST_WIDTH if costs and not size.is_wide else 0)
    rows = "".join(
        _row(node, centre[node.name], text_x, colours.get(node.name, "var(--soft)"), room < len(node.name) * size.letter and room)
        for node in of
    )
    note_x = text_x + int(size.letter * max(len(node.name) for node in of)) + 24
    if size.is_wide and not costs:
        room = int((size.width - note_x) / NOTE_LETTER)
        rows += "".join(_note(notes.get(node.name, ""), note_x, centre[node.name][1], room) for node in of)
    if costs:
        rows += _costs(of, costs, {name: y for name, (_, y) in centre.items()}, text_x, size)
    label = f"The pipeline as a graph of {len(of)} nodes, each below those that it builds on; the table lists them."
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {size.width} {height * len(of) + 4}" font-size="13">'
        f'<g fill="none" stroke="var(--muted)" stroke-width="1.4">{edges}</g>{rows}</svg>'
    )


def _edge(x: int, y: int, to_x: int, to_y: int) -> str:
    """A line down the lane of the upper node, then across to the lower one."""
    if x == to_x:
        return f"M{x},{y}V{to_y}"
    turn = CORNER if to_x > x else -CORNER
    return f"M{x},{y}V{to_y - CORNER}Q{x},{to_y} {x + turn},{to_y}H{to_x}"


def _row(node: Node, centre: tuple[int, int], text_x: int, colour: str, squeezed: int) -> str:
    """The shape and the name of a node.

    squeezed: the width of the name if it has to be made narrower, else 0.
    """
    x, y = centre
    stage, _, entry = node.name.partition("@")
    prefix = f'<tspan fill="var(--muted)">{escape(stage)}@</tspan>' if entry else ""
    name = f'{prefix}<tspan font-weight="600">{escape(entry or stage)}</tspan>'
    shape = f'<path transform="translate({x},{y})" d="{SHAPES[kind(node)]}" fill="{colour}" stroke="var(--paper)" stroke-width="1.5"/>'
    length = f' textLength="{squeezed}" lengthAdjust="spacingAndGlyphs"' if squeezed else ""
    return f'{shape}<text class="node" x="{text_x}" y="{y + 4}" fill="var(--ink)"{length}>{name}</text>'


def _note(text: str, x: int, y: int, room: int) -> str:
    short = text if len(text) <= room else f"{text[: room - 1].rstrip(' ,')}…"
    return f'<text x="{x}" y="{y + 4}" fill="var(--muted)">{escape(short)}</text>' if text else ""


def _costs(of: Sequence[Node], costs: Mapping[str, Cost], y: Mapping[str, int], text_x: int, size: Size) -> str:
    """Each node's time as a bar, filled if the node was run and hollow if it came from the cache."""
    whole = sum(cost.seconds or 0.0 for cost in costs.values()) or 1.0
    longest = max((cost.seconds or 0.0 for cost in costs.values()), default=0.0) or 1.0
    start = text_x + int(size.letter * max(len(node.name) for node in of)) + 24 if size.is_wide else text_x
    room = size.width - start - (230 if size.is_wide else 0)
    drawn = []
    for node in of:
        cost = costs.get(node.name, Cost(None, "not run"))
        length = room * (cost.seconds or 0.0) / longest
        text = escape(cost_text(cost, whole, is_short=not size.is_wide))
        filled = "var(--soft)" if cost.state == "run" else "none"
        bar_y, bar_height = (y[node.name] - 6, 12) if size.is_wide else (y[node.name] + 9, 4)
        if length:
            drawn.append(
                f'<rect x="{start}" y="{bar_y}" width="{max(1.0, length):.1f}" height="{bar_height}" fill="{filled}" '
                'stroke="var(--soft)" stroke-width="1"/>'
            )
        position = f'x="{start + length + 8:.1f}"' if size.is_wide else f'x="{size.width}" text-anchor="end" font-size="11"'
        drawn.append(f'<text {position} y="{y[node.name] + 4}" fill="var(--soft)">{text}</text>')
    return "".join(drawn)


def cost_text(cost: Cost, whole_seconds: float, *, is_short: bool = False) -> str:
    """A node's time, its share of all nodes' time, and where it came from; without the time if it has to be short."""
    if cost.seconds is None:
        return cost.state
    if is_short:
        return f"{100 * cost.seconds / whole_seconds:.0f} % · {cost.state}"
    return f"{duration(cost.seconds)} · {100 * cost.seconds / whole_seconds:.0f} % · {cost.state}"


def duration(seconds: float) -> str:
    """A time as people say it: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
