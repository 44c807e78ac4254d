"""`make ui` opens on the runs: with the bare address, in a browser that has never been there, and without a click."""

# ruff: noqa: F401, F811  fixtures of another module

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from mlflow import MlflowClient

from plumbline.pipeline.landing import remembered, runs_route
from plumbline.pipeline.mlflow_calls import experiment_name
from plumbline.pipeline.records import write_json
from plumbline.pipeline.tracking import tracked
from plumbline.tools import ui
from tests.benchmarks.pictures import Browser, open_browser, wait_until_healthy
from tests.conftest import ROOT
from tests.mlflow_stores import Server, empty_store, running_server, runs, server, store
from tests.test_tracking_runs import made_by, trace


def test_the_script_stands_in_the_page_and_in_nothing_else() -> None:
    app = Flask("pages")
    app.after_request(lambda response: ui.with_opening(response, "<script>open</script>"))
    app.add_url_rule("/", "page", lambda: "<!doctype html><html><head><title>MLflow</title></head></html>")
    app.add_url_rule("/api", "api", lambda: {"html": "<head>"})
    assert (
        app.test_client().get("/").text == "<!doctype html><html><head><script>open</script><title>MLflow</title></head></html>"
    )
    assert app.test_client().get("/api").json == {"html": "<head>"}


def test_only_what_the_browser_does_not_remember_is_set() -> None:
    script = ui.opening_script("7")
    assert script.count("??=") == len(remembered("7")) == 3
    assert json.dumps(runs_route("7")) in script


def run_ui(monkeypatch: pytest.MonkeyPatch, port: int = 1) -> None:
    monkeypatch.setattr(sys, "argv", ["ui", str(port)])
    ui.main()


def test_at_a_server_the_link_is_printed_with_the_experiments_own_number(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    run_ui(monkeypatch)
    number = MlflowClient(server.address).get_experiment_by_name("mine").experiment_id
    link = f"{server.address}/#/experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey=plumbline"
    assert capsys.readouterr().out == f"The runs: {link}\n"
    tags = MlflowClient(server.address).get_experiment(number).tags
    assert "metrics.`gold`" in json.loads(tags["mlflow.sharedViewState.plumbline"])["selectedColumns"]


def test_what_cannot_be_shown_is_said(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken, pytest.raises(SystemExit, match=r"in use.*PORT=5001"):
        run_ui(monkeypatch, taken.getsockname()[1])
    store.write_text("not a database")
    with pytest.raises(SystemExit, match="cannot be used"):
        run_ui(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    with pytest.raises(SystemExit, match="found MLFLOW_TRACKING_URI=off"):
        run_ui(monkeypatch)


# --- in a browser ------------------------------------------------------------------------------------------------------


def log_runs(project: Path) -> None:
    """A policy and its evaluation, with all that a browser shows of them."""
    folder = project / "artifacts/policy/dpo"
    folder.mkdir(parents=True)
    with tracked("align@dpo", params={"align": {"method": "dpo", "init": "sft"}}, tags={}, inputs=[]) as training:
        for step in (0, 10):
            training.extend_table("samples", [{"prompt": "Tell me the sum.", "step": step, "completion": f"said at {step}"}])
        training.log_model("dpo", "policy", folder, "# dpo")
    write_json("artifacts/runs/align/dpo.json", {"run_id": training.id})
    made_by(project, "artifacts/policy/dpo", "artifacts/runs/align/dpo.json")
    with tracked("evaluate@dpo", params={"policy": "dpo"}, tags={}, inputs=[]) as evaluation:
        evaluation.log_evaluation("artifacts/policy/dpo", {"gold": 0.8125}, "# dpo\n\n## Evaluation\n\nThe card of dpo.")
        evaluation.log_traces([trace(0, "a")])
        evaluation.log_best("artifacts/policy/dpo", "gold")


@contextmanager
def serving() -> Iterator[str]:
    """`make ui` on a free port; yields its bare address."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "plumbline.tools.ui", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def shows(text: str) -> str:
    """A JavaScript expression: whether the page shows a text."""
    return f"document.body.innerText.includes({json.dumps(text)})"


CLICK = "(text => {{ const a = [...document.querySelectorAll('a')].findLast(a => a.innerText.trim() === text); a?.click(); return !!a }})({})"
"""Clicks the last link with a text, which is the one of the page's main part."""


async def browse(address: str, runs_by_name: dict[str, str], trace_id: str) -> None:
    """What a person does who opens MLflow for the first time."""
    async with open_browser("chromium") as browser:
        await browser.call("Page.navigate", url=address)
        await browser.wait_for(shows("evaluate@dpo"))  # without a click
        await browser.wait_for(shows("0.8125"))  # its headline figure is a column
        await browser.call("Page.navigate", url=f"{address}/#/experiments")
        await browser.wait_for(shows("Default"))  # the table of experiments is there
        await browser.wait_for(CLICK.format(json.dumps(experiment_name())))  # the experiment is chosen …
        await browser.wait_for(shows("align@dpo"))  # … and the runs are there
        await browser.wait_for(CLICK.format('"evaluate@dpo"'))
        await browser.wait_for(shows("Scores the answers of one policy"))
        await opened(
            browser, f"{address}/#/experiments/1/runs/{runs_by_name['evaluate@dpo']}/artifacts/README.md", "The card of dpo."
        )
        await opened(
            browser, f"{address}/#/experiments/1/runs/{runs_by_name['align@dpo']}/artifacts/tables/samples.json", "said at 10"
        )
        await opened(browser, f"{address}/#/experiments/1/traces?selectedEvaluationId={trace_id}", "Verdict: A")
        await browser.call("Page.navigate", url=f"{address}/#/models/{experiment_name()}")
        await browser.wait_for("/@\\s*best/.test(document.body.innerText)")


async def opened(browser: Browser, address: str, text: str) -> None:
    await browser.call("Page.navigate", url=address)
    await browser.wait_for(shows(text))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium (apt-get install chromium)")
def test_in_a_browser_the_runs_the_card_the_samples_and_a_trace_are_there(store: Path, project: Path) -> None:
    log_runs(project)
    (conversation,) = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).search_traces(["1"])
    with serving() as address:
        asyncio.run(browse(address, {run.info.run_name: run.info.run_id for run in runs()}, conversation.info.trace_id))
