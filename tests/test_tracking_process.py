"""The stages of a repro share one process that has imported MLflow: each call sees its own stage's world, and a fault of it ends no stage."""

# ruff: noqa: F401, F811  fixtures of another module

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from plumbline.pipeline import mlflow_process
from tests.conftest import ROOT
from tests.mlflow_stores import empty_store, runs, store, unsent


def stage(body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A stage in a process of its own, in which `run` is its run."""
    lines = [
        "import os, sys",
        "from plumbline.pipeline.tracking import tracked",
        "with tracked('sft', params={}, tags={}, inputs=[]) as run:",
    ]
    code = "\n".join([*lines, *(f"    {line}" for line in body.splitlines()), "assert 'mlflow' not in sys.modules"])
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=variables)


NAME = "plumbline.pipeline.mlflow_process"
KILLING = f"""import psutil
for one in psutil.process_iter(["cmdline", "cwd"]):
    if "{NAME}" in (one.info["cmdline"] or ()) and one.info["cwd"] == os.getcwd():
        one.kill()
"""


def processes() -> set[int]:
    """The ids of the process that this folder's stages share, and of its forks."""
    running = psutil.process_iter(["cmdline", "cwd"])
    return {one.pid for one in running if NAME in (one.info["cmdline"] or ()) and one.info["cwd"] == os.getcwd()}


def test_stages_share_a_process_and_import_no_mlflow_themselves(store: Path, project: Path) -> None:
    first = stage("run.log_metrics({'loss': 1.0}); run.log_table('answers', [{'a': 1}])")
    shared = processes()
    second = stage("run.log_metrics({'loss': 2.0})")
    assert (first.stderr, second.stderr) == ("", "")
    assert shared & processes()
    assert sorted((run.info.status, run.data.metrics["loss"]) for run in runs()) == [("FINISHED", 1.0), ("FINISHED", 2.0)]


def test_each_stage_is_logged_where_its_own_environment_says(store: Path, project: Path) -> None:
    assert stage("pass").returncode == 0
    refused = stage("print('work began')", MLFLOW_TRACKING_URI="htp://127.0.0.1:1")
    assert "TrackingUnavailable: MLflow at htp://127.0.0.1:1 cannot be used" in refused.stderr
    assert refused.stdout == ""
    store.unlink()  # as somebody does who wants to start afresh
    assert stage("pass").stderr == ""
    assert [run.info.status for run in runs()] == ["FINISHED"]


def test_a_stage_goes_on_when_the_process_is_killed_and_the_next_sends_what_it_missed(store: Path, project: Path) -> None:
    body = f"{KILLING}run.log_metrics({{'loss': 1.0}})\nprint('went on')"
    done = stage(body)
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert "MLflow failed: the process that calls it has ended" in done.stderr
    assert len(unsent(project)) == 1
    assert stage("pass").stderr == ""
    assert [run.info.status for run in runs()] == ["FINISHED"] * 2
    assert unsent(project) == []


def test_what_cannot_be_handed_to_the_process_is_left_out(store: Path, project: Path) -> None:
    done = stage("run.log_table('answers', [{'a': lambda: 1}]); run.log_metrics({'loss': 1.0})")
    assert "MLflow refused table: Can't pickle" in done.stderr
    assert (done.returncode, runs()[0].data.metrics) == (0, {"loss": 1.0})


def test_a_stage_that_cannot_have_the_process_imports_mlflow_itself(store: Path, project: Path) -> None:
    (project / mlflow_process.ADDRESS).mkdir()
    assert "AssertionError" in stage("run.log_metrics({'loss': 1.0})").stderr  # that MLflow was not imported
    assert runs()[0].data.metrics == {"loss": 1.0}


def test_the_process_goes_when_no_stage_is_left(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_process, "IDLE_SECONDS", 0.1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(mlflow_process.ADDRESS)
    listener.listen()
    code = (
        "import os, time; from plumbline.pipeline.mlflow_process import ADDRESS; from multiprocessing.connection import Client\n"
        "connection = Client(ADDRESS); connection.send((dict(os.environ), os.getcwd())); connection.recv()\n"
        "time.sleep(1); connection.send((os.getcwd, ())); print(connection.recv())"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    while not mlflow_process.wait([listener], 0.1):
        pass
    mlflow_process.serve(listener)
    assert client.communicate()[0] == f"({str(project)!r}, None)\n"
    assert not (project / mlflow_process.ADDRESS).exists()
