"""A stage that trains in two processes: the same model as in one, one MLflow run, outputs once; a killed process costs its last steps only."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from aligning import pairs, write_inputs
from mlflow import MlflowClient
from omegaconf import OmegaConf
from safetensors.torch import load_file

from plumbline.pipeline.records import write_jsonl
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

TOLERANCE = 2e-5
"""How far weights may lie apart. Gradients are sums over rows in another order, and AdamW's first steps turn the last digits of a gradient near zero
into a part of a step of `learning_rate`; a step that is wrong moves weights by all of that, which is 1e-3."""

SHORT: dict[str, Any] = {
    "batch_size": 8, "micro_batch_size": 2, "max_steps": 4, "checkpoint_every": 2, "learning_rate": 1e-3, "max_grad_norm": 100.0
}  # fmt: skip
OFFLINE = SHORT | {"evaluate_every": 4, "init": "base"}
ONLINE = {"init": "base", "reward": "digits", "rollout_batch_size": 8, "max_new_tokens": 6, "min_reward_accuracy": 0.0}

NODES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", SHORT | {"evaluate_every": 4}),
    "rm": ("reward_model", OFFLINE | {"signal": "label/round1"}),
    "dpo": ("align", OFFLINE | {"method": "dpo", "signal": "label/round1"}),
    "kto": ("align", OFFLINE | {"method": "kto", "signal": "label/round1", "micro_batch_size": 4}),
    "orpo": ("align", OFFLINE | {"method": "orpo", "signal": "label/round1", "lora_rank": 2}),
    "grpo": ("rl", SHORT | ONLINE | {"method": "grpo", "num_generations": 4}),
    "ppo": ("rl", ONLINE | {"method": "ppo", "episodes": 16, "batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-3, "checkpoint_every": 1}),
}  # fmt: skip
"""Each method's stage and values: every step has the same rows in one process and in two, for a micro-batch is one wherever it is computed."""

ALONE = {
    "kto": ("launcher=local", "align.micro_batch_size=8"),  # z is that of as many rows as pass together
}
"""What one process needs to train the same model, besides `launcher=local`."""


class Project:
    """A folder with the inputs of every stage that trains, in which stages run as DVC runs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_inputs(folder / "artifacts")
        (folder / "artifacts/policy/sft").rename(folder / "artifacts/policy/base")
        for split, count in (("train", 64), ("validation", 8)):
            write_jsonl(folder / f"artifacts/label/round1/{split}.jsonl", pairs(count))
            demonstrations = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs(count)]
            write_jsonl(folder / f"artifacts/data/sft/{split}.jsonl", demonstrations)
        recipe: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/recipe/default.yaml"))
        sections: dict[str, Any] = {"align": {}, "rl": {}, "reward_model": {}}
        for name, (stage, values) in NODES.items():
            sections.get(stage, {})[name] = values
        OmegaConf.save(recipe | sections | {"threads": 1, "sft": NODES["sft"][1]}, folder / "params.yaml")

    def start(self, name: str, *overrides: str, **environment: str) -> subprocess.Popen[str]:
        stage = NODES[name][0]
        entry = [] if stage == name else [f"{stage}={name}"]
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_STAGE": f"{stage}@{name}" if entry else stage, **environment}
        return subprocess.Popen(
            [sys.executable, "-m", f"stages.{stage}", *entry, *overrides],
            cwd=self.folder, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, name: str, *overrides: str, **environment: str) -> Mapping[str, torch.Tensor]:
        """Runs a node and returns the weights that it wrote."""
        process = self.start(name, *overrides, **environment)
        out, errors = process.communicate()
        assert process.returncode == 0, f"{out[-2000:]}\n{errors[-4000:]}"
        return load_file(self.made(name) / "model.safetensors")

    def made(self, name: str) -> Path:
        return self.folder / "artifacts" / ("reward" if NODES[name][0] == "reward_model" else "policy") / name


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    made = Project(tmp_path_factory.mktemp("launched"))
    yield made
    here = [one for one in psutil.process_iter(["cmdline", "cwd"]) if one.info["cwd"] == str(made.folder)]
    for process in here:
        process.kill()


@pytest.fixture(scope="module")
def alone(project: Project) -> dict[str, Mapping[str, torch.Tensor]]:
    """The models that one process trains, one after the other, so that all but the first come from the warm process."""
    return {name: project.run(name, *ALONE.get(name, ("launcher=local",)), WARM_PROCESS="on") for name in NODES}


@pytest.mark.parametrize("name", [*NODES])
def test_two_processes_train_the_model_that_one_trains(
    name: str, project: Project, alone: dict[str, Mapping[str, torch.Tensor]]
) -> None:
    start = load_file(project.folder / "artifacts/policy/base/model.safetensors")
    one, two = alone[name], project.run(name, "launcher=ddp_cpu")
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=TOLERANCE, rtol=0, msg=lambda message, key=key: f"{key}: {message}")
    moved = max(float((one[key] - start[key]).abs().max()) for key in one.keys() & start.keys())
    assert moved > 50 * TOLERANCE  # or agreement would say nothing


LONG = ("sft.max_steps=120", "sft.checkpoint_every=20", "sft.evaluate_every=60")


def kill_after_checkpoint(process: subprocess.Popen[str], project: Project, rank: int, beyond: int) -> tuple[int, str]:
    """Kills a process of a launched `sft` after a checkpoint of a step after `beyond`; returns the last step saved and the stage's message."""
    checkpoints: list[int] = []
    while not checkpoints or checkpoints[-1] <= beyond:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
        states = project.folder.glob(".checkpoints/sft-*/checkpoint-*/trainer_state.json")
        checkpoints = sorted(int(state.parent.name.rpartition("-")[2]) for state in states)
    launched = psutil.Process(process.pid).children(recursive=True)
    [victim] = [one for one in launched if one.environ().get("RANK") == str(rank)]
    victim.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert not [one for one in launched if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    return checkpoints[-1], errors.splitlines()[-1]


def test_a_killed_process_ends_the_stage_in_a_sentence_and_the_next_run_resumes_to_the_same_bytes(project: Project) -> None:
    tracking = {"MLFLOW_TRACKING_URI": f"sqlite:///{project.folder}/mlflow.db"}
    for left in ("policy", "figures", "curves", "runs"):
        for file in [item for item in (project.folder / f"artifacts/{left}").glob("sft*/*") if item.is_file()]:
            file.unlink()
    process = project.start("sft", *LONG, "launcher=ddp_cpu", **tracking)
    step, message = kill_after_checkpoint(process, project, rank=1, beyond=0)
    assert message.startswith("sft: expected all processes to finish, found process 1 ended by SIGKILL"), message
    assert not [*project.folder.glob("artifacts/*/sft/sft.json"), *project.folder.glob("artifacts/policy/sft/*.safetensors")]
    process = project.start("sft", *LONG, "launcher=ddp_cpu", **tracking)
    further, _ = kill_after_checkpoint(process, project, rank=0, beyond=step)
    assert further > step
    resumed = project.run("sft", *LONG, "launcher=ddp_cpu", **tracking)
    assert not list(project.folder.glob(".checkpoints/sft-*/checkpoint-*"))

    (project.folder / ".timings/sft.jsonl").unlink()
    undisturbed = project.run("sft", *LONG, "launcher=ddp_cpu", **tracking)
    assert all(torch.equal(resumed[key], undisturbed[key]) for key in undisturbed)
    assert len((project.folder / ".timings/sft.jsonl").read_text().splitlines()) == 1  # one process wrote
    runs = MlflowClient(tracking["MLFLOW_TRACKING_URI"]).search_runs(["1"], order_by=["attributes.start_time"])
    assert len(runs) == 4  # one for each of four runs of two processes
    assert [run.info.status for run in runs][2:] == ["FINISHED", "FINISHED"]
    assert "RUNNING" not in [run.info.status for run in runs]
    assert json.loads((project.folder / "artifacts/runs/sft/sft.json").read_text()) == {"run_id": runs[-1].info.run_id}


def test_launchers_of_two_machines_train_the_model_that_one_process_trains(project: Project) -> None:
    """Both launchers run here, started by a prefix as Slurm's srun would start them."""
    prefix = project.folder / "twice.sh"
    listens = "(echo > /dev/tcp/$MASTER_ADDR/$MASTER_PORT) 2> /dev/null"  # machine 0 looks for a free port, which is here also that of machine 1
    prefix.write_text(
        f'SLURM_NODEID=0 "$@" & first=$!\nuntil {listens}; do sleep 0.2; done\nSLURM_NODEID=1 "$@" && wait $first\n'
    )
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    machines = ("launcher.machines=2", f"launcher.prefix=[bash,{prefix}]")
    two = project.run("sft", *machines, "launcher=ddp_cpu", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    one = project.run("sft", "launcher=local")
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=TOLERANCE, rtol=0)


def test_what_all_processes_object_to_is_said_once(project: Project) -> None:
    (project.folder / "artifacts/data/sft/validation.jsonl").rename(project.folder / "kept.jsonl")
    process = project.start("sft", "launcher=ddp_cpu")
    _, errors = process.communicate()
    (project.folder / "kept.jsonl").rename(project.folder / "artifacts/data/sft/validation.jsonl")
    assert process.returncode == 1
    assert errors.count("sft: ") == 1, errors
