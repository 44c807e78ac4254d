"""Claims about the graph: where its nodes stand, what the picture says of them, and what `make graph` takes for run or cached."""

import json
import re
from pathlib import Path
from typing import Any

from plumbline.graph import REPEATED, SINGLE, nodes, parents
from plumbline.pipeline.execution import executing
from plumbline.report.graph_picture import KINDS, Cost, duration, kind, nodes_in_order, pictures
from plumbline.report.lanes import depth_first, lanes, nearest
from plumbline.tools.graph_page import Experiment, Timing, costs, draw, experiments, last_timings
from stages.report import ReportSection
from tests.dag import load_recipe
from tests.reporting import RECIPE, Page

DIAMOND = {"top": [], "left": ["top"], "right": ["top"], "bottom": ["left", "right", "top"]}


def test_every_kind_of_stage_has_a_shape_of_its_own_kind() -> None:
    folders = {kind.folder for kind in REPEATED.values()} | {made[0].partition("/")[0] for _, made in SINGLE.values()}
    assert folders | {"answer", "evaluate"} == KINDS.keys()


# ---- where nodes stand ----------------------------------------------------------------------------------------------


def test_a_node_stands_below_all_that_it_builds_on() -> None:
    for recipe in ("default", "smollm2", "safe_rlhf"):
        above = parents(nodes(load_recipe(recipe)))
        order = depth_first(above)
        assert sorted(order) == sorted(above)
        assert all(order.index(parent) < order.index(node) for node, of_node in above.items() for parent in of_node)


def test_an_edge_is_left_out_where_another_way_leads_to_the_same_node() -> None:
    assert nearest(DIAMOND) == {"top": [], "left": ["top"], "right": ["top"], "bottom": ["left", "right"]}


def test_lanes_by_hand() -> None:
    """`left` starts a lane, because `top` leads on to `right`, which takes over from `top`; `bottom` ends both."""
    assert lanes(["top", "left", "right", "bottom"], nearest(DIAMOND)) == {"top": 0, "left": 1, "right": 0, "bottom": 0}


def test_no_edge_runs_through_a_node_that_it_does_not_join() -> None:
    for recipe in ("default", "smollm2", "iterated_dpo", "spin"):
        above = nearest(parents(nodes(load_recipe(recipe))))
        order = depth_first(above)
        lane = lanes(order, above)
        for node, of_node in above.items():
            for parent in of_node:
                between = order[order.index(parent) + 1 : order.index(node)]
                assert lane[parent] not in {lane[other] for other in between}, (recipe, parent, node)


def test_the_policies_follow_each_other_as_the_recipe_evaluates_them() -> None:
    order = [node.name for node in nodes_in_order(RECIPE)]
    assert [name for name in order if name.startswith("evaluate@")] == ["evaluate@sft", "evaluate@rs", "evaluate@dpo"]
    assert order.index("evaluate@rs") < order.index("align@dpo")


# ---- the picture ----------------------------------------------------------------------------------------------------


def forty_nodes() -> dict[str, Any]:
    """A recipe of forty nodes: one after the other, policies of long names."""
    names = [f"preference_round_{number}" for number in range(17)]
    align = {
        name: {"method": "dpo", "init": names[n - 1] if n else "sft", "signal": "data/preferences"}
        for n, name in enumerate(names)
    }
    without: dict[str, Any] = {
        stage: {} for stage in ("revise", "label", "reward_model", "reward_verifier", "reward_sum", "reject", "rl", "sample")
    }
    section = RECIPE["evaluate"] | {"policies": ["sft", *names[:9]], "against": "sft", "reward": "none"}
    return RECIPE | without | {"align": align, "evaluate": section}


def test_forty_nodes_fit_a_phone_with_their_names_and_times() -> None:
    of = nodes_in_order(forty_nodes())
    assert len(of) == 40
    html = pictures(of, {}, {}, {node.name: Cost(60.0, "run") for node in of})
    narrow = html[html.index("graph narrow") :]
    assert 'viewBox="0 0 340 1604"' in narrow
    text = Page(narrow).text
    assert all(node.name in text for node in of)
    assert text.count("2 % · run") == 40  # one fortieth each: 2.5 %
    ends = [float(x) for x in re.findall(r'<text class="node" x="(\d+)"', narrow)]
    assert max(ends) < 340 / 2  # there is room for names beside the lanes


def test_names_from_a_recipe_are_never_markup() -> None:
    recipe = forty_nodes()
    recipe["align"] |= {"<img src=x>": {"method": "dpo", "init": "sft", "signal": "data/preferences"}}
    assert "<img" not in pictures(nodes_in_order(recipe), {}, {})


def test_each_kind_of_node_has_a_shape_of_its_own_and_the_key_names_it() -> None:
    of = nodes_in_order(RECIPE)
    kinds = {kind(node) for node in of}
    assert kinds == {"data", "policy", "completions", "rows to learn from", "reward", "evaluation"}
    key = re.findall(r'<path d="([^"]+)"[^>]*/></svg>([a-z ]+)</li>', pictures(of, {}, {}))
    assert {name for _, name in key} == kinds
    assert len({shape for shape, _ in key}) == len(kinds)


def test_what_ran_is_filled_and_what_came_from_the_cache_is_hollow() -> None:
    of = nodes_in_order(RECIPE)[:3]
    html = pictures(of, {}, {}, {"prepare": Cost(30.0, "cached"), "pretrain": Cost(60.0, "run"), "sft": Cost(None, "not run")})
    wide = html[: html.index("graph narrow")]
    bars = [(float(width), fill) for width, fill in re.findall(r'<rect [^>]*width="([\d.]+)" [^>]*fill="([^"]+)"', wide)]
    assert [fill for _, fill in bars] == ["none", "var(--soft)"]
    assert bars[1][0] == 2 * bars[0][0]
    for text in ("30 s · 33 % · cached", "1 min · 67 % · run", "not run"):
        assert text in wide


def test_times_are_said_as_people_say_them() -> None:
    for seconds, text in (
        (0.42, "0.4 s"),
        (12.4, "12 s"),
        (59.7, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7530, "2 h 6 min"),
    ):
        assert duration(seconds) == text


# ---- what ran -------------------------------------------------------------------------------------------------------


def write_timings(folder: Path, name: str, *rows: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_only_runs_by_dvc_in_this_project_count(tmp_path: Path) -> None:
    row = {"stage_seconds": 5.0, "peak_rss_mib": 9.0}
    write_timings(
        tmp_path,
        "sft",
        {"stage_seconds": 4.0},  # of an older version
        {"at": "2026-01-02T10:00:00+00:00", "by": "dvc", **row},
        {"at": "2026-01-02T10:00:01+00:00", "by": "dvc", "judge_calls": 3},
        {"at": "2026-01-03T10:00:00+00:00", "by": "hand", **row, "stage_seconds": 1.0},
        {"at": "2026-01-03T11:00:00+00:00", "by": "warm-bear", **row, "stage_seconds": 2.0},
    )
    assert last_timings(tmp_path, ["sft", "align@dpo"]) == {"sft": Timing(5.0, "2026-01-02T10:00:00+00:00")}


EXPERIMENTS = {
    "sft": [
        {"at": "2026-01-03T11:00:00+00:00", "by": "warm-bear", "here": False, "stage_seconds": 50.0},
        {"at": "2026-01-03T11:30:00+00:00", "by": "warm-bear", "here": False, "stage_seconds": 60.0},  # again, after a crash
        {
            "at": "2026-01-01T11:00:00+00:00",
            "by": "old-owl",
            "stage_seconds": 1.0,
        },  # of an older version, which had only queued ones in mind
    ],
    "align@dpo": [{"at": "2026-01-03T12:00:00+00:00", "by": "warm-bear", "here": False, "stage_seconds": 120.0}],
    "align@other": [{"at": "2026-01-03T10:00:00+00:00", "by": "calm-cow", "here": False, "stage_seconds": 5.0}],
}


def test_an_experiment_in_this_folder_counts_as_a_run_and_queued_ones_are_listed(tmp_path: Path) -> None:
    for name, rows in EXPERIMENTS.items():
        write_timings(tmp_path, name, *rows)
    here = {"at": "2026-01-02T10:00:00+00:00", "by": "loud-lion", "here": True, "stage_seconds": 7.0}
    write_timings(tmp_path, "prepare", here)
    assert last_timings(tmp_path, ["prepare", "sft"]) == {"prepare": Timing(7.0, here["at"])}
    calm = Experiment("calm-cow", {"align@other": 5.0}, "2026-01-03T10:00:00+00:00")
    warm = Experiment("warm-bear", {"sft": 60.0, "align@dpo": 120.0}, "2026-01-03T12:00:00+00:00")
    assert experiments(tmp_path, "2026-01-02T00:00:00+00:00") == [calm, warm]
    assert [one.name for one in experiments(tmp_path, "")] == ["old-owl", "calm-cow", "warm-bear"]
    (tmp_path / "started").write_text("2026-01-02T09:30:00+00:00\n")
    page, text = draw(RECIPE, [], tmp_path)
    assert re.search(r"^prepare .*run +2026-01-02 10:00 UTC$", text, re.MULTILINE)
    listed = (
        r"^Queued experiments since then:\ncalm-cow .*\nwarm-bear  2 nodes  3 min, longest align@dpo 2 min +2026-01-03 12:00 UTC$"
    )
    assert re.search(listed, text, re.MULTILINE)
    assert "warm-bear2 nodes3 min, longest align@dpo 2 min2026-01-03 12:00 UTC" in Page(page).text  # cells


def test_what_ended_since_the_run_began_was_run_and_what_is_locked_besides_was_cached() -> None:
    timings = {"sft": Timing(5.0, "2026-01-02T10:00:00+00:00"), "prepare": Timing(2.0, "2026-01-02T09:00:00+00:00")}
    names, locked = ["prepare", "pretrain", "sft", "align@dpo"], ["prepare", "pretrain", "sft"]
    assert costs(names, timings, locked, "2026-01-02T09:30:00+00:00") == {
        "prepare": Cost(2.0, "cached"),
        "pretrain": Cost(None, "cached"),  # restored from a cache that another machine filled
        "sft": Cost(5.0, "run"),
        "align@dpo": Cost(None, "not run"),
    }
    assert {cost.state for cost in costs(names[:3], timings, locked, "").values()} == {"cached"}


def test_the_tool_draws_the_page_and_says_the_same_in_the_terminal(tmp_path: Path) -> None:
    for name, at in (("prepare", "2026-01-02T09:00:00+00:00"), ("sft", "2026-01-02T10:00:00+00:00")):
        write_timings(tmp_path, name, {"at": at, "by": "dvc", "stage_seconds": 65.0})
    (tmp_path / "started").write_text("2026-01-02T09:30:00+00:00\n")
    page, text = draw(RECIPE, ["prepare", "pretrain", "sft"], tmp_path)
    assert re.search(r"^prepare +data +1 min 5 s · 50 % · cached +2026-01-02 09:00 UTC$", text, re.MULTILINE)
    assert re.search(r"^sft +policy +1 min 5 s · 50 % · run +2026-01-02 10:00 UTC$", text, re.MULTILINE)
    count = len(nodes(RECIPE))
    sentence = f"Since the last make repro began (2026-01-02 09:30 UTC), 1 of {count} nodes ran, in 1 min 5 s."
    assert sentence in text
    assert f"{count - 3} have not run yet." in text
    assert sentence in Page(page).text
    assert "script" not in {tag for tag, _ in Page(page).tags}


def test_a_stage_writes_when_it_ended_and_for_whom(project: Path, monkeypatch: Any) -> None:
    for variable, value, by in ((None, "", "hand"), ("DVC_STAGE", "report", "dvc"), ("DVC_EXP_NAME", "warm-bear", "warm-bear")):
        if variable:
            monkeypatch.setenv(variable, value)
        with executing("report", None, ReportSection(prompts=1, listed=1), []):
            pass
        row = json.loads((project / ".timings/report.jsonl").read_text().splitlines()[-1])
        assert (row["by"], row["here"]) == (by, True)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row["at"])
        assert row["stage_seconds"] > 0
    copy = project / ".dvc/tmp/exps/copy"
    copy.mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.chdir(copy)
    with executing("report", None, ReportSection(prompts=1, listed=1), []):
        pass
    assert json.loads((project / ".timings/report.jsonl").read_text().splitlines()[-1])["here"] is False


def test_make_repro_writes_when_it_began() -> None:
    recipe = (Path(__file__).parents[1] / "Makefile").read_text()
    assert recipe.index("> .timings/started") < recipe.index("\n\tdvc repro ")
