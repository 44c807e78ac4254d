"""A stage that trains in two processes: the same model as in one, one MLflow run, outputs once; a killed process costs its last steps only."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Any

import psutil
import pytest
import torch
from completions_server import CompletionsServer
from judging_server import serving
from launched_project import NODES, Project
from mlflow import MlflowClient
from omegaconf import OmegaConf
from safetensors.torch import load_file

from plumbline.pipeline.engine import Server, served_name
from plumbline.pipeline.resuming import SEAL

pytestmark = pytest.mark.slow

TOLERANCE = 2e-5
"""How far weights may lie apart. Gradients are sums over rows in another order, and AdamW's first steps turn the last digits of a gradient near zero
into a part of a step of `learning_rate`; a step that is wrong moves weights by all of that, which is 1e-3."""

ALONE = {
    "kto": ("launcher=local", "align.micro_batch_size=8"),  # z is that of as many rows as pass together
}
"""What one process needs to train the same model, besides `launcher=local`."""


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


def test_two_processes_train_on_the_completions_of_a_server_the_model_that_one_trains(project: Project) -> None:
    base = project.folder / "artifacts/policy/base"
    seed = int(OmegaConf.load(project.folder / "params.yaml").seed)
    served = ("engine=vllm", "rl.sampler=server", "rl.lora_rank=2", "rl.learning_rate=1e-2")
    with serving(CompletionsServer(folder=base, model=served_name(Server(), base), of_seed=seed, rows=32)) as running:
        one = project.run("grpo", *served, "launcher=local", ENGINE_BASE_URL=running.url)
        two = project.run("grpo", *served, "launcher=ddp_cpu", ENGINE_BASE_URL=running.url)
        assert running.calls == 2 * running.rows
        assert not running.adapters
    start = load_file(base / "model.safetensors")
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=TOLERANCE, rtol=0)
    assert max(float((one[key] - start[key]).abs().max()) for key in one) > 50 * TOLERANCE


LONG = ("sft.max_steps=120", "sft.checkpoint_every=20", "sft.evaluate_every=60")


def variable(process: psutil.Process, name: str) -> str | None:
    """An environment variable of a process; None also if that has ended."""
    try:
        return process.environ().get(name)
    except psutil.Error:
        return None


def kill_after_checkpoint(process: subprocess.Popen[str], project: Project, rank: int, beyond: int) -> tuple[int, str]:
    """Kills a process of a launched `sft` after a checkpoint of a step after `beyond`; returns the last step saved and the stage's message."""
    checkpoints: list[int] = []
    while not checkpoints or checkpoints[-1] <= beyond:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
        sealed = project.folder.glob(f".checkpoints/sft-*/checkpoint-*/{SEAL}")
        checkpoints = sorted(int(file.parent.name.rpartition("-")[2]) for file in sealed)
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


@pytest.fixture
def two_machines(project: Project) -> dict[str, Any]:
    """Overrides and environment of two launchers, both of which run here, started by a prefix as Slurm's srun would start them."""
    prefix = project.folder / "twice.sh"
    listens = "(echo > /dev/tcp/$MASTER_ADDR/$MASTER_PORT) 2> /dev/null"  # machine 0 looks for a free port, which is here also that of machine 1
    prefix.write_text(
        f'SLURM_NODEID=0 "$@" & first=$!\nuntil {listens}; do sleep 0.2; done\nSLURM_NODEID=1 "$@" && wait $first\n'
    )
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    overrides = ("launcher.machines=2", f"launcher.prefix=[bash,{prefix}]", "launcher=ddp_cpu")
    return {"overrides": overrides, "environment": {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}}


def test_launchers_of_two_machines_train_the_model_that_one_process_trains(
    project: Project, two_machines: dict[str, Any]
) -> None:
    two = project.run("sft", *two_machines["overrides"], **two_machines["environment"])
    one = project.run("sft", "launcher=local")
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=TOLERANCE, rtol=0)


def test_a_killed_stage_takes_the_launchers_of_its_prefix_and_their_processes_along(
    project: Project, two_machines: dict[str, Any]
) -> None:
    """The shell between them ends first; each launcher then notices that it is alone."""
    stage = project.start("sft", *two_machines["overrides"], **two_machines["environment"])
    ranks: set[str | None] = set()
    while ranks < {"0", "1"}:
        assert stage.poll() is None, stage.communicate()
        time.sleep(0.05)
        launched = psutil.Process(stage.pid).children(recursive=True)
        ranks = {variable(one, "RANK") for one in launched} - {None}
    stage.kill()
    stage.communicate()
    assert psutil.wait_procs(launched, timeout=60)[1] == []


def test_what_all_processes_object_to_is_said_once(project: Project) -> None:
    (project.folder / "artifacts/data/sft/validation.jsonl").rename(project.folder / "kept.jsonl")
    process = project.start("sft", "launcher=ddp_cpu")
    _, errors = process.communicate()
    (project.folder / "kept.jsonl").rename(project.folder / "artifacts/data/sft/validation.jsonl")
    assert process.returncode == 1
    assert errors.count("sft: ") == 1, errors
