"""Claims about the report: one file, the same bytes, nothing of what a model said is markup, and sentences that are true."""

import dataclasses
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stages.evaluation import tables
from stages.evaluation.charts import Share, calibration_chart, layered
from stages.evaluation.figures import Score, policy_metrics
from stages.evaluation.page import Material, curve_panels, leaders, pick_examples, render
from stages.evaluation.recipe import learns_from_gold, recipe_nodes
from stages.pipeline.composing import load_params
from stages.pipeline.records import write_json, write_jsonl
from stages.report import ReportSection, ReportStage, declared, read_calibration, read_curves, read_stage_metrics, run, summary

FAMILIES = ("fact", "harmful", "list", "lookalike", "python")
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>"
RECIPE: dict[str, Any] = {
    "seed": 17,
    "threads": 2,
    "model": "tiny",
    "data": "closed_world",
    "pretrain": {},
    "sft": {"epochs": 2},
    "sample": {"round1": {"policy": "sft", "extends": "none", "n": 8}},
    "revise": {"harmless": {"sample": "round1", "judge": "simulated"}},
    "label": {
        "round1": {"sample": "round1", "judge": "simulated"},
        "oracle": {"sample": "round1", "judge": "gold"},
    },
    "reward": {"rm": {"init": "sft", "signal": "label/round1"}, "verifier": {"kind": "verifier"}},
    "reject": {"rs": {"sample": "round1", "reward": "rm"}},
    "align": {
        "rs": {"method": "sft", "init": "sft", "signal": "reject/rs"},
        "dpo": {"method": "dpo", "init": "sft", "signal": "label/round1", "beta": 0.1},
        "ppo": {"method": "ppo", "init": "rs", "signal": "reward/rm"},
        "cheat": {"method": "ppo", "init": "rs", "signal": "reward/verifier"},
        "oracle": {"method": "dpo", "init": "sft", "signal": "label/oracle"},
        "heir": {"method": "dpo", "init": "oracle", "signal": "label/round1"},
    },
    "evaluate": {
        "policies": ["sft", "rs", "dpo"], "against": "sft", "judge": "simulated", "reward": "rm", "split": "test", "samples": 2,
        "temperature": 1.0, "max_new_tokens": 48,
    },
}  # fmt: skip

SHARES = [Share(0.55, 0.5, 0.4, 0.6, 100), Share(0.7, 0.6, 0.5, 0.7, 101), Share(0.95, 0.9, 0.83, 0.95, 101)]


def scored_answers(level: float, **changes: Any) -> list[dict[str, Any]]:
    """Sixty prompts, every fourth Korean, with two answers each."""
    rows = []
    for number in range(60):
        family = FAMILIES[number % 5]
        for index in range(2):
            values = {"gold": level, "correct": float(number % 10 < 10 * level), "win": 0.5, "reward": level, "log_ratio": 0.1}
            values |= {"verifiable": values["correct"] if family in ("fact", "list", "python") else None}
            values |= {"harmful": 0.0 if family == "harmful" else None, "over_refused": 0.0 if family == "lookalike" else None}
            values |= dict.fromkeys(("harmless", "honest", "courteous", "concise", "refused"), 1.0)
            language = "ko" if number % 4 == 0 else "en"
            known = Score(f"p{number}", index, family, language, True, 5, **values)
            text = {"prompt": [{"role": "user", "content": f"Question {number}?"}]}
            text |= {"completion": [{"role": "assistant", "content": f"Answer {number}."}]}
            rows.append(known.row() | text | changes)
    return rows


def figures(rows: list[dict[str, Any]], against: list[dict[str, Any]]) -> dict[str, Any]:
    def scores(of: list[dict[str, Any]]) -> list[Score]:
        return [Score(**{key: value for key, value in row.items() if key not in ("prompt", "completion")}) for row in of]

    return policy_metrics(scores(rows), scores(against), seed=17)


@cache
def known_figures(level: float, against: float) -> dict[str, Any]:
    return figures(scored_answers(level), scored_answers(against))


def material(golds: dict[str, float] | None = None, **changes: Any) -> Material:
    golds = golds or {"sft": 0.4, "rs": 0.5, "dpo": 0.6}
    answers = {policy: scored_answers(gold) for policy, gold in golds.items()}
    metrics = {policy: known_figures(gold, golds["sft"]) for policy, gold in golds.items()}
    curve = {"loss": [(10.0, 1.0), (20.0, 0.5)], "eval_loss": [(10.0, 1.1), (20.0, 0.6)]}
    given: dict[str, Any] = {
        "recipe": RECIPE | {"evaluate": RECIPE["evaluate"] | {"policies": list(golds)}},
        "policies": list(golds),
        "against": "sft",
        "metrics": metrics,
        "answers": answers,
        "curves": {"align/dpo": curve},
        "stage_metrics": {"label/round1": {"agreement": 0.81, "agreement_low": 0.8, "agreement_high": 0.82}},
        "calibration": {"rm": SHARES},
        "data_section": "",
        "prompts": 10,
    }
    return Material(**(given | changes))


class Page(HTMLParser):
    """Tags with their attributes, and the text outside style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._open.append("")

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text += data


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_same_material_gives_the_same_bytes() -> None:
    assert render(material()) == render(material())


def test_the_page_needs_nothing_outside_itself() -> None:
    html = render(material())
    for tag, attributes in Page(html).tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "data", "action", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\((?!#)|@import|https?://", html)
    assert "default-src 'none'" in html


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


def test_examples_are_of_every_family_and_of_both_languages() -> None:
    examples = pick_examples(material())
    assert {example.family for example in examples} == set(FAMILIES)
    assert {example.language for example in examples} == {"en", "ko"}
    assert len({example.id for example in examples}) == 10


def test_examples_do_not_depend_on_what_was_answered() -> None:
    other = material({"sft": 0.9, "rs": 0.1, "dpo": 0.3})
    assert [example.id for example in pick_examples(other)] == [example.id for example in pick_examples(material())]


def test_what_a_model_says_is_never_markup() -> None:
    attack = {"completion": [{"role": "assistant", "content": ATTACK}], "prompt": [{"role": "user", "content": ATTACK}]}
    given = material()
    answers = {policy: [row | attack for row in rows] for policy, rows in given.answers.items()}
    html = render(replace(given, answers=answers))
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "img" not in {tag for tag, _ in page.tags}
    assert ATTACK in page.text


def test_names_from_the_recipe_are_never_markup() -> None:
    recipe = RECIPE | {"sample": {"<img src=x>": {"policy": "sft", "extends": "none", "judge": "<script>"}}}
    tags = {tag for tag, _ in Page(render(material(recipe=recipe))).tags}
    assert not tags & {"img", "script"}


def test_the_page_states_the_figures_with_their_intervals() -> None:
    text = Page(render(material())).text
    assert "dpo is the best of 3 policies" in text
    assert "dpo beats sft by 0.20 gold [0.20, 0.20] (0.40 → 0.60)" in text.replace("\N{NO-BREAK SPACE}", " ")
    for word in ("Glossary", "Limits", "win rate", "over-refusal", "closed_world", "label/round1"):
        assert word in text


def test_data_without_verifier_or_judge_still_make_a_page() -> None:
    kept = ("id", "index", "finished", "tokens", "log_ratio")
    nothing = {field.name: None for field in dataclasses.fields(Score) if field.name not in kept}
    answers = {policy: scored_answers(0.5, **nothing) for policy in ("sft", "dpo")}
    metrics = {policy: figures(rows, answers["sft"]) for policy, rows in answers.items()}
    text = Page(render(material(policies=["sft", "dpo"], answers=answers, metrics=metrics, curves={}, stage_metrics={}))).text
    assert "2 policies, compared" in text
    assert "These data have no verifier" in text
    assert "Accuracy by family" not in text
    assert "None" not in text


# ---- what it says ---------------------------------------------------------------------------------------------------


def test_policies_that_learnt_from_the_verifier_are_marked_however_far_back() -> None:
    nodes = recipe_nodes(RECIPE)
    marked = [policy for policy in ("sft", *RECIPE["align"]) if learns_from_gold(nodes, policy)]
    assert marked == ["cheat", "oracle", "heir"]
    html = render(material({"sft": 0.4, "cheat": 0.9}))
    assert "trained on the verifier" in html
    assert "trained on the verifier" not in render(material())


def test_a_policy_trained_on_gold_cannot_lead_by_gold() -> None:
    given = material({"sft": 0.4, "dpo": 0.5, "cheat": 0.9})
    assert leaders(given, ["cheat"]) == ["dpo"]
    assert leaders(given, []) == ["cheat"]


def test_policies_that_cannot_be_told_apart_lead_together() -> None:
    assert leaders(material({"sft": 0.4, "rs": 0.5, "dpo": 0.5}), []) == ["rs", "dpo"]
    assert leaders(material({"sft": 0.4, "rs": 0.3}), []) == []


@pytest.mark.parametrize(
    ("gain", "sentence"),
    [
        ((0.12, 0.10, 0.14), "dpo beats sft by 0.12 gold [0.10, 0.14] (0.50 → 0.62)."),
        ((-0.12, -0.14, -0.10), "dpo is worse than sft by 0.12 gold [0.10, 0.14] (0.50 → 0.38)."),
        ((0.01, -0.01, 0.03), "dpo and sft cannot be told apart in gold: the difference is +0.01 [−0.01, 0.03]."),
    ],
)
def test_a_gain_is_read_by_its_interval(gain: tuple[float, float, float], sentence: str) -> None:
    of = {"gold": 0.5 + gain[0], "gold_gain": gain[0], "gold_gain_low": gain[1], "gold_gain_high": gain[2]}
    assert tables.reading("dpo", {"sft": {"gold": 0.5}, "dpo": of}, "sft")[0].replace("\N{NO-BREAK SPACE}", " ") == sentence


def test_a_reward_that_rises_while_gold_falls_is_called_over_optimised() -> None:
    lost = {"gold": 0.4, "gold_gain": -0.1, "gold_gain_low": -0.2, "gold_gain_high": -0.05}
    sentences = tables.reading("ppo", {"sft": {"gold": 0.5, "reward": 1.0}, "ppo": lost | {"reward": 3.5}}, "sft")
    assert "over-optimised" in sentences[-1]
    sentences = tables.reading("ppo", {"sft": {"gold": 0.5, "reward": 1.0}, "ppo": lost | {"reward": 0.5}}, "sft")
    assert "over-optimised" not in " ".join(sentences)


@pytest.mark.parametrize(
    ("value", "style", "text"),
    [
        (0.1234, "number", "0.12"),
        (-0.001, "gain", "0.00"),
        (-0.12, "gain", "−0.12"),
        (0.12, "gain", "+0.12"),
        (0.634, "percent", "63 %"),
        (0.0123, "percent", "1.2 %"),
        (0.0, "percent", "0 %"),
        (None, "number", "–"),
    ],
)
def test_numbers_are_shown_as_people_write_them(value: float | None, style: str, text: str) -> None:
    assert tables.show(value, style).replace("\N{NARROW NO-BREAK SPACE}", " ") == text


def test_validation_is_drawn_with_its_training_metric_and_the_loss_first() -> None:
    points = [(1.0, 1.0), (2.0, 0.5)]
    panels = curve_panels(dict.fromkeys(("rewards/margins", "eval_loss", "learning_rate", "loss"), points))
    assert [title for title, _ in panels] == ["loss", "rewards/margins"]
    assert [line.is_validation for line in panels[0][1]] == [False, True]


def test_each_kind_of_training_metric_is_drawn_once() -> None:
    points = [(1.0, 1.0), (2.0, 0.5)]
    names = (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "value_loss",
        "kl_k1",
        "kl_k3",
        "clipped",
    )
    assert [title for title, _ in curve_panels(dict.fromkeys(names, points))] == [
        "rewards/margins",
        "rewards/accuracies",
        "rewards/chosen",
        "kl_k1",
    ]


def test_a_calibration_dot_lies_below_the_diagonal_by_how_much_too_sure_the_model_is() -> None:
    """Pixels are affine in the figures, and the dashed line goes from one half to one: so every dot and interval can be read back."""
    picture = calibration_chart(SHARES, name="x")
    line = r'<path d="M ([\d.]+) ([\d.]+) \nL ([\d.]+) ([\d.]+) \n" [^>]*'
    [(x0, y0, x1, y1)] = [tuple(map(float, found)) for found in re.findall(line + "stroke-dasharray", picture)]
    intervals = re.findall(line + r"stroke: var\(--policy-0\)", picture)
    dots = re.findall(r'<use href="#[^"]+" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--policy-0\)', picture)
    assert len(dots) == len(intervals) == len(SHARES)
    for share, (x, y), (left, low, right, high) in zip(SHARES, dots, intervals, strict=True):
        assert left == right == x
        up = [0.5 + 0.5 * (float(place) - y0) / (y1 - y0) for place in (y, low, high)]
        assert [0.5 + 0.5 * (float(x) - x0) / (x1 - x0), *up] == pytest.approx(share[:4], abs=1e-3)


def test_every_trained_reward_model_has_its_calibration_and_others_have_none() -> None:
    text = Page(render(material(stage_metrics={"reward/rm": {"calibration_error": 0.0567}}))).text
    assert "reward/rm 302 held-out preferences, 100 to 101 to a dot; calibration error 0.06" in text
    assert "as often right as it is sure" in text
    without = Page(render(material(calibration={}))).text
    assert "as often right as it is sure" not in without
    assert "held-out preferences" not in without


def test_nodes_come_after_what_they_are_built_on() -> None:
    nodes = recipe_nodes(RECIPE)
    names = [node.name for node in nodes]
    assert all(names.index(parent) < names.index(node.name) for node in nodes for parent in node.parents)
    parents = {node.name: set(node.parents) for node in nodes}
    assert parents["align/ppo"] == {"align/rs", "reward/rm"}
    assert parents["reward/rm"] == {"sft", "label/round1"}
    assert parents["reject/rs"] == {"sample/round1", "reward/rm"}


def test_a_blend_of_rewards_is_built_on_its_parts() -> None:
    rewards = {
        "help": {"signal": "label/round1"},
        "cost": {"signal": "label/round1"},
        "both": {"kind": "sum", "parts": {"help": 1.0, "cost": -0.5}},
    }
    nodes = {node.name: set(node.parents) for node in recipe_nodes(RECIPE | {"reward": rewards})}
    assert nodes["reward/both"] == {"reward/help", "reward/cost"}


def test_no_two_nodes_of_the_picture_share_a_place_and_lines_go_right() -> None:
    parents = {node.name: node.parents for node in recipe_nodes(RECIPE)}
    places = layered(parents)
    assert len(set(places.values())) == len(places)
    assert all(places[parent][0] < places[node][0] for node, above in parents.items() for parent in above)


# ---- the stage ------------------------------------------------------------------------------------------------------


CALIBRATION = """\
reward,0,0.2,0.55,0.5,0.4,0.6,100
reward,1,0.9,0.71,0.75,0.66,0.83,101
label,0,1.0,,0.7,0.6,0.8,201
"""


@pytest.fixture
def evaluated(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_STAGE", "report")
    given = material()
    for policy in given.policies:
        write_json(project / f"metrics/{policy}.json", given.metrics[policy])
        write_jsonl(project / f"artifacts/evaluate/{policy}/answers.jsonl", given.answers[policy])
    write_json(project / "metrics/label/round1.json", {"agreement": 0.8})
    write_json(project / "metrics/label/stale.json", {"agreement": 0.1})
    for name in ("align/dpo", "align/stale"):
        file = project / f"artifacts/curves/{name}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("step,loss,eval_loss\n10,1.0,\n20,0.5,0.6\n30,0.4,0.5\n")
    (project / "artifacts/calibration").mkdir()
    for name, rows in (("rm", CALIBRATION), ("verifier", ""), ("stale", CALIBRATION)):
        (project / f"artifacts/calibration/{name}.csv").write_text(
            "by,bin,margin,predicted,accuracy,accuracy_low,accuracy_high,n\n" + rows
        )
    (project / "artifacts/data_report").mkdir()
    (project / "artifacts/data_report/section.html").write_text("<h2>The data</h2>")
    return project


def stage() -> ReportStage:
    from stages.evaluation.section import EvaluateSection

    recipe = {key: value for key, value in RECIPE.items() if key != "evaluate"}
    return ReportStage(**recipe, evaluate=EvaluateSection(**RECIPE["evaluate"]), report=ReportSection(prompts=10))


def test_the_stage_writes_one_page_of_declared_nodes_and_the_data_section(evaluated: Path) -> None:
    run(stage())
    files = sorted(path.name for path in (evaluated / "artifacts/report").iterdir())
    assert files == ["report.html"]
    html = (evaluated / "artifacts/report/report.html").read_text()
    assert "<h2>The data</h2>" in html
    assert html.count("<svg") > html.count("held-out preferences, 100 to 101 to a dot") == 1
    assert "stale" not in html
    first = html
    run(stage())
    assert (evaluated / "artifacts/report/report.html").read_text() == first


def test_curves_leave_out_steps_without_a_value(evaluated: Path) -> None:
    curves = read_curves(evaluated / "artifacts/curves", declared(RECIPE))
    assert curves == {"align/dpo": {"loss": [(10, 1.0), (20, 0.5), (30, 0.4)], "eval_loss": [(20, 0.6), (30, 0.5)]}}


def test_calibration_is_that_of_trained_rewards_by_their_own_margin(evaluated: Path) -> None:
    found = read_calibration(evaluated / "artifacts/calibration", RECIPE["reward"])
    assert found == {"rm": [Share(0.55, 0.5, 0.4, 0.6, 100), Share(0.71, 0.75, 0.66, 0.83, 101)]}


def test_figures_of_stages_are_those_of_declared_nodes(evaluated: Path) -> None:
    assert read_stage_metrics(evaluated / "metrics", declared(RECIPE)) == {"label/round1": {"agreement": 0.8}}


def test_the_summary_run_holds_every_policys_figures() -> None:
    figures = summary(material().metrics)
    assert figures["dpo.gold"] == 0.6
    assert figures["dpo.gold_gain_low"] == pytest.approx(0.2)
    assert {name.partition(".")[0] for name in figures} == {"sft", "rs", "dpo"}


def test_the_shipped_recipe_can_be_told(project: Path) -> None:
    recipe = load_params()
    nodes = recipe_nodes(recipe)
    assert {node.name for node in nodes} >= {"pretrain", "sft", *(f"align/{name}" for name in recipe["align"])}
    assert not [policy for policy in recipe["evaluate"]["policies"] if learns_from_gold(nodes, policy)]
