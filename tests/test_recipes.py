"""Claims about recipes: each file of conf/recipe is sound, says where it comes from, and stands in docs/results.md as it is."""

import re
from pathlib import Path

import pytest

from plumbline import graph
from plumbline.consistency import wrong_references
from plumbline.data.files import find_files
from plumbline.data.schema import Source
from plumbline.pipeline.composing import conf_values, load_params
from plumbline.tools.recipe import choose, recipes
from stages.check import wrong_sections
from tests.benchmarks import recipe_book
from tests.conftest import ROOT
from tests.dag import declared_nodes, load_pipeline, load_recipe

OURS = ("default", "feedback", "smoke")
SYSTEMS = [name for name in recipes() if name not in OURS and load_recipe(name)["data"] == "closed_world"]
"""The recipes that follow a published system in the closed world. `feedback` learns from what people say, and the others align a real model."""


def test_every_recipe_names_sections_and_nodes_that_exist() -> None:
    """That its configs compose, and that their values fit, tests/test_dag.py shows."""
    for name in recipes():
        params = load_recipe(name)
        assert wrong_sections(params) + wrong_references(params) == [], name
        assert graph.nodes(params), name


def header(name: str) -> str:
    lines = (ROOT / f"conf/recipe/{name}.yaml").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("# "))


def test_a_recipe_of_a_system_says_what_the_paper_did_and_what_differs_here() -> None:
    for name in SYSTEMS:
        text = "\n".join(header(name).splitlines()[:8])
        assert re.search(r"arXiv:\d{4}\.\d{5}|neural-chat", text), text
        assert "There: " in text, text
        assert "# Here: " in text, text


def test_a_recipe_says_whether_its_dpo_adds_the_sft_loss() -> None:
    """Few papers do; conf/method/dpo.yaml does."""
    for name in SYSTEMS:
        entries = [entry for entry in load_recipe(name).get("align", {}).values() if entry["method"] == "dpo"]
        assert all(entry.get("sft_weight") == 0.0 for entry in entries) or "the SFT loss" in header(name), name


def test_recipes_share_the_trunk() -> None:
    default = load_recipe("default")
    for name in (*SYSTEMS, "feedback"):
        recipe = load_recipe(name)
        for section in ("seed", "threads", "inputs", "model", "data", "prepare", "pretrain", "sft"):
            assert recipe[section] == default[section], name


def test_the_book_counts_the_nodes_that_dvc_has() -> None:
    pipeline = load_pipeline()
    for name in (*SYSTEMS, "default"):
        recipe = load_recipe(name)
        assert sorted(recipe_book.nodes(recipe)) == sorted(node.name for node in declared_nodes(pipeline, recipe)), name


def test_the_page_of_results_shows_the_book_as_it_is() -> None:
    page = recipe_book.RESULTS.read_text(encoding="utf-8")
    assert recipe_book.with_table(page, recipe_book.load_book()) == page, "run: python tests/benchmarks/recipe_book.py table"


def test_the_book_holds_every_recipe_as_its_file_declares_it() -> None:
    book = recipe_book.load_book()
    assert sorted(book) == sorted([*SYSTEMS, "default"])
    for name, entry in book.items():
        recipe = load_recipe(name)
        assert [*entry["policies"]] == recipe["evaluate"]["policies"], name
        assert entry["nodes"] == len(recipe_book.nodes(recipe)), name
        assert entry["recipe"] == recipe_book.digest(name), f"run: python tests/benchmarks/recipe_book.py run {name}"


def test_the_book_marks_the_policies_that_learned_from_the_verifier() -> None:
    for name, entry in recipe_book.load_book().items():
        nodes = graph.nodes(load_recipe(name))
        gold = {
            node.name for node in nodes if node.settings.get("kind") == "closed_world" or node.settings.get("judge") == "gold"
        }
        above = {policy: graph.ancestors(nodes, graph.maker(nodes, f"policy/{policy}") or "") for policy in entry["policies"]}
        assert entry["learned_from_gold"] == [policy for policy, names in above.items() if names & gold], name


def test_choosing_a_recipe_keeps_edits_unless_forced(project: Path) -> None:
    params = project / "params.yaml"
    assert "smoke" in choose("smoke", force=False)  # params.yaml was an unedited recipe
    edited = params.read_text().replace("seed: 17", "seed: 18")
    params.write_text(edited)
    with pytest.raises(ValueError, match="edits"):
        choose("default", force=False)
    assert params.read_text() == edited
    choose("default", force=True)
    assert params.read_bytes() == (ROOT / "conf/recipe/default.yaml").read_bytes()
    with pytest.raises(ValueError, match="'smokes'"):
        choose("smokes", force=True)


def test_a_recipe_of_a_hub_model_reads_local_copies_if_asked_to(project: Path) -> None:
    choose("smollm2", force=True)
    hub = load_params()
    choose("smollm2", force=False, local="../copies")
    copies = load_params()
    assert copies == hub | {"model": "smollm2_local", "data": "safety_local", "inputs": "../copies"}
    text = (project / "params.yaml").read_text()
    assert (
        text.replace("smollm2_local ", "smollm2       ")
        .replace("safety_local ", "safety       ")
        .replace("../copies ", "data/raw  ")
        == (ROOT / "conf/recipe/smollm2.yaml").read_text()
    )  # the comments are where they were
    assert "already holds" in choose("smollm2", force=False, local="../copies")
    assert "now holds" in choose("default", force=False)  # copies are no edits
    with pytest.raises(ValueError, match=r"found no conf/model/tiny_local\.yaml"):
        choose("default", force=False, local="../copies")


@pytest.mark.parametrize(
    "files",
    [
        ("safety/harmful_behaviors.csv", "safety/xstest_prompts.csv", "safety/do_not_answer.csv", "instructions/alpaca_data.json",
         "hh-rlhf/helpful-base.jsonl.gz"),
        ("safety/advbench_harmful_behaviors_300.csv", "safety/xstest_prompts_306.csv", "safety/do_not_answer_500.csv.gz",
         "instructions/alpaca_3000.json", "hh-rlhf/helpful-base.shared.jsonl.gz"),
    ],
    ids=["as published", "cut"],
)  # fmt: skip
def test_local_copies_are_found_by_their_published_names_and_with_other_endings(tmp_path: Path, files: tuple[str, ...]) -> None:
    others = ("safety/xstest_v2_completions_gpt4.csv", "instructions/ko_alpaca_data.json", "hh-rlhf/harmless-base.jsonl.gz")
    for name in (*files, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    conf = conf_values(ROOT / "conf/data/safety_local.yaml")
    sources = [Source(name=one["name"], files=one["files"]) for role in ("sft", "prompts") for one in conf[role]["sources"]]
    matches = [find_files(source, tmp_path) for source in sources]
    assert {len(paths) for paths in matches} == {1}
    assert {str(path.relative_to(tmp_path)) for paths in matches for path in paths} == {*files}


def test_local_copies_stand_for_the_same_sets_in_the_same_shares() -> None:
    hub, copies = (conf_values(ROOT / f"conf/data/{name}.yaml") for name in ("safety", "safety_local"))
    assert [*hub] == [*copies]
    for role in ("sft", "prompts"):
        kept = [
            [
                {key: source.get(key) for key in ("name", "skip", "limit", "expects", "instructions", "licence", "into")}
                for source in conf[role]["sources"]
            ]
            for conf in (hub, copies)
        ]
        assert kept[0] == kept[1]
    models = [conf_values(ROOT / f"conf/model/{name}.yaml") for name in ("smollm2", "smollm2_local")]
    assert [*models[0]] == [*models[1]]
    assert {key for key in models[0] if models[0][key] != models[1][key]} == {"path", "revision"}
