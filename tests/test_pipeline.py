"""What surrounds every stage: files, checkpoints, outputs, tracking."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from plumbline.pipeline.checkpoints import AlreadyRunning, checkpoint_folder
from plumbline.pipeline.digests import input_digest
from plumbline.pipeline.execution import executing
from plumbline.pipeline.records import read_json, read_jsonl, replacing, write_json, write_jsonl
from plumbline.pipeline.tracking import TrackingUnavailable, flatten, tracked
from tests.conftest import ROOT


@dataclass
class Config:
    seed: int = 17
    threads: int = 1


def test_jsonl_round_trips_every_script(tmp_path: Path) -> None:
    rows = [{"prompt": "안녕 \u2028 ", "n": 1}, {"prompt": "a\nb", "n": None}]
    assert write_jsonl(tmp_path / "rows.jsonl", rows) == 2
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


def test_a_broken_line_is_named_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2"):
        read_jsonl(tmp_path / "rows.jsonl")


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write("half")
        raise RuntimeError
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "value.json", {"loss": float("nan")})


def test_checkpoints_survive_a_crash_and_not_a_success(project: Path) -> None:
    with pytest.raises(RuntimeError), checkpoint_folder("align@dpo", "k") as folder:
        (folder / "state").write_text("1")
        raise RuntimeError
    with checkpoint_folder("align@dpo", "k") as folder:
        assert (folder / "state").read_text() == "1"
    assert list((project / ".checkpoints").iterdir()) == []


def test_checkpoints_outlive_what_fails_after_training(project: Path) -> None:
    with pytest.raises(RuntimeError), executing("sft", None, Config(), []) as work:
        with work.checkpoints() as folder:
            (folder / "state").write_text("1")
        raise RuntimeError("the tracking server is gone")
    assert (folder / "state").exists()
    with executing("sft", None, Config(), []) as work, work.checkpoints() as again:
        assert again == folder
    assert list((project / ".checkpoints").iterdir()) == []


def test_two_processes_cannot_compute_the_same_thing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import time\nfrom plumbline.pipeline.checkpoints import checkpoint_folder\n"
        "with checkpoint_folder('sft', 'k'):\n    print('locked', flush=True)\n    time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "locked"
        with pytest.raises(AlreadyRunning, match="already running"), checkpoint_folder("sft", "k"):
            pass
        monkeypatch.setenv("DVC_EXP_NAME", "worker")  # another worker of a queue waits
        threading.Timer(0.5, other.kill).start()
        began = time.monotonic()
        with checkpoint_folder("sft", "k"):
            assert time.monotonic() - began > 0.4
    finally:
        other.kill()
        other.wait()
    with checkpoint_folder("sft", "k"):  # the dead process' lock is gone
        pass


def test_a_run_by_hand_writes_under_scratch_and_one_by_dvc_in_place(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with executing("sft", None, Config(), []) as work:
        work.output("metrics/sft/sft.json").write_text("1")
    assert (project / "scratch/sft/metrics/sft/sft.json").exists()
    monkeypatch.setenv("DVC_STAGE", "sft")
    with executing("sft", None, Config(), []) as work:
        work.output("metrics/sft/sft.json").write_text("1")
    assert (project / "metrics/sft/sft.json").exists()
    assert read_json(project / "artifacts/runs/sft/sft.json") == {"run_id": None}


def test_an_output_starts_empty(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "sft")
    (project / "artifacts/policy/sft").mkdir(parents=True)
    (project / "artifacts/policy/sft/stale.safetensors").write_text("x")
    with executing("sft", None, Config(), []) as work:
        assert not work.output("artifacts/policy/sft").exists()


def test_a_digest_follows_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a").write_text("1")
    first = input_digest(tmp_path / "folder")
    (tmp_path / "folder/a").write_text("2")
    second = input_digest(tmp_path / "folder")
    (tmp_path / "folder/a").rename(tmp_path / "folder/b")
    assert len({first, second, input_digest(tmp_path / "folder")}) == 3


def test_nested_parameters_become_dotted_names() -> None:
    assert flatten({"align": {"beta": 0.1}, "seed": 1}) == {"align.beta": 0.1, "seed": 1}


def test_a_tracking_server_that_is_down_stops_before_work(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    with pytest.raises(TrackingUnavailable, match="make ui") as error, executing("sft", None, Config(), []):
        pytest.fail("work began")
    assert "secret" not in str(error.value)


def test_a_stage_leaves_a_run_with_parameters_inputs_metrics_and_tables(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    (project / "artifacts").mkdir()
    (project / "artifacts/in.jsonl").write_text("{}\n")
    with executing("align", "dpo", Config(), ["artifacts/in.jsonl"]) as work:
        for step in range(1500):  # more than one batch
            work.run.log_metrics({"loss": 1 / (step + 1)}, step=step)
        work.run.log_table("samples", [{"prompt": "a", "completion": "안녕"}])
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    run = client.search_runs(["1"])[0]
    assert run.info.run_name == "align@dpo"
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "17"
    assert run.data.metrics["system/stage_seconds"] > 0
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 1500
    assert run.inputs.dataset_inputs[0].dataset.digest == input_digest("artifacts/in.jsonl")
    assert json.loads((project / "scratch/align/dpo/artifacts/runs/align/dpo.json").read_text())["run_id"] == run.info.run_id
    assert [item.path for item in client.list_artifacts(run.info.run_id, "tables")] == ["tables/samples.json"]


def test_a_killed_stages_run_is_closed_by_the_next_attempt(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{project}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    code = (
        "import time\nfrom plumbline.pipeline.tracking import tracked\n"
        "with tracked('sft', params={}, tags={}, inputs=[]):\n    print('running', flush=True)\n    time.sleep(60)\n"
    )
    victim = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert victim.stdout is not None
    assert victim.stdout.readline().strip() == "running"
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    with tracked("sft", params={}, tags={}, inputs=[]):
        pass
    statuses = sorted(run.info.status for run in MlflowClient(uri).search_runs(["1"]))
    assert statuses == ["FINISHED", "KILLED"]


@pytest.mark.slow
def test_six_processes_may_create_the_store_at_once(project: Path) -> None:
    from mlflow import MlflowClient

    code = "from plumbline.pipeline.tracking import tracked\nwith tracked('sft', params={}, tags={}, inputs=[]):\n    pass\n"
    uri = f"sqlite:///{project}/mlflow.db"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri}
    started = time.perf_counter()
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(6)]
    assert [process.wait() for process in processes] == [0] * 6, time.perf_counter() - started
    assert [run.info.status for run in MlflowClient(uri).search_runs(["1"])] == ["FINISHED"] * 6
