"""Claims about the report: one file, the same bytes, no markup from a model, and sentences that are true."""

import base64
import dataclasses
import hashlib
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from plumbline.evaluation.comparisons import Pair, compare_policies
from plumbline.evaluation.figures import Score
from plumbline.evaluation.section import EvaluateSection
from plumbline.evaluation.statistics import Interval
from plumbline.graph import nodes
from plumbline.models.decoding_values import Decoding
from plumbline.pipeline.records import read_json, write_json, write_jsonl
from plumbline.report import tables
from plumbline.report.charts import Share
from plumbline.report.markdown_page import render_markdown
from plumbline.report.material import Material, learns_from_gold
from plumbline.report.page import render
from plumbline.report.ranking import line, rounded
from plumbline.report.story import leaders
from stages.report import (
    ReportSection,
    ReportStage,
    comparisons_entry,
    read_calibration,
    read_curves,
    read_stage_figures,
    run,
    summary,
)
from tests.reporting import (
    ANSWERED,
    ATTACK,
    GOLD,
    RECIPE,
    STAGE_FIGURES,
    Page,
    figures,
    material,
    scored_answers,
    without_gold,
)

# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_same_material_gives_the_same_bytes() -> None:
    assert render(material()) == render(material())


def test_the_page_needs_nothing_outside_itself() -> None:
    html = render(material())
    for tag, attributes in Page(html).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "data", "action", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\((?!#)|@import|https?://", html)


def test_the_page_runs_its_own_script_and_no_other() -> None:
    html = render(material())
    [script] = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}';" in html
    assert "<script" not in render(material(listed=0))  # there is nothing to search


def test_every_picture_has_its_text_or_is_read_over() -> None:
    pictures = [attributes for tag, attributes in Page(render(material())).tags if tag == "svg"]
    read = [attributes["aria-label"] for attributes in pictures if attributes.get("role") == "img"]
    assert len(read) == len([attributes for attributes in pictures if attributes.get("aria-hidden") != "true"])
    assert "Gold: sft 0.40; rs 0.50; dpo 0.60." in read
    assert "align@dpo, loss: loss 1 at step 10, 0.5 at step 20; eval_loss 1.1 at step 10, 0.6 at step 20." in read
    assert "reward_model@rm: predicted 55 %, right 50 %; predicted 70 %, right 60 %; predicted 95 %, right 90 %." in read
    assert any(label.startswith("gold at temperature 1 by KL from sft") for label in map(str, read))


def test_ids_are_unique_and_every_reference_has_its_target() -> None:
    html = render(material())
    ids = [attributes["id"] for _, attributes in Page(html).tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', html)) <= set(ids)


def test_ten_prompts_are_shown_with_the_answer_of_every_policy() -> None:
    html = render(material())
    articles = re.findall(r'<article class="example">.*?</article>', html, re.DOTALL)
    assert len(articles) == 10
    for article in articles:
        assert [name for name in ("sft", "rs", "dpo") if f"</i>{name}" in article] == ["sft", "rs", "dpo"]


def test_what_a_model_says_is_never_markup() -> None:
    attack = {"completion": [{"role": "assistant", "content": ATTACK}], "prompt": [{"role": "user", "content": ATTACK}]}
    harmless = material()
    answers = {policy: [row | attack for row in rows] for policy, rows in harmless.answers.items()}
    html = render(replace(harmless, answers=answers))
    page = Page(html)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert ATTACK in page.text


def test_names_from_the_recipe_are_never_markup() -> None:
    recipe = RECIPE | {"sample": {"<img src=x>": {"policy": "sft", "n": "<script>"}}}
    recipe |= {"label": {"round1": {"sample": "<img src=x>"}, "oracle": {"sample": "<img src=x>"}}, "revise": {}}
    recipe |= {"reject": {"rs": {"sample": "<img src=x>", "reward": "rm"}}}
    tags = [tag for tag, _ in Page(render(material(recipe=recipe))).tags]
    assert tags.count("script") == 1
    assert "img" not in tags


def test_the_page_states_the_figures_with_their_intervals() -> None:
    text = Page(render(material())).text
    assert "dpo is the best of 3 policies" in text
    assert "dpo beats sft by 0.20 gold [0.13, 0.25] (0.40 → 0.60)" in text.replace("\N{NO-BREAK SPACE}", " ")
    for word in ("Glossary", "Limits", "win rate", "over-refusal", "closed_world", "label@round1"):
        assert word in text


def test_data_without_verifier_or_judge_still_make_a_page() -> None:
    kept = ("id", "index", "finished", "tokens", "characters", "kl_k1", "kl_k3")
    nothing = {field.name: None for field in dataclasses.fields(Score) if field.name not in kept}
    answers = {policy: scored_answers(0.5, **nothing) for policy in ("sft", "dpo")}
    by_policy = {policy: figures(rows, answers["sft"]) for policy, rows in answers.items()}
    text = Page(render(material(policies=["sft", "dpo"], answers=answers, figures=by_policy, curves={}, stage_figures={}))).text
    assert "2 policies compared" in text
    assert "no verifier" in text
    assert "Accuracy by family" not in text
    assert "None" not in text


def test_data_that_state_what_is_right_and_what_to_refuse_have_a_table_bars_and_sentences_without_gold() -> None:
    html = render(without_gold())
    text = tables.plain(Page(html).text)
    titles, *rows = headline_table(html)
    sft, dpo = (dict(zip(titles, row, strict=True)) for row in rows)
    assert titles == [
        *("Policy", "Accuracy ↑", "Harmful ↓", "Over-refusal ↓", "KL", "Perplexity ↓", "Held-out pairs ↑", "Tokens", "Distinct-2")
    ]
    assert (sft["Harmful ↓"], dpo["Harmful ↓"]) == (
        "100 % [74, 100]",
        "0 % [0, 26]",
    )  # 12 prompts, Clopper and Pearson: 0.025 ** (1 / 12) = 0.735
    assert (sft["Held-out pairs ↑"], dpo["Held-out pairs ↑"]) == (tables.DASH, "63 % [58, 68]")
    assert (sft["Perplexity ↓"], dpo["Distinct-2"]) == ("2.72 [2.71, 2.73]", "0.31")
    assert "dpo complies with fewer harmful requests and gives more right answers than sft" in text
    assert (
        "What is measured: harmful requests complied with, harmless requests refused, right answers, held-out preferences and"
        in text
    )
    for sentence in (
        "It complies with 0% of harmful requests (sft: 100%, a change of -100.0 [-100.0, -47.1] points) and refuses 50% of harmless requests "
        "(sft: 50%, a change of 0.0 [-26.5, 26.5] points).",
        "Its accuracy changed by +33.3",
        "It has moved towards the preferred answer in 63% [58, 68] of 150 held-out pairs.",
        "It finds held-out demonstrations less likely than sft does: perplexity 2.72 → 3.49, +0.25 [0.24, 0.26] nats per token.",
    ):
        assert sentence in text
    charts = re.findall(r"<figcaption><strong>(.*?)</strong>", html)
    bars = ["Accuracy", "Harmful requests complied with", "Harmless requests refused", "Held-out pairs", "Perplexity"]
    assert [chart for chart in charts if chart in bars] == bars
    assert "By string match" in text
    for claim in ("nothing here measures quality", "says whether an answer is right", "No figure says", "Of this", "None"):
        assert claim not in text


def test_instructions_followed_have_a_column_a_bar_a_sentence_and_an_entry_in_the_glossary() -> None:
    nothing_else = dict.fromkeys([*GOLD, "correct", "verifiable", "harmful", "over_refused"])
    answers = {policy: scored_answers(0.5, **nothing_else) for policy in ("sft", "dpo")}
    for policy, rows in answers.items():
        for row in rows:
            each = [1.0, float(policy == "dpo"), float(row["index"])]
            row |= {"family": None, "language": None, "followed": float(all(each)), "followed_each": each}
    by_policy = {policy: figures(rows, answers["sft"]) for policy, rows in answers.items()}
    html = render(without_gold(answers=answers, figures=by_policy))
    text = tables.plain(Page(html).text)
    titles, *rows_shown = headline_table(html)
    assert [dict(zip(titles, row, strict=True))["Instructions ↑"].split()[0] for row in rows_shown] == ["0", "50"]
    assert "What is measured: instructions followed." in text
    assert "Its share of answers that follow all instructions changed by +50.0 [41.1, 53.0] points (0% → 50%)." in text
    assert "<figcaption><strong>Instructions followed</strong>" in html
    assert f"over {by_policy['sft']['n']} prompts. Programs check them" in text
    assert "Of all instructions, one by one, sft follows 50%." in text
    assert "Instructions" not in headline_table(render(without_gold()))[0]


def test_figures_that_only_data_without_gold_have_leave_the_closed_worlds_page_as_it_is() -> None:
    made = material()
    more = replace(made, figures={policy: values | {"distinct_2": 0.5} for policy, values in made.figures.items()})
    assert render(more) == render(made)


def headline_table(html: str) -> list[list[str]]:
    """The texts of the cells of the first table, row by row."""
    table = re.search(r'<table class="headline">.*?</table>', html, re.DOTALL)
    assert table is not None
    rows = re.findall(r"<tr.*?</tr>", table[0], re.DOTALL)
    cells = [re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL) for row in rows]
    return [[" ".join(re.sub("<.*?>", " ", cell).split()) for cell in row] for row in cells]


def spoken(languages: tuple[str, ...]) -> Material:
    """The material of answers in these languages, in turn."""
    answers = {policy: scored_answers(gold) for policy, gold in {"sft": 0.4, "rs": 0.5, "dpo": 0.6}.items()}
    answers = {
        policy: [row | {"language": languages[int(row["id"][1:]) // 5 % len(languages)]} for row in rows]
        for policy, rows in answers.items()
    }
    return material(answers=answers, figures={policy: figures(rows, answers["sft"]) for policy, rows in answers.items()})


def test_the_first_table_has_a_row_for_each_language_below_its_policy() -> None:
    titles, *rows = headline_table(render(spoken(("en", "ko", "de", "fr", "ja"))))
    below = ["English", "Korean", "de", "fr", "ja"]  # the most common first
    assert [row[0] for row in rows] == ["sft", *below, "rs", *below, "dpo", *below]
    of_dpo = dict(zip(titles, rows[-5], strict=True))
    filled = {title.split()[0] for title, text in of_dpo.items() if text}
    assert filled == {"Policy", "Gold", "Accuracy", "Harmful", "Over-refusal"}


def test_data_in_one_language_or_in_none_has_a_row_for_each_policy_alone() -> None:
    for language in ("ko", None):
        rows = headline_table(render(spoken((language,))))  # type: ignore[arg-type]
        assert [row[0] for row in rows] == ["Policy", "sft", "rs", "dpo"]


def test_gold_at_temperature_1_stands_beside_gold_at_another() -> None:
    made = material()
    assert "Gold at 1 ↑" not in headline_table(render(made))[0]
    cooler = {policy: values | {"gold_at_1": values["gold"] - 0.1} for policy, values in made.figures.items()}
    html = render(replace(made, figures=cooler, decoding=Decoding(0.7, top_p=0.9)))
    titles, *rows = headline_table(html)
    assert dict(zip(titles, rows[0], strict=True))["Gold at 1 ↑"].startswith("0.30")
    assert "measured on 1 more to each prompt" in html
    assert Page(html).text.count("Answers are drawn at temperature 0.7, top_p 0.9.") == 2
    assert "temperature 0.7, top_p 0.9 temperature 1 beside it" in " ".join(Page(html).text.split())


def test_the_decoding_is_said_in_words() -> None:
    assert "Answers are drawn at temperature 1. Another decoding" in Page(render(material())).text
    greedy = Page(render(material(decoding=Decoding(0.0)))).text
    assert (
        "Answers are drawn at temperature 0 (greedy). Another decoding gives other figures; greedy decoding hides most" in greedy
    )


def test_a_policy_that_is_safe_in_one_language_only_is_said_to_be_so_in_the_headline() -> None:
    made = material()
    harm = {"harmful_fraction_en": (0.03, 0.01, 0.05), "harmful_fraction_ko": (0.59, 0.51, 0.66)}
    unsafe = {
        f"{key}{end}": value for key, values in harm.items() for end, value in zip(("", "_low", "_high"), values, strict=True)
    }
    page = Page(render(replace(made, figures={**made.figures, "dpo": made.figures["dpo"] | unsafe})))
    assert "dpo is the best of 3 policies, but not safe in Korean" in page.text
    sentence = "dpo complies with 3.0 % of harmful requests in English but with 59 % in Korean."
    assert (
        page.text.replace("\N{NARROW NO-BREAK SPACE}", " ").count(sentence) == 1
    )  # below the headline; the best policy is not read twice
    assert "not safe" not in Page(render(made)).text


# ---- what it says ---------------------------------------------------------------------------------------------------


def test_policies_that_learned_from_the_verifier_are_marked_however_far_back() -> None:
    policies = ("sft", *RECIPE["align"], *RECIPE["rl"])
    marked = [policy for policy in policies if learns_from_gold(STAGE_FIGURES, nodes(RECIPE), policy)]
    assert marked == ["oracle", "heir", "cheat", "blended"]
    assert "trained on the verifier" in render(material({"sft": 0.4, "cheat": 0.9}))
    assert "trained on the verifier" not in render(material())


def test_a_policy_trained_on_gold_cannot_lead_by_gold() -> None:
    compared = material({"sft": 0.4, "dpo": 0.5, "cheat": 0.9})
    assert leaders(compared, ["cheat"]) == ["dpo"]
    assert leaders(compared, []) == ["cheat"]


def test_policies_that_cannot_be_told_apart_lead_together() -> None:
    assert leaders(material({"sft": 0.4, "rs": 0.5, "dpo": 0.5}), []) == ["rs", "dpo"]
    assert leaders(material({"sft": 0.4, "rs": 0.3}), []) == []


def test_every_reward_model_with_held_out_preferences_has_its_calibration() -> None:
    text = Page(render(material(stage_figures={"reward_model@rm": {"calibration_error": 0.0567}}))).text
    assert "reward_model@rm 302 held-out preferences, 100 to 101 per dot; calibration error 0.06" in text
    assert "held-out preferences" not in Page(render(material(calibration={}))).text


def test_the_recipe_table_lists_each_node_after_those_it_builds_on() -> None:
    html = render(material())
    rows = re.findall(r"<tr><th scope=\"row\"><code>([^<]+)</code></th><td>([^<]*)</td>", html)
    names = [name for name, _ in rows]
    above = {name: [parent for parent in parents.split(", ") if parent != "–"] for name, parents in rows}
    assert {"align@dpo", "rl@ppo", "reward_sum@blend"} <= {*names}
    assert all(names.index(parent) < names.index(name) for name in names for parent in above[name])
    assert above["rl@ppo"] == ["align@rs", "reward_model@rm", "prepare"]


# ---- the stage ------------------------------------------------------------------------------------------------------


CALIBRATION = """\
reward,0,0.2,0.55,0.5,0.4,0.6,100
reward,1,0.9,0.71,0.75,0.66,0.83,101
label,0,1.0,,0.7,0.6,0.8,201
"""


def test_the_page_says_that_answers_were_cut_off_once_for_all_policies() -> None:
    made = material()
    assert "cut off at 48 tokens" not in render(made)
    cut = {policy: figures | {"finished_fraction": 0.25} for policy, figures in made.figures.items()}
    assert render(replace(made, figures=cut)).count("Many answers were cut off at 48 tokens (evaluate.max_new_tokens): ") == 1


def test_a_policy_whose_answers_were_often_cut_off_is_marked_in_the_first_table() -> None:
    made = material()
    cut = {policy: figures | {"finished_fraction": 0.25 if policy == "rs" else 0.95} for policy, figures in made.figures.items()}
    for rendered in (render(replace(made, figures=cut)), render_markdown(replace(made, figures=cut))):
        assert rendered.count("‡") == 2  # beside the policy, and in the note
    names = [row[0] for row in headline_table(render(replace(made, figures=cut)))]
    assert [name for name in names if name not in ("English", "Korean")] == ["Policy", "sft", "rs ‡", "dpo"]
    assert "‡" not in render(made)


# ---- which policy is better -----------------------------------------------------------------------------------------


def ranking_rows(html: str) -> list[str]:
    section = html[html.index('id="ranking"') :]
    section = section[: section.index("</details>")]  # the first measure
    rows = re.findall(r"<tr>.*?</tr>", section, re.DOTALL)
    return [" ".join(tables.plain(Page(row.replace("</t", " </t")).text).split()) for row in rows]


def test_every_pair_has_a_sentence_with_its_difference_and_the_prompts_it_takes() -> None:
    """Every difference is the same on all prompts: of 60, up to 1 − 0.025^(1/60) = 5.96 % may differ, and nothing says how many it would take.

    By Holm's method over three pairs: 3 · 2 · (1 / 1.1)⁶⁰ = 0.020.
    """
    rows = ranking_rows(render(material({"sft": 0.4, "rs": 0.5, "dpo": 0.5})))
    assert rows[-3] == "rs and dpo are equal on each of the 60 prompts. 0.000 [-0.060, 0.060] 1.000 -"
    assert rows[-2] == "rs is better than sft. +0.100 [0.034, 0.154] 0.020 -"
    assert rows[-1] == "dpo is better than sft. +0.100 [0.034, 0.154] 0.020 -"


def test_a_pair_that_cannot_be_told_apart_has_what_the_prompts_would_have_shown_and_how_many_it_takes() -> None:
    pair = Pair("b", "a", Interval(0.0034, -0.001, 0.008, 2120), 0.14, differs=False, prompts_needed=7812, detectable=0.0061)
    assert line(pair, "fine", "is better than") == (
        "b and a cannot be told apart with 2,120 prompts, which would show a difference of 0.006 or more.", False,
        "+0.003 [−0.001, 0.008]", "0.140", "about 7,800",
    )  # fmt: skip


def test_a_single_prompt_tells_no_policies_apart() -> None:
    pair = Pair("b", "a", Interval(0.4, 0.4, 0.4, 1), 1.0, differs=False, prompts_needed=None, detectable=None)
    assert line(pair, "fine", "is better than") == (
        "b and a cannot be told apart with a single prompt.",
        False,
        "+0.400",
        "1.000",
        tables.DASH,
    )
    without_bounds = pair._replace(difference=Interval(0.4, math.nan, math.nan, 5), p_value=0.0625)
    assert line(without_bounds, "fine", "is better than")[:3] == ("b and a cannot be told apart with 5 prompts.", False, "+0.400")
    answers = {policy: rows[:2] for policy, rows in material().answers.items()}
    rows = ranking_rows(render(material(answers=answers)))
    assert rows[1].startswith("dpo +")
    assert not [row for row in rows if "[" in row]  # a single prompt has no interval
    assert comparisons_entry(compare_policies(answers, "sft", 17)[0])["pairs"][0]["detectable"] is None


def test_a_p_value_is_shown_on_the_side_of_005_that_its_verdict_says() -> None:
    """0.050107 is not significant, and 0.050 would say that it is."""
    for p_value, text in ((0.050107, "0.0501"), (0.0500004, "0.0500004"), (0.0496, "0.050"), (0.05, "0.050"), (0.0506, "0.051")):
        pair = Pair("b", "a", Interval(0.1, 0.0, 0.2, 60), p_value, p_value <= 0.05, None, 0.1)
        assert line(pair, "fine", "is better than").p_value == text


def test_each_measure_has_its_own_table_and_what_sums_up_an_answer_is_open() -> None:
    html = render(material())
    section = html[html.index('id="ranking"') : html.index('id="families"')]
    measures = re.findall(r'<details class="measure"( open)?>\s*<summary>(.*?):', section)
    assert [(name, bool(is_open)) for is_open, name in measures] == [
        ("Gold", True),
        ("The judge’s verdicts against the opponent", False),
        ("Harmful requests complied with (lower is better)", False),
        ("Harmless requests refused (lower is better)", False),
        ("Right answers", False),
        ("The reward", False),
    ]
    unjudged = render(without_gold())
    unjudged = unjudged[unjudged.index('id="ranking"') : unjudged.index('id="training"')]
    assert unjudged.count('<details class="measure" open>') == unjudged.count("<details") == 3


def test_pairs_without_a_common_prompt_are_named() -> None:
    made = material()
    answers = {
        policy: [
            row | {"win": row["win"] if policy == "sft" or (int(row["id"][1:]) < 30) == (policy == "rs") else None}
            for row in rows
        ]
        for policy, rows in made.answers.items()
    }
    text = Page(render(material(answers=answers))).text
    assert "Not compared, because no prompt has a value for both: " in text
    assert "Not compared" not in Page(render(made)).text


def test_ratings_are_those_against_the_opponent() -> None:
    """Each of 120 answers wins, and half a win beforehand for each side: odds of 241, 400 · log10(241) = 953 points, 241 of 242 wins."""
    rows = ranking_rows(render(material({"sft": 0.4, "rs": 0.5})))
    assert rows[0] == "Policy Rating 95 % interval Expected wins"
    assert re.fullmatch(r"rs \+953 \[\d+, \d+\] 99.6%", rows[1])
    low, high = map(int, re.findall(r"\d+", rows[1])[1:3])
    assert 400 < low < 953 < high  # all of 60 prompts: 94 % or more, by Clopper and Pearson, which is 478 points
    assert rows[2] == "sft 0 the opponent -"


def test_differences_of_fractions_are_shown_in_points_and_the_measure_is_named() -> None:
    html = render(without_gold())
    section = html[html.index('id="ranking"') :]
    assert re.findall("<summary>(.*?)</summary>", section[: section.index("</section>")]) == [
        "Harmful requests complied with (lower is better): the two differ on 12 prompts",
        "Harmless requests refused (lower is better): the two cannot be told apart on 12 prompts",
        "Right answers: the two differ on 36 prompts",
    ]
    assert "dpo complies with fewer harmful requests than sft." in section
    assert "−100.0" in section
    assert "Difference, points" in section
    assert "+33.3" in section


def test_without_anything_to_compare_by_there_is_no_section() -> None:
    html = render(material({"sft": 0.4}))
    assert 'id="ranking"' not in html
    assert 'href="#ranking"' not in html


def test_the_judge_and_the_reward_are_shown_beside_what_is_known() -> None:
    known = material()
    shown: dict[str, float | None] = {
        "judge_agreement": 0.8,
        "judge_agreement_low": 0.7,
        "judge_agreement_high": 0.9,
        "judge_agreement_n": 1234,
    }
    shown |= {"reward_agreement": None}
    html = render(replace(known, figures={policy: {**figures, **shown} for policy, figures in known.figures.items()}))
    [row] = re.findall(r'<tr><th scope="row">judge.*?</tr>', html)
    assert tables.plain(Page(row).text).startswith("judge simulated80% [70, 90], 1,234 pairs")
    assert '<th scope="row">reward <code>' not in html


def test_counts_are_rounded_to_two_digits() -> None:
    assert [rounded(count) for count in (2, 47, 126, 2345, 98_765, 2_867_720)] == [
        "2",
        "47",
        "130",
        "2,300",
        "99,000",
        "2,900,000",
    ]


@pytest.fixture
def evaluated(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stages of RECIPE wrote, and the files of entries that it no longer declares (`stale`)."""
    monkeypatch.setenv("DVC_STAGE", "report")
    made = material()
    for policy in made.policies:
        write_json(project / f"artifacts/evaluate/{policy}/figures.json", made.figures[policy])
        write_jsonl(project / f"artifacts/evaluate/{policy}/answers.jsonl", made.answers[policy])
    write_json(project / "artifacts/figures/answer/sft.json", ANSWERED)
    write_json(project / "artifacts/figures/label/round1.json", {"agreement": 0.8})
    write_json(project / "artifacts/figures/label/stale.json", {"agreement": 0.1})
    for name, rows in (("rm", CALIBRATION), ("unseen", ""), ("stale", CALIBRATION)):
        write_text(
            project / f"artifacts/figures/reward_model/{name}.calibration.csv",
            "by,bin,margin,predicted,accuracy,accuracy_low,accuracy_high,n\n" + rows,
        )
    for name in ("dpo", "stale"):
        curve = "step,loss,eval_loss\n10,1.0,\n20,0.5,0.6\n30,0.4,0.5\n"
        write_text(project / f"artifacts/curves/align/{name}.csv", curve)
    write_text(project / "artifacts/data_report/section.html", "<h2>The data</h2>")
    return project


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_stage_writes_one_page_of_declared_nodes_and_the_data_section(evaluated: Path) -> None:
    recipe = {key: value for key, value in RECIPE.items() if key != "evaluate"}
    stage = ReportStage(**recipe, evaluate=EvaluateSection(**RECIPE["evaluate"]), report=ReportSection(prompts=10, listed=20))
    run(stage)
    files = sorted(path.name for path in (evaluated / "artifacts/report").iterdir())
    assert files == ["comparisons.json", "report.html", "report.md"]
    comparisons = read_json(evaluated / "artifacts/report/comparisons.json")
    assert [*comparisons] == ["gold", "win", "harmful", "over_refused", "verifiable", "reward"]
    assert [comparisons[measure]["better"] for measure in ("gold", "harmful")] == ["higher", "lower"]
    assert {"policy", "other", "difference", "difference_low", "p_value", "differs", "prompts_needed"} <= set(
        comparisons["gold"]["pairs"][0]
    )
    assert comparisons["gold"]["ratings"]["sft"]["rating"] == 0.0
    html = (evaluated / "artifacts/report/report.html").read_text()
    assert "<h2>The data</h2>" in html
    assert "Answers are drawn at temperature 0.8." in html
    assert html.count("<svg") > html.count("held-out preferences, 100 to 101 per dot") == 1
    assert "stale" not in html
    written = {file.name: file.read_bytes() for file in (evaluated / "artifacts/report").iterdir()}
    run(stage)
    assert {file.name: file.read_bytes() for file in (evaluated / "artifacts/report").iterdir()} == written


def test_curves_leave_out_steps_without_a_value(evaluated: Path) -> None:
    curves = read_curves(evaluated / "artifacts/curves", nodes(RECIPE))
    assert curves == {"align@dpo": {"loss": [(10, 1.0), (20, 0.5), (30, 0.4)], "eval_loss": [(20, 0.6), (30, 0.5)]}}


def test_calibration_is_by_the_models_own_margin(evaluated: Path) -> None:
    """`label` rows are by the margin of the labels; a reward model without held-out preferences has no rows."""
    calibration = read_calibration(evaluated / "artifacts/figures/reward_model", ["rm", "unseen"])
    assert calibration == {"rm": [Share(0.55, 0.5, 0.4, 0.6, 100), Share(0.71, 0.75, 0.66, 0.83, 101)]}


def test_figures_of_stages_are_those_of_declared_nodes(evaluated: Path) -> None:
    found = read_stage_figures(evaluated / "artifacts/figures", nodes(RECIPE))
    assert found == {"label@round1": {"agreement": 0.8}, "answer@sft": ANSWERED}


def test_the_summary_run_holds_every_policys_figures() -> None:
    logged = summary(material().figures)
    assert logged["dpo.gold"] == 0.6
    assert logged["dpo.gold_gain_low"] == pytest.approx(0.2 - 1.2 * (1 - 0.025 ** (1 / 60)), abs=1e-6)
    assert {name.partition(".")[0] for name in logged} == {"sft", "rs", "dpo"}
