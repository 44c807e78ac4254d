"""MLflow is a view: names and values are made to fit, and what cannot be used stops a stage before its work, with the reason and a remedy."""

# ruff: noqa: F401, F811  fixtures of another module

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from plumbline.pipeline.execution import executing
from plumbline.pipeline.outbox import SafeNames
from plumbline.pipeline.provenance import Input
from plumbline.pipeline.tracking import TrackingUnavailable, tracked
from tests.conftest import ROOT
from tests.mlflow_stores import Config, Server, empty_store, running_server, runs, said, server, store, work

# --- names and values --------------------------------------------------------------------------------------------------


NAMES = [
    "a&b",
    "a?b",
    "a b",
    "a@b",
    "a_b",
    "a//b",
    "a/b",
    "./a",
    "../a",
    "/a",
    "a/",
    ".",
    "..",
    "",
    "x" * 251,
    "x" * 252,
    "질문&",
    "a\n",
    "\udcff",
]


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1]])
def test_names_that_mlflow_does_not_take_are_made_safe_and_stay_distinct(store: Path, names: list[str], said: Any) -> None:
    values = {name: float(number) for number, name in enumerate(names)}
    work(values, params={"rules": values})
    (run,) = runs()
    assert sorted(run.data.metrics.values()) == sorted(values.values())
    assert sorted(map(float, run.data.params.values())) == sorted(values.values())
    assert said.messages == []


def test_a_name_that_mlflow_takes_is_kept() -> None:
    safe = SafeNames()
    names = ["reward/rule 1", "align.beta", "질문:답", "a-b_c", "x" * 250]
    assert [safe(name) for name in names] == names
    assert safe("align@dpo.gold", "align_dpo.gold") == "align_dpo.gold"
    assert safe("align_dpo.gold") == "align_dpo.gold-" + safe("align_dpo.gold")[-8:]


@pytest.mark.parametrize("path", ["a/" * 300 + "b", 'a "quoted" name.jsonl', "자료/가나 다.jsonl", "a/\udcff", "a\\b"])
def test_any_path_of_an_input_is_logged(store: Path, path: str, said: Any) -> None:
    work(inputs=[Input(path, "1"), Input(path.replace("/", "."), "1")])
    sources = {json.loads(item.dataset.source)["uri"] for item in runs()[0].inputs.dataset_inputs}
    assert sources == {path, path.replace("/", ".")}
    assert said.messages == []


def test_values_that_mlflow_has_no_room_for_are_logged_as_far_as_they_go(store: Path, said: Any) -> None:
    figures = {"nan": float("nan"), "inf": float("inf"), "minus": float("-inf")}
    work(figures, params={"long": "y" * 7000, "odd": "\udcff", "empty": "", "none": None})
    (run,) = runs()
    assert run.data.params == {"long": "y" * 5999 + "…", "odd": "\\udcff", "empty": "", "none": "None"}
    assert str(run.data.metrics["nan"]) == "nan"
    assert run.data.metrics["inf"] > 1e308
    assert run.data.metrics["minus"] < -1e308
    assert said.messages == []


def test_a_run_may_have_more_tables_than_its_tag_can_list(store: Path, said: Any) -> None:
    with tracked("rl@ppo", params={}, tags={}, inputs=[]) as run:
        for step in range(140):
            run.log_table(f"rollouts/step_{step:05d}", [{"prompt": "안녕", "reward": float("nan")}])
    (finished,) = runs()
    assert len(json.loads(finished.data.tags["mlflow.loggedArtifacts"])) == 100
    assert len(MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).list_artifacts(finished.info.run_id, "tables/rollouts")) == 140
    assert said.messages == []


def test_what_cannot_be_sent_at_all_is_left_out_and_said_once(store: Path, said: Any) -> None:
    with tracked("sft", params={}, tags={}, inputs=[Input("a", "1" * 37)]) as run:
        run.log_table("answers", [{"text": "\udcff"}])
        run.log_metrics({"loss": 1.0})
    assert runs()[0].data.metrics == {"loss": 1.0}
    assert len(said.messages) == 1
    assert "'digest' exceeds the maximum length of 36 characters. This is left out." in said.text


# --- before work -------------------------------------------------------------------------------------------------------


def refusal(match: str) -> str:
    """The sentence with which a stage stops before its work."""
    with pytest.raises(TrackingUnavailable, match=match) as error, executing("sft", None, Config(), []):
        pytest.fail("work began")
    message = str(error.value)
    assert "off" in message
    assert "\n" not in message
    return message


def test_a_deleted_experiment_is_named_with_the_command_that_restores_it(store: Path, project: Path) -> None:
    work()
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    client.delete_experiment("1")
    message = refusal(f"'{project.name}' was deleted, and its name is still taken")
    command = message.partition("`")[2].partition("`")[0]
    assert command.startswith(f"MLFLOW_TRACKING_URI=sqlite:///{store} mlflow experiments restore --experiment-id 1")
    client.restore_experiment("1")
    work()
    assert len(runs()) == 2


@pytest.mark.parametrize("version", ["451aebb31d03", "ffffffffffff"])  # an old one, and one that this MLflow does not know
def test_a_database_of_another_version_is_refused_with_mlflows_own_advice(store: Path, version: str) -> None:
    with sqlite3.connect(store) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (version,))
    database.close()
    assert f"run 'mlflow db upgrade sqlite:///{store}' to migrate" in refusal(f"found version {version}")


def spoil(store: Path, kind: str) -> str:
    """Makes the database unusable; returns its address."""
    address = f"sqlite:///{store}"
    if kind == "readonly":
        return f"sqlite:///file:{store}?mode=ro&uri=true"
    if kind == "cut":
        store.write_bytes(store.read_bytes()[:5000])
    else:
        store.unlink()
    if kind == "text":
        store.write_text("not a database, but a text that somebody put here\n" * 100)
    if kind == "folder":
        store.mkdir()
    if kind == "foreign":
        with sqlite3.connect(store) as database:
            database.execute("CREATE TABLE experiments (something TEXT)")
        database.close()
    return address


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("text", "file is not a database"),
        ("cut", "malformed"),
        ("readonly", "readonly"),
        ("foreign", "out-of-date database schema|no such|already exists"),
        pytest.param("folder", "unable to open database file", marks=pytest.mark.slow),  # MLflow tries for 100 s
    ],
)
def test_a_database_that_cannot_be_used_is_refused_with_mlflows_own_reason(
    store: Path, monkeypatch: pytest.MonkeyPatch, kind: str, reason: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", spoil(store, kind))
    assert "[SQL:" not in refusal(reason)


@pytest.mark.parametrize(
    ("address", "reason"),
    [("htp://127.0.0.1:1", "unsupported URI"), ("mlruns", "maintenance mode"), ("postgresql://me:s/e@cret@127.0.0.1:1/x", "psycopg"),
     ("http://me:secret@127.0.0.1:9", "Connection refused"), ("http://127.0.0.1:port", "port"), ("http://", "."),
     ("postgresql://127.0.0.1/x?user=me&password=secret", "psycopg")],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_refused_with_the_reason_and_without_passwords(
    project: Path, monkeypatch: pytest.MonkeyPatch, address: str, reason: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    message = refusal(reason)
    assert "cret" not in message
    assert not (project / "mlruns").exists()


@pytest.mark.parametrize(
    ("answer", "reason"), [(500, "500"), (403, "403"), (404, "404"), (200, "JSON"), (502, "502"), ("hang", "timed out")]
)
def test_a_server_that_does_not_serve_is_refused_before_work_with_what_it_answered(
    server: Server, answer: int | str, reason: str
) -> None:
    server.answer = answer
    refusal(reason)


# --- what leaves the machine -------------------------------------------------------------------------------------------


def test_mlflow_does_not_report_its_use() -> None:
    """Outside of tests and CI, where MLflow keeps quiet by itself."""
    program = (
        "from plumbline.pipeline.tracking import quiet_mlflow; quiet_mlflow(); "
        "from mlflow.telemetry.utils import is_telemetry_disabled; print(is_telemetry_disabled())"
    )
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
