"""The recipe book: every file of conf/recipe is a whole, sound recipe that says where it comes from, and the README shows it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.tools.recipe import recipes
from tests.benchmarks import recipe_book
from tests.conftest import ROOT
from tests.dag import declared_nodes, load_pipeline, load_recipe

SYSTEMS = [name for name in recipes() if name not in ("default", "smoke")]


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_recipe_of_a_system_composes(name: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / f"conf/recipe/{name}.yaml", tmp_path / "params.yaml")
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "MLFLOW_TRACKING_URI": "off", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "stages.check"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_recipe_of_a_system_says_what_the_paper_did_and_what_differs_here(name: str) -> None:
    header = [line for line in (ROOT / f"conf/recipe/{name}.yaml").read_text().splitlines() if line.startswith("# ")]
    text = "\n".join(header[:8])
    assert re.search(r"arXiv:\d{4}\.\d{5}|neural-chat", text), text
    assert "There: " in text, text
    assert "# Here: " in text, text


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_recipe_says_whether_its_dpo_adds_the_sft_loss(name: str) -> None:
    """Few papers do; conf/method/dpo.yaml does."""
    header = "\n".join(line for line in (ROOT / f"conf/recipe/{name}.yaml").read_text().splitlines() if line.startswith("# "))
    for entry in load_recipe(name)["align"].values():
        assert entry["method"] != "dpo" or entry.get("sft_weight") == 0.0 or "the SFT loss" in header


@pytest.mark.parametrize("name", SYSTEMS)
def test_recipes_share_the_trunk(name: str) -> None:
    default, recipe = load_recipe("default"), load_recipe(name)
    for section in ("seed", "threads", "inputs", "model", "data", "prepare", "pretrain", "sft"):
        assert recipe[section] == default[section]


@pytest.mark.parametrize("name", [*SYSTEMS, "default"])
def test_the_book_counts_the_nodes_that_dvc_has(name: str) -> None:
    recipe = load_recipe(name)
    assert sorted(recipe_book.nodes(recipe)) == sorted(node.name for node in declared_nodes(load_pipeline(), recipe))


def test_the_readme_shows_the_book_as_it_is() -> None:
    readme = recipe_book.README.read_text(encoding="utf-8")
    assert recipe_book.with_table(readme, recipe_book.load_book()) == readme, "run: python tests/benchmarks/recipe_book.py table"


def test_the_book_holds_every_recipe_as_its_file_declares_it() -> None:
    book = recipe_book.load_book()
    assert sorted(book) == sorted([*SYSTEMS, "default"])
    for name, entry in book.items():
        recipe = load_recipe(name)
        assert [*entry["policies"]] == recipe["evaluate"]["policies"], name
        assert entry["nodes"] == len(recipe_book.nodes(recipe)), name
        assert entry["recipe"] == recipe_book.digest(name), f"run: python tests/benchmarks/recipe_book.py run {name}"
