"""Once a stage's work has begun, nothing that MLflow does ends it: what could not be sent is kept and sent later, or said."""

# ruff: noqa: F401, F811  fixtures of another module

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from plumbline.pipeline.execution import executing
from plumbline.pipeline.tracking import tracked
from tests.conftest import ROOT
from tests.mlflow_stores import (
    Config,
    Server,
    empty_store,
    forget_registry,
    no_registry,
    running_server,
    said,
    server,
    store,
    unsent,
    work,
)


@pytest.mark.parametrize("answer", [500, 403, 404, 200, "hang"])
def test_a_server_that_fails_after_work_began_costs_one_line_and_what_it_missed_is_sent_by_the_next_stage(
    server: Server, project: Path, answer: int | str, said: Any
) -> None:
    began = time.monotonic()
    with executing("align", "dpo", Config(), []) as stage:
        stage.run.log_metrics({"early": 1.0})
        server.answer = answer
        for step in range(2500):
            stage.run.log_metrics({"loss": float(step)}, step=step)
        stage.run.log_table("answers", [{"prompt": "안녕", "reward": 0.5}])
        stage.output("metrics/align/dpo.json").write_text("1")
    assert time.monotonic() - began < 10
    assert (project / "scratch/align/dpo/metrics/align/dpo.json").exists()
    run_id = json.loads((project / "scratch/align/dpo/artifacts/runs/align/dpo.json").read_text())["run_id"]
    assert [message for message in said.messages if "tried again" in message] == said.messages[:1]
    assert "is kept in" in said.messages[1]
    assert len(said.messages) == 2
    server.answer = None
    work()
    client = MlflowClient(server.address)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["early"] == 1.0
    assert [point.value for point in client.get_metric_history(run_id, "train/loss")] == [*map(float, range(2500))]
    assert [item.path for item in client.list_artifacts(run_id, "tables")] == ["tables/answers.json"]
    assert unsent(project) == []


def test_a_server_that_comes_back_in_the_same_stage_misses_nothing_and_gets_nothing_twice(
    server: Server, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # a busy machine is not a server that fails
    with tracked("sft", params={"a": 1}, tags={}, inputs=[]) as run:
        server.answer = 503
        for step in range(1000):
            run.log_metrics({"loss": float(step)}, step=step)
        server.answer = None
        run.log_metrics({"late": 1.0})
    client = MlflowClient(server.address)
    assert client.get_run(run.id).info.status == "FINISHED"
    assert len(client.get_metric_history(run.id, "train/loss")) == 1000
    assert unsent(project) == []


def test_a_failing_stage_fails_with_its_own_error_even_if_mlflow_fails_with_it(server: Server) -> None:
    for error, status in ((ZeroDivisionError("of the stage"), "FAILED"), (KeyboardInterrupt(), "KILLED")):
        with pytest.raises(type(error)) as raised, tracked("sft", params={}, tags={}, inputs=[]) as run:
            server.answer = 500
            raise error
        assert raised.value is error
        server.answer = None
        work()
        assert MlflowClient(server.address).get_run(run.id).info.status == status


def test_ctrl_c_while_a_server_hangs_ends_the_stage(server: Server, project: Path) -> None:
    code = (
        # a suite in the background of a shell starts with Ctrl-C ignored
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from plumbline.pipeline.tracking import tracked\n"
        "with tracked('sft', params={}, tags={}, inputs=[]) as run:\n"
        "    print('running', flush=True); input()\n"
        "    run.log_table('t', [{'a': 1}])\n    print('went on')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_TIMEOUT": "4"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    server.hangs.clear()
    server.answer = "hang"
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert server.hangs.wait(60)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors.splitlines()[-1]
    assert "went on" not in output
    assert len(unsent(project)) == 1


# --- a local store that is spoilt in mid-run ---------------------------------------------------------------------------


def test_a_database_that_is_moved_in_mid_run_gets_what_it_missed_when_it_is_back(store: Path, project: Path) -> None:
    with tracked("sft", params={}, tags={}, inputs=[]) as run:
        store.rename(project / "elsewhere.db")
        run.log_metrics({"loss": 1.0})
    (project / "elsewhere.db").rename(store)
    assert len(unsent(project)) == 1
    work()
    first = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_run(run.id)
    assert (first.info.status, first.data.metrics) == ("FINISHED", {"loss": 1.0})


def test_a_store_of_artifacts_that_fails_holds_up_nothing_but_tables(store: Path, project: Path, said: Any) -> None:
    (project / "mlartifacts").write_text("a file where the folder should be")
    with tracked("sft", params={}, tags={}, inputs=[]) as run:
        run.log_table("answers", [{"a": 1}])
        run.log_metrics({"loss": 1.0})
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    first = client.get_run(run.id)
    assert (first.info.status, first.data.metrics) == ("FINISHED", {"loss": 1.0})
    assert len(unsent(project)) == 1
    (project / "mlartifacts").unlink()
    work()
    assert [item.path for item in client.list_artifacts(run.id, "tables")] == ["tables/answers.json"]
    assert unsent(project) == []


def test_a_registry_that_fails_holds_up_nothing_but_what_is_registered(
    store: Path, project: Path, no_registry: None, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = project / "artifacts/policy/dpo"
    policy.mkdir(parents=True)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracked("align@dpo", params={}, tags={}, inputs=[]) as run:
        run.log_model("dpo", "policy", policy, "A card.")
        run.log_metrics({"loss": 1.0})
    client = MlflowClient(f"sqlite:///{store}")
    found = client.get_run(run.id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"loss": 1.0})
    assert "tried again" in said.messages[0]
    (kept,) = unsent(project)
    assert [[*json.loads(line)] for line in kept.read_text().splitlines()] == [["version"]]
    forget_registry()
    work()
    assert [version.run_id for version in MlflowClient(f"sqlite:///{store}").search_model_versions()] == [run.id]
    assert unsent(project) == []


@pytest.mark.parametrize("deleted", ["run", "experiment"])
def test_a_run_or_experiment_that_is_deleted_in_mid_run_is_said_and_forgotten(
    store: Path, project: Path, deleted: str, said: Any
) -> None:
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    with tracked("sft", params={}, tags={}, inputs=[]) as run:
        if deleted == "run":
            client.delete_run(run.id)
        else:
            client.delete_experiment("1")
        run.log_metrics({"loss": 1.0})
    assert "MLflow refused metrics" in said.messages[0]
    assert "must be in the 'active' state" in said.messages[0]
    assert unsent(project) == []


def test_a_disk_that_is_full_does_not_end_a_stage(store: Path, project: Path) -> None:
    code = (
        "import resource, signal\nfrom plumbline.pipeline.tracking import tracked\n"
        "with tracked('sft', params={}, tags={}, inputs=[]) as run:\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "    run.log_metrics({f'loss{n}': 1.0 for n in range(1000)})\n    run.log_table('t', [{'a': 'b' * 1000}])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.strip().splitlines()
    assert "The stage goes on" in lines[0]
    assert "could not be sent" in lines[-1]
    assert "is lost" in lines[-1]
    assert len(lines) <= 3


def test_what_cannot_be_read_of_an_earlier_stage_is_said_and_stops_nothing(store: Path, project: Path, said: Any) -> None:
    store.rename(project / "elsewhere.db")
    (project / "elsewhere.db").rename(store)
    with tracked("sft", params={}, tags={}, inputs=[]) as run:
        store.rename(project / "elsewhere.db")
        run.log_metrics({"loss": 1.0})
    (project / "elsewhere.db").rename(store)
    (file,) = unsent(project)
    file.write_text('{"metrics": [["loss"')
    said.clear()
    work()
    assert f"{file}:1: expected a JSON object" in said.text
    assert len(said.messages) == 1


@pytest.mark.slow
def test_a_database_that_another_program_locks_in_mid_run_does_not_end_the_stage(store: Path, project: Path) -> None:
    other = sqlite3.connect(store)
    with tracked("sft", params={}, tags={}, inputs=[]) as run:
        other.execute("BEGIN EXCLUSIVE")
        run.log_metrics({"loss": 1.0})
    other.close()
    assert len(unsent(project)) == 1
    work()
    assert MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_run(run.id).info.status == "FINISHED"
