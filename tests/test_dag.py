"""The cache cannot lie: dvc.yaml names exactly what each stage depends on, and a dependency left out is noticed."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from tests.dag import HYDRA_STAGES, ROOT, declared_nodes, load_pipeline, load_recipe, problems

METHODS = sorted(file.stem for file in (ROOT / "conf/method").glob("*.yaml"))


def every_stage() -> dict[str, Any]:
    """The default recipe, with entries for the stage, the kinds and the methods that it leaves out."""
    recipe = load_recipe("default")
    revise = {"cai": {"sample": "round1", "judge": "simulated", "constitution": "default"}}
    manners = {
        "kind": "rules",
        "init": "none",
        "signal": "none",
        "second": "none",
        "judge": "none",
        "rules": {"short": {"kind": "length", "most": 20}},
    }
    checked = {
        kind: {"kind": kind, "init": "none", "signal": "data/prompts", "second": "none", "judge": "none"}
        for kind in ("math", "code")
    }
    direct = {"kind": "judge", "init": "none", "signal": "none", "second": "none", "judge": "simulated"}
    blend = {"kind": "sum", "init": "none", "signal": "reward/rm", "second": "manners", "second_weight": -0.5, "judge": "none"}
    ceiling = {"sample": "round1", "reward": "rm", "cost": "manners", "max_cost_score": 0.5}
    methods = {method: {"method": method, "init": "sft", "signal": "reward/rm"} for method in METHODS}
    soup = {"method": "merge", "init": "sft", "signal": "policy/ppo"}
    return {
        **recipe,
        "revise": revise,
        "reward": recipe["reward"] | {"manners": manners, "blend": blend, "direct": direct} | checked,
        "reject": recipe["reject"] | {"ceiling": ceiling},
        "align": methods | recipe["align"] | {"merge": soup},
    }


RECIPES = sorted(file.stem for file in (ROOT / "conf/recipe").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_dvc_yaml_names_exactly_what_each_stage_needs(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert problems(load_pipeline(), load_recipe(recipe)) == []


def test_dvc_yaml_names_exactly_what_the_other_stages_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert problems(load_pipeline(), every_stage()) == []


def _lists(pipeline: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Every item of every deps and params list: (stage, kind, item)."""
    return [
        (stage, kind, item)
        for stage, body in pipeline["stages"].items()
        for kind in ("deps", "params")
        for item in body.get("do", body).get(kind, [])
        if stage != "check"
    ]


def _names(item: Any) -> str:
    return item if isinstance(item, str) else next(iter(item))


@pytest.mark.parametrize(("stage", "kind", "item"), _lists(load_pipeline()), ids=lambda value: _names(value))
def test_a_dependency_left_out_is_noticed(stage: str, kind: str, item: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    planted = copy.deepcopy(load_pipeline())
    body = planted["stages"][stage]
    body.get("do", body)[kind].remove(item)
    found = problems(planted, every_stage())
    assert any(re.match(rf"{stage}[@:]", problem) for problem in found), f"{stage} without {kind} {item}: not noticed"


def test_a_dependency_too_many_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for dep in ("stages/report.py", "conf/judge/gold.yaml", "artifacts/policy/base"):
        planted = copy.deepcopy(load_pipeline())
        planted["stages"]["reject"]["do"]["deps"].append(dep)
        assert any(problem.startswith("reject@rs") for problem in problems(planted, load_recipe("default"))), dep


def test_templates_are_resolved_as_dvc_resolves_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    theirs = {
        stage.addressing.removeprefix("dvc.yaml:"): {
            str(Path(dep.def_path)) for dep in stage.deps if "params.yaml" not in str(dep.def_path)
        }
        for stage in Repo.init(str(tmp_path), no_scm=True).index.stages
    }
    ours = {node.name: set(node.deps) for node in declared_nodes(load_pipeline(), load_params_file(tmp_path / "params.yaml"))}
    assert ours == theirs


def load_params_file(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def test_every_stage_has_one_name_everywhere() -> None:
    stages = set(load_pipeline()["stages"])
    assert stages == {"check", *HYDRA_STAGES}
    assert stages == {file.stem for file in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert stages - {"check"} <= {file.stem for file in (ROOT / "conf").glob("*.yaml")}
    for node in declared_nodes(load_pipeline(), load_recipe("default")):
        assert node.cmd.startswith(f"python -m stages.{node.stage}")


def test_packages_run_no_code_of_their_own() -> None:
    """An `__init__.py` is not a dep of those who import past it, so it may hold nothing (but the methods, which are their init)."""
    for file in (ROOT / "stages").rglob("__init__.py"):
        if file.parent.parent.name != "methods":
            tree = [line for line in file.read_text().splitlines() if line.strip()]
            assert len(tree) <= 1, f"{file} holds code"


def test_the_readme_names_every_method() -> None:
    table = (ROOT / "README.md").read_text().split("### Methods")[1].split("\n\n")[1]
    assert sorted(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == METHODS
    assert sorted(folder.name for folder in (ROOT / "stages/methods").iterdir() if (folder / "__init__.py").is_file()) == METHODS
