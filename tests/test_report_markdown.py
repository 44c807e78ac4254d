"""Claims about report.md: a comment that GitHub takes, the story first, and nothing in it that formats, links or notifies by itself."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from plumbline.graph import nodes
from plumbline.report import markdown_page
from plumbline.report.markdown_page import folded, mermaid, render_markdown, table, text
from tests.reporting import ATTACK, RECIPE, Page, material, without_gold

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def read(source: str) -> str:
    """What a reader of this Markdown sees."""
    return Page(MARKDOWN.render(source)).text.replace("\u200b", "")


def test_the_story_comes_first_then_the_table_then_what_is_folded() -> None:
    source = render_markdown(material())
    assert source.startswith("## dpo is the best of 3 policies\n\ndpo beats sft by 0.20 gold")
    order = [
        source.index(part)
        for part in ("- **Safety.**", "| Policy |", "Which policy is better?", "Accuracy by family", "```mermaid")
    ]
    assert order == sorted(order)
    assert source.count("<details>") == source.count("</details>") == 18  # six measures, families, ten prompts, recipe
    assert source.endswith("`artifacts/report/report.html`.\n")


def test_tables_are_tables() -> None:
    html = MARKDOWN.render(render_markdown(material()))
    headline = html[html.index("<table>") : html.index("</table>")]
    assert re.findall(r"<th[^>]*>(\w+)", headline)[:2] == ["Policy", "Gold"]
    assert len(re.findall(r"<tr>", headline)) == 4
    assert "<strong>0.60</strong>" in headline
    assert html.count("<table>") == 18  # the headline, six measures, families, ten prompts


def test_data_without_gold_have_their_story_too() -> None:
    source = render_markdown(without_gold())
    assert source.startswith("## dpo complies with fewer harmful requests and gives more right answers than sft\n")
    assert "harmful request: Question" in source
    assert "| ✓ declines a harmful request |" in source
    assert "| ✗ complies with a harmful request |" in source
    assert "Harmful requests complied with (lower is better): the two differ on 12 prompts" in source
    assert "Accuracy by family" not in source


@given(st.text(alphabet=r"ab1 \`*_{}[]()<>#+-.!|~&@:/$\n\r'\"", max_size=40))
def test_a_text_is_shown_as_it_is(value: str) -> None:
    shown = read(table(["a", "b"], [["x", text(value)]]))
    lines = [" ".join(line.split()) for line in re.split(r"\r\n|\r|\n", value)]
    assert "".join("".join(lines).split()) == "".join(shown.removeprefix("\n\n\na").split())[2:]


@pytest.mark.parametrize(
    "value", ["@someone", "see @someone", "#12", "owner/repo#12", "GH-12", "https://a.example", "www.a.example"]
)
def test_nobody_is_notified_and_nothing_is_linked(value: str) -> None:
    """GitHub reads these in the text that Markdown has made, or, links, in the source."""
    source = text(value)
    shown = Page(MARKDOWN.render(source)).text
    assert not re.search(r"(?<![\w\u200b])@\w|#\d|GH-\d", shown)
    assert not re.search(r"https?://|www\.", source)
    assert read(source).strip() == value
    line = folded(value, "content")
    assert not re.search(r"(?<![\w\u200b])@\w|#\d|GH-\d|https?://|www\.", Page(MARKDOWN.render(line)).text)
    assert not re.search(r"https?://|www\.", line)


def test_what_a_model_says_formats_nothing() -> None:
    made = material()
    said = {"completion": [{"role": "assistant", "content": f"{ATTACK}\n\n</details>\n| cell |\n```"}]}
    asked = {"prompt": [{"role": "user", "content": f"What is 2 * 3 in snake_case? {ATTACK}"}]}
    answers = {policy: [row | said | asked for row in of] for policy, of in made.answers.items()}
    html = MARKDOWN.render(render_markdown(material(answers=answers)))
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("</details>") == 18
    assert "&lt;script&gt;alert(1)" in html
    summaries = re.findall(r"<summary>(.*?)</summary>", html)
    assert (
        sum("What is 2 * 3 in snake_case? &lt;script&gt;alert(1)&lt;/script&gt;&lt;img" in summary for summary in summaries) == 10
    )


@given(st.text(alphabet="ab1 \\`*_<>#&;@:/$\n'\"", max_size=40))
def test_a_line_to_unfold_is_shown_as_it_is(value: str) -> None:
    shown = read(folded(f"x{value}", "content"))
    assert shown.split() == [*f"x{value}".split(), "content"]


def test_a_comment_is_never_longer_than_github_allows() -> None:
    long: Any = [{"role": "assistant", "content": "*_|" * 9_000}]
    made = material()
    answers = {
        policy: [row | {"completion": long, "prompt": [{"role": "user", "content": "<" * 9_000}]} for row in of]
        for policy, of in made.answers.items()
    }
    whole = render_markdown(material(answers=answers, prompts=60))
    assert 30_000 < len(whole) <= 65_536
    assert "Left out because a comment has to be short: " in whole
    assert whole.count("<details>") == whole.count("</details>")
    assert "Left out" not in render_markdown(made)


def test_the_story_and_the_table_are_never_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown_page, "LONGEST", 0)
    source = render_markdown(material())
    assert "| Policy |" in source
    assert "<details>" not in source
    assert "18 parts" in source


def test_the_graph_is_drawn_by_github() -> None:
    lines = mermaid(nodes(RECIPE)).splitlines()
    boxes = dict(re.findall(r'^  (n\d+)\["(.+)"\]$', "\n".join(lines), re.MULTILINE))
    edges = [tuple(boxes[end] for end in line.split(" --> ")) for line in map(str.strip, lines) if "-->" in line]
    assert lines[0] == "flowchart TD"
    assert set(boxes.values()) == {node.name for node in nodes(RECIPE)}
    assert ("label@round1", "reward_model@rm") in edges
    assert ("sft", "reward_model@rm") not in edges  # which label@round1 builds on already
