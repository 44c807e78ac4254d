"""The report as Markdown for the comment of a pull request: the story first, what takes more room folded away, and never longer than GitHub allows.

What models and data say is escaped: it formats nothing, links nowhere and notifies nobody. It is tested against CommonMark with GitHub's tables.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence

from plumbline.graph import Node, parents
from plumbline.report import changes, examples, graph_picture, ranking, sentences, story, tables
from plumbline.report.examples import Answer, Example
from plumbline.report.lanes import nearest
from plumbline.report.material import Material

LONGEST = 60_000
"""The most characters; GitHub allows 65,536 in a comment, and whoever posts it may add a line."""
CLIPPED = 500
"""The most characters of a prompt or an answer."""

_SPECIAL = re.compile(r"[\\`*_\[<>#|~&$]|:(?=//)|(?<=www)\.", re.IGNORECASE)
_REFERENCE = re.compile(r"(?<![A-Za-z0-9])@|(?<=GH-)(?=\d)|(?<=#)(?=\d)", re.IGNORECASE)
_LINK = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)", re.IGNORECASE)
NOT_A_REFERENCE = "&#8203;"
"""A space of no width, which keeps GitHub from reading somebody's name or the number of an issue."""


def render_markdown(material: Material) -> str:
    """The report, with as many of its parts as fit."""
    told = story.tell(material)
    parts = [
        f"## {text(told.headline)}",
        text(told.lede),
        "\n".join(f"- **{point.about}.** {text(point.text)}" for point in told.points),
    ]
    parts += [_headline_table(material, told.gold_trained), _circumstances(material)]
    folded = [*_pairs(material), _families(material), *_answers(material), _recipe(material)]
    last = "The whole report with charts, training curves and more answers: `artifacts/report/report.html`."
    shown, left_out = _fitting([part for part in parts if part], [part for part in folded if part], LONGEST - len(last) - 200)
    if left_out:
        last = f"Left out because a comment has to be short: {left_out} part{'s' if left_out > 1 else ''}. {last}"
    return "\n\n".join([*shown, last]) + "\n"


def text(value: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    line = value.replace("\r\n", "\n").replace("\r", "\n")
    escaped = _SPECIAL.sub(lambda match: f"\\{match[0]}", line)
    escaped = _REFERENCE.sub(lambda match: match[0] + NOT_A_REFERENCE, escaped)
    return "<br>".join(part.strip() for part in escaped.split("\n"))


def html_text(value: str) -> str:
    """A text that HTML within Markdown shows as it is, on one line: there a backslash escapes nothing."""
    escaped = html.escape(" ".join(value.split()), quote=False)
    for pattern in (_REFERENCE, _LINK):
        escaped = pattern.sub(lambda match: match[0] + NOT_A_REFERENCE, escaped)
    return escaped


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """A table whose cells are Markdown already; all columns but the first are set to the right if they hold numbers."""
    lines = [titles, ["---", *(["--:" if numbers else "---"] * (len(titles) - 1))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def folded(summary: str, content: str) -> str:
    """Content, which is Markdown, that unfolds below a line of plain text."""
    return f"<details><summary>{html_text(summary)}</summary>\n\n{content}\n\n</details>"


def _fitting(parts: Sequence[str], optional: Sequence[str], room: int) -> tuple[list[str], int]:
    """All parts, and the optional ones as long as there is room for them; and how many of these did not fit."""
    shown, left_out = [*parts], 0
    room -= sum(len(part) + 2 for part in parts)
    for part in optional:
        if len(part) + 2 <= room:
            shown.append(part)
            room -= len(part) + 2
        else:
            left_out += 1
    return shown, left_out


def _headline_table(material: Material, trained: Sequence[str]) -> str:
    columns, rows = tables.headline(material.figures, material.against)
    cut_off = sentences.often_cut_off(material.figures)
    arrows = {"higher": " ↑", "lower": " ↓", "": ""}
    titles = ["Policy", *(f"{column.title}{arrows[column.better]}" for column in columns)]
    lines = [
        [
            text(policy) + (" †" if policy in trained else "") + (" ‡" if policy in cut_off else ""),
            *(_cell(cell) for cell in rows[policy]),
        ]
        for policy in material.policies
    ]
    note = "Brackets hold 95 % intervals over prompts. **Bold** is the best of a column, ↑ higher is better, ↓ lower is better."
    if trained:
        note += " † was trained on the verifier, so gold is not an independent measure of it."
    if cut_off:
        note += " ‡ Many of its answers were cut off at the token limit."
    return f"{table(titles, lines)}\n\n<sub>{note}</sub>"


def _cell(cell: tables.Cell) -> str:
    value = f"**{cell.text}**" if cell.best else cell.text
    return f"{value} <sub>{text(cell.bounds)}</sub>" if cell.bounds else value


def _circumstances(material: Material) -> str:
    recipe, section, first = material.recipe, material.recipe["evaluate"], material.figures[material.against]
    facts = {
        "model": recipe["model"],
        "data": recipe["data"],
        "opponent": material.against,
        "prompts": f"{first['n']:,} of the {section['split']} split",
        "answers": f"{first['answers']:,} of each policy",
        "decoding": material.decoding.words,
        "judge": section["judge"],
        "reward": section["reward"],
        "seed": recipe["seed"],
    }
    return "<sub>" + " · ".join(f"{name} **{text(str(value))}**" for name, value in facts.items()) + "</sub>"


def _pairs(material: Material) -> Iterator[str]:
    """Every two policies by each measure, folded away on its own, so that as many as fit can be shown."""
    for number, compared in enumerate(ranking.rankings(material)):
        titles = ["Pair", f"Difference{', points' if compared.unit == 'points' else ''}", "p (Holm)", "Prompts it takes"]
        lines = [[text(pair.sentence), text(pair.difference), text(pair.p_value), pair.prompts] for pair in compared.pairs]
        parts = [table(titles, lines) if lines else "", text(compared.left_out)]
        heading = "" if number else "### Which policy is better?\n\n"
        yield heading + folded(compared.summary, "\n\n".join(part for part in parts if part))


def _families(material: Material) -> str:
    every = tables.families(material.figures)
    if not every:
        return ""
    marks = {"up": "▲", "down": "▼", "": ""}

    def cell(policy: str, family: str) -> str:
        shown = tables.family_cell(material.figures[policy], family, policy == material.against)
        change = f" <sub>{marks[shown.mark]}{shown.note}</sub>" if shown.note else ""
        return shown.text + change

    lines = [[text(family.replace("_", " ")), *(cell(policy, family) for policy in material.policies)] for family in every]
    note = f"<sub>The small number is the change from {text(material.against)} in points; ▲ and ▼ mark significant ones.</sub>"
    return folded("Accuracy by family", f"{table(['Family', *map(text, material.policies)], lines)}\n\n{note}")


def _answers(material: Material) -> Iterator[str]:
    """Each of the prompts that show something, folded away on its own, so that as many as fit can be shown."""
    every = examples.read_examples(material.answers, material.policies, material.against)
    chosen = examples.telling(every, material.prompts)
    heading = f"### {examples.heading(chosen)}\n\n{examples.how_chosen(every)}\n\n"
    for position, example in enumerate(chosen):
        kind = f"{example.kind.replace('_', ' ')}: " if example.kind else ""
        asked = kind + _clipped(example.prompt[-1]["content"], 100)
        yield ("" if position else heading) + folded(asked, _answered(example, material.against))


def _answered(example: Example, against: str) -> str:
    conversation = "<br>".join(f"**{message['role']}** {text(_clipped(message['content']))}" for message in example.prompt)
    right = f"<br>**right** {text(_clipped(example.right))}" if example.right else ""
    lines = [[text(answer.policy), _verdict(answer), _said(example, answer, against)] for answer in example.answers]
    return f"{conversation}{right}\n\n{table(['Policy', '', 'Answer'], lines, numbers=False)}"


def _verdict(answer: Answer) -> str:
    return "<br>".join(text(badge.text) for badge in answer.badges)


def _said(example: Example, answer: Answer, against: str) -> str:
    """An answer with its changes from the opponent's marked; one that is too long is cut short and unmarked."""
    parts = example.changes(answer, against)
    if not parts or len(answer.text) > CLIPPED:
        return text(_clipped(answer.text)) or "*empty answer*"
    shown = (
        (f"<{tag}>{text(words)}</{tag}>" if tag and words else text(words)) + ("<br>" if "\n" in space else space)
        for tag, words, space in changes.segments(parts)
    )
    return "".join(shown).strip()


def _clipped(value: str, longest: int = CLIPPED) -> str:
    return value if len(value) <= longest else f"{value[: longest - 1].rstrip()}…"


def _recipe(material: Material) -> str:
    every = graph_picture.nodes_in_order(material.recipe)
    return folded("Recipe", f"```mermaid\n{mermaid(every)}\n```")


def mermaid(of: list[Node]) -> str:
    """The graph as a Mermaid diagram, which GitHub draws; an edge is left out where another way leads to the same node."""
    above = nearest(parents(of))
    number = {node.name: f"n{position}" for position, node in enumerate(of)}
    boxes = ['  {}["{}"]'.format(number[node.name], node.name.replace('"', "#quot;")) for node in of]
    edges = [f"  {number[parent]} --> {number[node.name]}" for node in of for parent in above[node.name]]
    return "\n".join(["flowchart TD", *boxes, *edges])
