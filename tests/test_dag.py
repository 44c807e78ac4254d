"""The cache cannot lie: dvc.yaml names exactly what each stage depends on, and a dependency left out or added is noticed."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from omegaconf import OmegaConf

from plumbline import graph
from tests import dag
from tests.dag import METHODS, ROOT, declared_nodes, load_pipeline, load_recipe, problems, touched

RECIPES = sorted(file.stem for file in (ROOT / "conf/recipe").glob("*.yaml"))
ONLINE = ("ppo", "grpo", "rloo")


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def every_stage() -> dict[str, Any]:
    """The default recipe, with entries for every stage, kind and method."""
    recipe = load_recipe("default")
    align = {f"by_{name}": {"method": name, "init": "sft", "signal": "label/round1"} for name in METHODS if name not in ONLINE}
    return {
        **recipe,
        "feedback": {"votes": {"policy": "sft"}},
        "pool": {"both": {"first": "round1", "second": "safe"}},
        "filter": {"safe": {"sample": "round1", "reward": "manners", "least": 0.5}},
        "revise": {"cai": {"sample": "round1", "judge": "constitutional"}},
        "reward_rules": {"manners": {"rules": {"short": {"kind": "length", "most": 20}}}},
        "reward_verifier": {kind: {"kind": kind} for kind in ("closed_world", "math", "code", "refusals", "instructions")},
        "reward_judge": {"direct": {"judge": "simulated"}},
        "reward_sum": {"blend": {"first": "rm", "second": "manners", "second_weight": -0.5}},
        "align": align | recipe["align"] | {"by_merge": {"method": "merge", "init": "sft", "signal": "policy/ppo"}},
        "rl": {f"by_{name}": {"method": name, "init": "sft", "reward": "rm"} for name in ONLINE} | recipe["rl"],
        "overoptimisation": {
            "best_of_n": {"init": "sft", "steps": "none", "proxy": "rm", "gold": "closed_world", "answers": 8},
            "ppo": {"init": "sft", "steps": "ppo", "proxy": "rm", "gold": "closed_world"},
        },
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_dvc_yaml_names_exactly_what_each_stage_needs(recipe: str) -> None:
    assert problems(load_pipeline(), load_recipe(recipe)) == []


def test_dvc_yaml_names_exactly_what_the_other_stages_need() -> None:
    params = every_stage()
    assert {node.stage for node in declared_nodes(load_pipeline(), params)} == {"check", *graph.STAGES}
    assert problems(load_pipeline(), params) == []


@pytest.mark.parametrize("stage", ["reject", "filter", "evaluate", "overoptimisation", "rl"])
def test_a_stage_whose_shards_would_outlive_an_edit_of_its_rewards_code_is_noticed(
    monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setattr(f"stages.{stage}.modules_of", lambda *_: ())
    monkeypatch.setattr(dag, "_needs_cache", {})
    noticed = {problem.partition(": ")[2] for problem in problems(load_pipeline(), every_stage(), stage)}
    assert "its shards outlive an edit of plumbline/rewards/rules.py" in noticed


def _without_one() -> Iterator[tuple[str, dict[str, Any]]]:
    """dvc.yaml with each item of each deps and params list left out in turn."""
    pipeline = load_pipeline()
    for stage, body in pipeline["stages"].items():
        for kind in ("deps", "params"):
            for position, item in enumerate(body.get("do", body)[kind] if stage != "check" else []):
                planted = copy.deepcopy(pipeline)
                del planted["stages"][stage].get("do", planted["stages"][stage])[kind][position]
                yield f"{stage} without {kind} {item}", planted


def test_every_dependency_left_out_is_noticed() -> None:
    params = every_stage()
    silent = []
    for name, planted in _without_one():
        stage = name.split()[0]
        if not problems(planted, params, stage):
            silent.append(name)
    assert silent == []


def test_every_dependency_too_many_is_noticed() -> None:
    """On a module, a package, a conf file, an artifact or a value that another stage needs and this one does not."""
    params = every_stage()
    pipeline = load_pipeline()
    superfluous = {
        "deps": ["stages/report.py", "plumbline/judging", "plumbline/world", "plumbline/methods/online/ppo", "conf/judge/gold.yaml",
                 "conf/judge/templates", "artifacts/policy/base", "artifacts/data/pretrain"],
        "params": ["inputs"],
    }  # fmt: skip
    silent = []
    for stage, body in pipeline["stages"].items():
        for kind, items in superfluous.items():
            for item in items if stage not in ("check", "report") or kind == "deps" else []:
                here = body.get("do", body)[kind]
                if stage == "check" or any(str(known).startswith(item) for known in here):
                    continue
                planted = copy.deepcopy(pipeline)
                planted["stages"][stage].get("do", planted["stages"][stage])[kind].append(item)
                if not problems(planted, params, stage):
                    silent.append(f"{stage} with {kind} {item}")
    legitimate = {"rl with deps plumbline/methods/online/ppo"}
    assert set(silent) - legitimate == set()


EDITS = {
    "conf/judge/templates/rating.en.j2": {
        "label@round1", "label@ranked", "label@round2", "revise@cai", "reward_judge@direct",
        "evaluate@sft", "evaluate@rs", "evaluate@dpo", "evaluate@ppo",
    },
    "plumbline/methods/online/ppo/losses.py": {"rl@ppo", "rl@by_ppo"},
    "plumbline/methods/offline/dpo.py": {"align@dpo1", "align@dpo", "align@by_dpo"},
    "plumbline/methods/online/groups.py": {"rl@ppo", *(f"rl@by_{name}" for name in ONLINE)},
    "plumbline/report/page.py": {"report"},
    "plumbline/world/generate.py": {"prepare", "feedback@votes", *(f"label@{name}" for name in ("round1", "ranked", "round2")), "revise@cai",
                                    "reward_judge@direct", *(f"evaluate@{policy}" for policy in ("sft", "rs", "dpo", "ppo"))},
    "plumbline/rewards/rules.py": {"reward_rules@manners"},
    "plumbline/checking/sandbox.py": {*(f"reward_verifier@{kind}" for kind in ("closed_world", "math", "code", "refusals", "instructions")),
                                      *(f"evaluate@{policy}" for policy in ("sft", "rs", "dpo", "ppo"))},
    "conf/size/tiny.yaml": {
        "pretrain", "sft", "sample@round1", "sample@round2", "reward_model@rm", "align@rs", "align@dpo1", "align@dpo", "rl@ppo",
        *(f"align@by_{name}" for name in METHODS if name not in ONLINE), *(f"rl@by_{name}" for name in ONLINE),
    },
    "conf/method/dpo.yaml": {"align@dpo1", "align@dpo", "align@by_dpo"},
    "conf/judge/simulated.yaml": {"label@round1", "label@ranked", "label@round2", "reward_judge@direct",
                                  *(f"evaluate@{p}" for p in ("sft", "rs", "dpo", "ppo"))},
    "conf/judge/openai.yaml": set(),
    "conf/engine/here.yaml": set(),
    "artifacts/samplers/ppo.json": {"rl@ppo"},
    "artifacts/engine.json": {"sample@round1", "sample@round2", *(f"answer@{policy}" for policy in ("sft", "rs", "dpo", "ppo"))},
}  # fmt: skip
"""A file → the nodes that an edit of it makes run again; what these make decides what follows."""


def test_an_edit_of_a_file_touches_the_nodes_that_a_user_expects() -> None:
    params = every_stage()
    assert {path: touched(path, load_pipeline(), params) for path in EDITS} == EDITS


def test_the_worlds_verifier_touches_what_verifies_and_neither_the_data_nor_any_training() -> None:
    names = touched("plumbline/world/verify.py", load_pipeline(), every_stage())
    assert {name.partition("@")[0] for name in names} == {"revise", "label", "reward_verifier", "reward_judge", "evaluate"}


def test_templates_are_resolved_as_dvc_resolves_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = every_stage()
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    OmegaConf.save(OmegaConf.create(params), tmp_path / "params.yaml")
    theirs = {
        stage.addressing.removeprefix("dvc.yaml:"): {
            str(Path(dep.def_path)) for dep in stage.deps if "params.yaml" not in str(dep.def_path)
        }
        for stage in Repo.init(str(tmp_path), no_scm=True).index.stages
    }
    ours = {node.name: set(node.deps) for node in declared_nodes(load_pipeline(), params)}
    assert ours == theirs


def test_the_graph_makes_what_dvc_yaml_makes() -> None:
    params = every_stage()
    outs = {node.name: set(node.outs) for node in declared_nodes(load_pipeline(), params)}
    for node in graph.nodes(params):
        assert {f"artifacts/{path}" for path in node.makes} <= outs[node.name], node.name


def test_every_stage_has_one_name_everywhere() -> None:
    stages = set(load_pipeline()["stages"])
    assert stages == {"check", *graph.STAGES}
    assert stages == {file.stem for file in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert stages - {"check"} == {file.stem for file in (ROOT / "conf").glob("*.yaml")} - {"quiet", "tracking"}
    for node in declared_nodes(load_pipeline(), every_stage()):
        assert node.cmd.startswith(f"python -m stages.{node.stage}")
    assert [next(iter(section)) for section in load_pipeline()["vars"]] == [*graph.REPEATED]


def test_every_method_has_a_conf_file_and_belongs_to_one_stage() -> None:
    methods = ROOT / "plumbline/methods"
    offline = {file.stem for file in (methods / "offline").glob("*.py")} - {"__init__"}
    online = {folder.name for folder in (methods / "online").iterdir() if (folder / "__init__.py").is_file()}
    assert offline.isdisjoint(online)
    assert sorted(offline | online) == METHODS
    assert online == set(ONLINE)
