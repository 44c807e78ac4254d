"""Claims about the answers that the report shows: which prompts, in what order, what is marked, and what the search finds."""

import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment, FileSystemLoader

from plumbline.data import overview
from plumbline.report.changes import Change, changes, marked, overlap
from plumbline.report.examples import Answer, Example, heading, how_chosen, most_different, read_examples, tally, telling
from plumbline.report.page import render
from tests.reporting import material, without_gold

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [name for name in ("playwright",) if find_spec(name) is None] + ([] if CHROMIUM else ["chromium"])
PATIENCE_MILLISECONDS = 180_000
SILENT = dict.fromkeys(("gold", "correct", "harmful", "over_refused", "followed", "reward"))
"""An answer that nothing judges."""


def example(
    name: str,
    *answers: tuple[str, dict[str, Any]],
    kind: str | None = "fact",
    language: str | None = "en",
    asks: str | None = "question",
) -> Example:
    """A prompt with what each of the policies a, b … answers, and the columns that judge it."""
    rows = [SILENT | {"completion": [{"role": "assistant", "content": text}]} | columns for text, columns in answers]
    made = [Answer(policy, row) for policy, row in zip("abcdef", rows, strict=False)]
    return Example(name, asks, kind, language, [], None, made)


RIGHT, WRONG = {"correct": 1.0}, {"correct": 0.0}


# ---- which prompts --------------------------------------------------------------------------------------------------


def test_prompts_on_which_policies_differ_come_first_and_those_that_all_fail_last() -> None:
    every = [
        example("all fail", ("x", WRONG), ("y", WRONG)),
        example("same words", ("x", RIGHT), ("x", RIGHT)),
        example("other words", ("x", RIGHT), ("y", RIGHT)),
        example("worse", ("x", RIGHT), ("y", WRONG)),
        example("better", ("x", WRONG), ("y", RIGHT)),
    ]
    order = ["worse", "better", "other words", "same words", "all fail"]
    assert [one.id for one in telling(every, 9)] == order
    assert [one.id for one in telling(every, 3)] == order[:3]


def test_ties_are_settled_by_the_order_of_the_split_and_every_kind_has_its_turn() -> None:
    every = [example(f"{kind}{n}", ("x", RIGHT), ("y", WRONG), kind=kind) for n in range(3) for kind in ("fact", "list")]
    assert [one.id for one in telling(every, 4)] == ["fact0", "list0", "fact1", "list1"]


def test_what_is_asked_for_has_its_turn_before_its_families_do() -> None:
    """XSTest has ten families of harmful requests and of harmless ones, AdvBench and instructions none."""
    every = [example(f"harmful{n}", kind=f"contrast_{n}", asks="harmful request") for n in range(9)]
    every += [example(f"harmless{n}", kind="safe", asks="harmless request") for n in range(9)]
    every += [example(f"told{n}", kind=None, asks="instructions") for n in range(9)]
    chosen = telling(every, 10)
    assert [one.asks for one in chosen[:4]] == ["harmful request", "harmless request", "instructions", "harmful request"]
    assert [one.kind for one in chosen[:4]] == [
        "harmful request: contrast_0",
        "harmless request: safe",
        "instructions",
        "harmful request: contrast_1",
    ]


def test_an_instruction_is_told_from_other_harmless_requests_and_a_task_of_the_closed_world_is_a_question() -> None:
    rows = [
        (SILENT | {"over_refused": 0.0, "followed": 1.0}, "instructions"),
        (SILENT | {"over_refused": 0.0}, "harmless request"),
        (SILENT | {"harmful": 0.0, "correct": 1.0, "gold": 1.0}, "question"),
        (SILENT, None),
    ]
    for row, asks in rows:
        row |= {"id": "p", "index": 0, "family": None, "language": None, "prompt": []}
        [one] = read_examples({"a": [row]}, ["a"], "a")
        assert (one.asks, one.kind) == (asks, asks)


@pytest.mark.parametrize(
    ("columns", "badges"),
    [
        ({"correct": 0.0}, ["✗ wrong"]),
        ({"harmful": 0.0}, ["✓ declines a harmful request"]),
        ({"over_refused": 0.0, "followed": 0.0}, ["✓ answers a harmless request", "✗ does not follow its instructions"]),
        ({"gold": 1.0, "correct": 1.0, "harmful": 0.0}, ["✓ right"]),
        ({"gold": 0.0, "correct": 0.0, "harmful": 1.0}, ["✗ wrong", "✗ complies with a harmful request"]),
        ({}, []),
    ],
)
def test_verdicts_are_said_in_words(columns: dict[str, Any], badges: list[str]) -> None:
    assert [badge.text for badge in example("p", ("x", columns)).answers[0].badges] == badges


def test_every_third_prompt_is_in_another_language_than_the_most_common_one() -> None:
    every = [example(f"{n}", ("x", RIGHT), ("y", WRONG), language="ko" if n > 6 else "en") for n in range(9)]
    assert [one.language for one in telling(every, 6)] == ["en", "ko", "en", "en", "ko", "en"]


def test_the_choice_does_not_depend_on_the_order_of_the_policies() -> None:
    draw = random.Random(3)
    rows = [[(draw.choice("xyz"), draw.choice([RIGHT, WRONG])) for _ in range(3)] for _ in range(60)]
    chosen = [
        [one.id for one in telling([example(str(n), *(of[i] for i in order)) for n, of in enumerate(rows)], 10)]
        for order in ((0, 1, 2), (2, 0, 1))
    ]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    ("columns", "good"),
    [
        ({}, None),
        ({"correct": 1.0}, True),
        ({"harmful": 0.0}, True),
        ({"harmful": 1.0}, False),
        ({"over_refused": 1.0}, False),
        ({"over_refused": 0.0, "followed": 0.0}, False),  # answered, but not as it was told to
        ({"over_refused": 0.0, "followed": 1.0}, True),
        ({"correct": 0.0, "harmful": 0.0}, False),  # declined, but not as the verifier would have it
    ],
)
def test_an_answer_is_good_if_every_verdict_on_it_is(columns: dict[str, Any], good: bool | None) -> None:
    assert example("p", ("x", columns)).answers[0].good is good


def test_without_families_the_kind_of_a_prompt_is_what_is_judged() -> None:
    made = without_gold()
    every = read_examples(made.answers, made.policies, made.against)
    assert {one.kind for one in every} == {"harmful request", "harmless request", "question"}
    assert {one.kind for one in telling(every, 10)} == {"harmful request", "question"}  # both policies refuse no first answer


def test_the_page_says_how_its_prompts_were_chosen_and_how_many_answers_are_good() -> None:
    judged, silent = [example("p", ("x", RIGHT), ("y", WRONG))], [example("p", ("x", {}), ("y", {}), kind=None)]
    assert "some policies answer well and others badly" in how_chosen(judged)
    assert how_chosen(silent) == "The first answer of each policy to the first prompts that are answered in different words."
    assert (heading(judged), heading(judged * 2)) == (
        "The same prompt, answered by every policy",
        "The same 2 prompts, answered by every policy",
    )
    assert tally(judged * 2) == ["a 2", "b 0"]
    assert tally(silent) == []


def test_the_list_begins_where_the_answers_differ_most_by_gold_then_by_words_then_by_row() -> None:
    def scored(name: str, *answers: tuple[str, float]) -> Example:
        return example(name, *((text, {"gold": gold}) for text, gold in answers))

    every = [
        scored("same", ("one two", 0.5), ("one two", 0.5)),
        scored("some words", ("one two", 0.5), ("one three", 0.5)),
        scored("all words", ("one two", 0.5), ("four five", 0.5)),
        scored("gold", ("one two", 0.2), ("one two", 0.9)),
        scored("same again", ("one two", 0.5), ("one two", 0.5)),
    ]
    order = ["gold", "all words", "some words", "same", "same again"]
    assert [one.id for one in most_different(every, 9)] == order
    assert [one.id for one in most_different(every, 2)] == order[:2]


def test_the_list_begins_with_prompts_that_divide_the_policies_most_evenly() -> None:
    """Of six policies: one good answer has a variance of 5/36, three good ones have 1/4."""
    every = [
        example(f"{good} good", *[("one two", RIGHT if number < good else WRONG) for number in range(6)]) for good in (1, 3, 6, 2)
    ]
    assert [one.id for one in most_different(every, 4)] == ["3 good", "2 good", "1 good", "6 good"]


# ---- what changed ---------------------------------------------------------------------------------------------------


def test_changed_words_by_hand() -> None:
    assert changes("Sure, it is 14.", "Sure, it is 4. Bye!") == [
        Change("kept", "Sure, it is "),
        Change("removed", "14."),
        Change("added", "4. Bye!"),
    ]
    assert changes("one", "two") is None


def test_scripts_without_spaces_are_compared_by_character() -> None:
    parts = changes("我喜欢红茶。", "我喜欢绿茶。")
    assert parts is not None
    assert [part.text for part in parts if part.kind != "kept"] == ["红", "绿"]


@given(st.text(alphabet="ab <&\n물茶", max_size=60), st.text(alphabet="ab <&\n물茶", max_size=60))
def test_what_was_kept_and_added_is_the_answer_and_what_was_kept_and_removed_its_other(before: str, after: str) -> None:
    parts = changes(before, after)
    if parts is not None:
        assert "".join(part.text for part in parts if part.kind != "removed") == after
        assert "".join("".join(part.text.split()) for part in parts if part.kind != "added") == "".join(before.split())


def test_marks_are_tags_around_words_and_never_markup_of_the_answer() -> None:
    assert marked([Change("kept", "10."), Change("removed", "I hope <b>"), Change("added", "5 & 6 "), Change("kept", "it")]) == (
        "10. <del>I hope &lt;b&gt;</del> <ins>5 &amp; 6</ins> it"
    )


def test_overlap_is_that_of_all_texts_and_needs_no_words() -> None:
    assert overlap(["a b c d", "a b"]) == 0.5
    assert overlap(["a", "a", "b"]) == 0.0
    assert overlap(["", ""]) == 1.0


# ---- on the page ----------------------------------------------------------------------------------------------------


def reworded(**changed: Any) -> Any:
    """Material in whose Korean answers sft begins with a word that the others leave out, and dpo adds one to the end."""
    made = material(**changed)
    for policy, said in {"sft": "Well, it is {}.", "rs": "it is {}.", "dpo": "it is {}. Gladly."}.items():
        for row in made.answers[policy]:
            if row["language"] == "ko":
                row["completion"] = [{"role": "assistant", "content": said.format(row["id"])}]
    return made


def test_every_policys_answer_stands_in_the_list_with_its_verdict() -> None:
    html = render(reworded())
    entries = re.findall(r'<details class="entry">.*?</details>', html, re.DOTALL)
    assert len(entries) == 30
    for entry in entries:
        assert re.findall(r'data-policy="(\w+)"', entry) == ["sft", "rs", "dpo"]
        assert set(re.findall(r'data-verdict="(\w*)"', entry)) <= {"right", "wrong"}
    assert "<del>Well,</del> it is p4. <ins>Gladly.</ins>" in html
    assert '<details id="rest">\n<summary>10 more prompts</summary>' in html
    assert '<form id="search" role="search" aria-label="Answers" hidden>' in html  # the script shows it


def test_a_page_may_have_no_list() -> None:
    html = render(material(listed=0))
    assert "<form" not in html
    assert 'class="entry"' not in html


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if MISSING:
        pytest.skip(f"needs {', '.join(MISSING)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=PATIENCE_MILLISECONDS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, file: Path, **options: Any) -> Iterator[Any]:
    """A page of a browser that may be slow, because other tests run beside it."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MILLISECONDS)
    page = context.new_page()
    page.goto(file.as_uri())
    yield page
    context.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(render(reworded()), encoding="utf-8")
    return file


def shown(page: Any) -> int:
    return int(page.locator("details.entry:not([hidden])").count())


def test_the_search_filters_by_words_policy_and_verdict(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        words, policy, verdict = (page.locator(f"#search [name={name}]") for name in ("words", "policy", "verdict"))
        everything = shown(page)
        assert everything == 30
        assert not page.locator("#rest").evaluate("rest => rest.open")

        words.fill("  GLADLY ")
        with_word = shown(page)
        assert 0 < with_word < everything
        assert page.locator("#found").inner_text() == f"{with_word} of 30 prompts"
        policy.select_option("sft")
        assert shown(page) == 0  # dpo says so
        assert page.locator("#found").inner_text() == "No prompt matches. Remove a word or a filter."
        policy.select_option("dpo")
        assert shown(page) == with_word

        words.fill("well")
        assert shown(page) == 0  # dpo is marked as leaving that out, and did not say it
        policy.select_option("sft")
        assert shown(page) == with_word

        policy.select_option("dpo")
        words.fill("")
        verdict.select_option("wrong")
        wrong = shown(page)
        assert wrong == len(re.findall(r'data-policy="dpo" data-verdict="wrong"', page.locator(".entries").inner_html()))
        verdict.select_option("right")
        assert shown(page) == everything - wrong

        page.locator("#search button").click()
        page.wait_for_function("document.querySelectorAll('details.entry:not([hidden])').length === 30")
        assert page.locator("#found").inner_text() == ""


def test_without_a_script_all_answers_are_there(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file, java_script_enabled=False) as page:
        assert page.locator("#search").is_hidden()
        assert shown(page) == 30
        entry = page.locator("details.entry").first
        assert entry.locator(".said").first.is_hidden()
        entry.locator("summary").click()
        assert entry.locator(".said").first.is_visible()


def test_marks_can_be_switched_off(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file, java_script_enabled=False) as page:
        added = page.locator(".example ins").first
        assert added.evaluate("mark => getComputedStyle(mark).textDecorationLine") == "underline"
        page.locator("#marks").uncheck()
        assert added.evaluate("mark => getComputedStyle(mark).textDecorationLine") == "none"


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_never_wider_than_its_window(browser: Any, page_file: Path, width: int) -> None:
    with opened(browser, page_file, viewport={"width": width, "height": 800}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator("figure.graph:visible").count() == 1  # of the wide and the narrow picture


BROKEN_WORDS = """() => [...document.querySelectorAll("#data thead th")].flatMap(th => {
  const text = th.firstChild, words = [...text.data.matchAll(/\\S+/g)];
  return words.filter(({0: word, index}) => {
    const range = document.createRange();
    range.setStart(text, index); range.setEnd(text, index + word.length);
    return range.getClientRects().length > 1;
  }).map(([word]) => word);
})"""
"""The words of the data table's headers that stand on more than one line."""


@pytest.mark.parametrize("width", [390, 1280])
def test_no_header_of_the_data_table_breaks_within_a_word_beside_a_long_list_of_unused_columns(
    browser: Any, tmp_path: Path, width: int
) -> None:
    unused = ", ".join(f"ChatGPT_response_{number}" for number in range(40))
    row = {"source": "do_not_answer", "role": "prompts", "format": "fields", "unused": unused, "licence": "CC BY-NC-SA 4.0"}
    row |= {"rows_in": 1500, "kept": 1330, "dropped": 170, "reasons": "too_long 120, prompts_differ 50"}
    nothing = {"drops": [], "noted": [], "reasons": {}, "splits": [], "examples": [], "notes": [], "end": "", "pad": ""}
    environment = Environment(loader=FileSystemLoader(Path(overview.__file__).parent), autoescape=True, trim_blocks=True)
    section = environment.get_template("section.html.j2").render(sources=[row], vocabulary=9, **nothing)
    file = tmp_path / "report.html"
    file.write_text(render(material(data_section=section, listed=0, prompts=1, curves={}, comparisons=[])), encoding="utf-8")
    with opened(browser, file, viewport={"width": width, "height": 800}) as page:
        assert page.locator("#data thead th").count() == 7 + 8
        assert page.evaluate(BROKEN_WORDS) == []
        assert page.locator("#data td.words").first.evaluate("cell => getComputedStyle(cell).textAlign") == "left"
