"""The whole DAG at work, by the recipe `smoke`: what runs, what does not run again, what a crash leaves, what a stage reads."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.dag import declared_nodes, load_pipeline

pytestmark = pytest.mark.slow

TRACER = """
import os, sys
log = os.environ.get("TRACE_FILE")
if log and os.environ.get("DVC_STAGE"):
    root = os.getcwd() + os.sep
    seen = set()
    def hook(event, args):
        if event == "open" and isinstance(args[0], str) and not (isinstance(args[1], str) and set(args[1]) & set("wax+")):
            path = os.path.abspath(args[0])
            if path.startswith(root) and path not in seen:
                seen.add(path)
                fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.write(fd, f"{os.environ['DVC_STAGE']}\\t{path[len(root):]}\\n".encode())
                os.close(fd)
    sys.addaudithook(hook)
"""


MORE = """
filter:
  short: {sample: round1, reward: short, least: 0.1}
pool:
  both: {first: round1, second: short}
reward_rules:
  short: {rules: {short: {kind: length, most: 20}}}
reward_sum:
  blend: {first: gold, second: short}
"""
"""Entries of the stages that the smoke recipe does without."""


class Project:
    """A copy of the checkout in which commands run as a user's do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trace = folder.parent / "trace.tsv"
        (folder.parent / "tracer").mkdir()
        (folder.parent / "tracer/sitecustomize.py").write_text(TRACER)
        self.environment = {
            **{key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder.parent / "tracer"),
            "TRACE_FILE": str(self.trace),
            "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
        }  # fmt: skip

    def run(self, *command: str, check: bool = True, **environment: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env={**self.environment, **environment}, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout + done.stderr

    def would_run(self) -> set[str]:
        """The nodes whose own dependencies changed."""
        return {node.removeprefix("dvc.yaml:") for node in json.loads(self.run("dvc", "status", "--json").splitlines()[-1])}

    def outputs(self) -> dict[str, str]:
        """md5 of every output by path, but of the files that hold run ids."""
        stages = yaml.safe_load((self.folder / "dvc.lock").read_text())["stages"]
        found = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
        return {path: md5 for path, md5 in found.items() if not path.startswith("artifacts/runs/")}

    def edit(self, path: str, old: str, new: str) -> None:
        text = (self.folder / path).read_text()
        assert old in text, f"{path}: {old!r} is not there"
        (self.folder / path).write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("smoke") / "project"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for file in files:
        if (ROOT / file).is_file() and file != "dvc.lock":
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
    recipe = (folder / "conf/recipe/smoke.yaml").read_text()
    (folder / "params.yaml").write_text(recipe.replace("\nevaluate:", f"{MORE}\nevaluate:"))
    made = Project(folder)
    made.run("git", "init", "-q")
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "start")
    started = time.perf_counter()
    # MLflow takes four seconds a node: what is run again below is tracked
    made.run(sys.executable, "-m", "stages.check", MLFLOW_TRACKING_URI="off")
    made.run("dvc", "repro", MLFLOW_TRACKING_URI="off")
    print(f"smoke took {time.perf_counter() - started:.0f} s")
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "ran")
    return made


@pytest.fixture
def edited(project: Project) -> Iterator[Project]:
    """The project; its edits, and what was computed with them, are taken back afterwards."""
    yield project
    project.run("git", "checkout", "-q", "--", "params.yaml", "conf", "plumbline", "stages", "dvc.lock", "requirements.lock")
    project.run("dvc", "checkout", "--force", "--quiet")


def test_every_policy_has_the_metrics_of_the_contract(project: Project) -> None:
    keys = [
        "gold",
        "gold_gain",
        "gold_gain_low",
        "gold_at_1",
        "win_rate",
        "harmful_fraction",
        "over_refusal_fraction",
        "accuracy",
        "reward",
        "kl",
        "length_tokens",
    ]
    for policy in ("sft", "rs", "dpo", "ppo"):
        metrics = json.loads((project.folder / f"metrics/{policy}.json").read_text())
        assert list(metrics) == keys
        figures = json.loads((project.folder / f"artifacts/evaluate/{policy}/figures.json").read_text())
        assert {key: figures[key] for key in keys} == metrics
        assert {f"{key}{bound}" for key in keys[:2] for bound in ("_low", "_high")} | {"n", "answers"} <= set(figures)
        assert all(value is None or isinstance(value, int | float) for value in figures.values())
    sft = json.loads((project.folder / "metrics/sft.json").read_text())
    assert (sft["gold_gain"], sft["win_rate"], sft["kl"]) == (0, 0.5, 0)


def test_dvcs_tables_start_with_what_people_compare_and_stay_small(project: Project) -> None:
    header = next(csv.reader(project.run("dvc", "exp", "show", "--csv").splitlines()))
    metrics = [column for column in header if column.startswith("metrics/")]
    assert 40 <= len(metrics) <= 45
    assert all(column.endswith(":gold") for column in metrics[:1])


def test_every_policy_and_reward_is_a_hugging_face_folder(project: Project) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    for policy in ("base", "sft", "rs", "dpo1", "dpo", "ppo"):
        folder = project.folder / "artifacts/policy" / policy
        assert (folder / "model.safetensors").is_file()
        AutoModelForCausalLM.from_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder).chat_template
    AutoModelForSequenceClassification.from_pretrained(project.folder / "artifacts/reward/rm")


def test_a_second_repro_runs_nothing(project: Project) -> None:
    assert "Running stage" not in project.run("dvc", "repro")
    assert project.would_run() == set()


@pytest.mark.parametrize(
    ("path", "old", "new", "nodes"),
    [
        ("params.yaml", "# The same DAG", "# Another comment. The same DAG", set()),
        ("params.yaml", "beta: 0.1", "beta: 0.2", {"check", "align@dpo", "report"}),
        ("params.yaml", "most: 20", "weight: 0.5, most: 20", {"check", "reward_rules@short", "report"}),
        ("params.yaml", "judge: simulated", "judge: gold", {"check", "label@round1", "report"}),
        ("conf/judge/openai.yaml", "backend: openai", "backend: openai\nconcurrency: 3", {"check"}),
        ("conf/judge/templates/rating.en.j2", ".", ",",
         {"check", "label@round1", "label@ranked", "label@round2", *(f"evaluate@{policy}" for policy in ("sft", "rs", "dpo", "ppo"))}),
        ("conf/reward_model.yaml", "centring: 0.01", "centring: 0.02", {"check", "reward_model@rm"}),
        ("conf/size/tiny.yaml", "learning_rate: 3.0e-4", "learning_rate: 2.0e-4",
         {"check", "pretrain", "sft", "sample@round1", "sample@round2", "reward_model@rm", "align@rs", "align@dpo1", "align@dpo", "rl@ppo"}),
        ("plumbline/methods/online/ppo/losses.py", '"""', '# a comment\n"""', {"check", "rl@ppo"}),
        ("plumbline/report/page.py", '"""', '"""Another docstring. ', {"check", "report"}),
    ],
)  # fmt: skip
def test_an_edit_changes_those_nodes_alone(edited: Project, path: str, old: str, new: str, nodes: set[str]) -> None:
    edited.edit(path, old, new)
    assert edited.would_run() == nodes


def test_an_edit_of_a_template_that_changes_no_verdict_retrains_nothing(edited: Project) -> None:
    """Labels depend on all templates; by this one nothing was asked here, so the labels, and what learns from them, stay."""
    edited.edit("conf/judge/templates/ranking.en.j2", "material to judge, never", "material to judge; never")
    edited.run("dvc", "repro", "-s", "label@round1", "label@ranked", "label@round2", MLFLOW_TRACKING_URI="off")
    assert edited.would_run() == {"check", *(f"evaluate@{policy}" for policy in ("sft", "rs", "dpo", "ppo"))}


def test_the_seed_changes_every_node_that_computes(edited: Project) -> None:
    edited.edit("params.yaml", "seed: 17", "seed: 18")
    everything = {
        node.name for node in declared_nodes(load_pipeline(), yaml.safe_load((edited.folder / "params.yaml").read_text()))
    }
    assert edited.would_run() == everything


def test_a_stage_opens_nothing_that_it_does_not_depend_on(project: Project) -> None:
    """Files, that is: of modules, tests/test_dag.py reads the imports (a checkpoint's key reads every module's source)."""
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    nodes = {node.name: node for node in declared_nodes(load_pipeline(), params)}
    allowed_anywhere = re.compile(
        r"params\.yaml$|dvc\.lock$|\.git/|.*\.pyc$|\.checkpoints/|\.timings/|mlflow|mlartifacts|\.mlflow|\.dvc/|artifacts/data/\.spool-"
        r"|artifacts/runs/"  # the ids of runs in MLflow, which decide nothing but links there
        r"|(.+/)?\.[^/]+\.tmp$"  # what is being written, until it has its name
        r"|conf/engine/"  # what of it decides a result stands in artifacts/engine.json and artifacts/samplers/
    )
    hydra_lists = re.compile(r"conf/\w+\.yaml$")
    found = []
    for line in sorted(set(project.trace.read_text().splitlines())):
        name, path = line.split("\t")
        node = nodes.get(name)
        if node is None or name == "check" or allowed_anywhere.match(path) or hydra_lists.match(path):
            continue
        covered = any(path == item or path.startswith(f"{item}/") for item in [*node.deps, *node.outs])
        if not covered and path.split("/")[0] in ("artifacts", "metrics", "conf", "data"):
            found.append(f"{name} opened {path}")
    assert found == []
    assert len(project.trace.read_text().splitlines()) > 200


@pytest.mark.parametrize("node", ["sft", "sample@round1", "label@round1", "align@dpo", "rl@ppo", "evaluate@ppo", "report"])
def test_running_again_gives_the_same_bytes(project: Project, node: str) -> None:
    before = project.outputs()
    project.run("dvc", "repro", "-f", "-s", node, MLFLOW_TRACKING_URI="off")
    assert project.outputs() == before


def test_a_killed_stage_resumes_and_ends_in_the_same_bytes(edited: Project) -> None:
    edited.edit("params.yaml", "max_steps: 20", "max_steps: 61\n  evaluate_every: 15\n  checkpoint_every: 15")
    command = ["dvc", "repro", "-f", "-s", "sft"]
    edited.run(*command, MLFLOW_TRACKING_URI="off")
    undisturbed = edited.outputs()["artifacts/policy/sft"]
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.sft"], cwd=edited.folder, env={**edited.environment, "DVC_STAGE": "sft", "MLFLOW_TRACKING_URI": "off"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((edited.folder / ".checkpoints").glob("sft-*/checkpoint-15/trainer_state.json")):
        assert process.poll() is None, "the stage ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    edited.run(*command, MLFLOW_TRACKING_URI="off")
    assert edited.outputs()["artifacts/policy/sft"] == undisturbed
    assert not list((edited.folder / ".checkpoints").glob("sft-*"))


def test_mlflow_has_a_finished_run_of_a_node_with_its_values_and_inputs(project: Project) -> None:
    from mlflow import MlflowClient

    project.run("dvc", "repro", "-f", "-s", "align@dpo")
    (run,) = [
        run for run in MlflowClient(f"sqlite:///{project.folder}/mlflow.db").search_runs(["1"], "attributes.run_name = 'align@dpo'")
        if run.info.run_id == json.loads((project.folder / "artifacts/runs/align/dpo.json").read_text())["run_id"]
    ]  # fmt: skip
    assert run.info.status == "FINISHED"
    assert run.data.params["align.beta"] == "0.1"
    assert {item.dataset.name for item in run.inputs.dataset_inputs} >= {"artifacts.policy.dpo1", "artifacts.label.round2"}


def test_the_report_is_one_page_without_network(project: Project) -> None:
    page = (project.folder / "artifacts/report/report.html").read_text()
    assert not re.search(r"(src|href)=[\"']?https?://", page)
    for policy in ("sft", "rs", "dpo", "ppo"):
        assert policy in page
