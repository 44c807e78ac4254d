"""MLflow's own stores and server for tests of tracking, and ways to spoil them."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import mlflow
import pytest
from mlflow import MlflowClient

from plumbline.pipeline.mlflow_calls import experiment_name
from plumbline.pipeline.tracking import tracked


@dataclass
class Config:
    seed: int = 17
    threads: int = 1
    rules: dict[str, float] = field(default_factory=lambda: {"a&b": 1.0, "a?b": 2.0})


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow's without experiments, which takes it seconds to make."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(project: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's own database of runs, and the environment that names it."""
    path = Path(shutil.copy(empty_store, project / "mlflow.db"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    return path


@pytest.fixture
def no_registry() -> Iterator[None]:
    """A registry of models at an address where nothing listens."""
    mlflow.set_registry_uri("http://127.0.0.1:9")
    yield
    forget_registry()


def runs() -> list[Any]:
    """All runs, the newest first."""
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    return list(client.search_runs([client.get_experiment_by_name(experiment_name()).experiment_id]))


def work(metrics: dict[str, float] | None = None, **changes: Any) -> None:
    """A stage that logs some metrics."""
    with tracked("sft", **({"params": {}, "tags": {}, "inputs": []} | changes)) as run:
        run.log_metrics(metrics or {"loss": 1.0})


def unsent(project: Path) -> list[Path]:
    return [*(project / ".mlflow-unsent").glob("*")]


def forget_registry() -> None:
    """A server sets the registry of the whole process, and a variable that later tests' stages would inherit."""
    mlflow.set_registry_uri("")
    os.environ.pop("MLFLOW_REGISTRY_URI", None)


class Server:
    """MLflow's own server on 127.0.0.1; `answer` is what it does instead of answering: a status, or `hang`.

    `lacks` is a part of the paths that it does not have or allow, with the status that it answers there.
    """

    def __init__(self, folder: Path, database: Path) -> None:
        from mlflow.server import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR, app

        self._variables = {BACKEND_STORE_URI_ENV_VAR: f"sqlite:///{database}", ARTIFACT_ROOT_ENV_VAR: str(folder / "artifacts")}
        os.environ |= self._variables
        self.answer: int | str | None = None
        self.lacks: tuple[str, int] | None = None
        self.hangs = threading.Event()  # a request is waiting for an answer
        self._app = app

        class Threaded(ThreadingMixIn, WSGIServer):
            daemon_threads = True

        class Quiet(WSGIRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

        self._server = make_server("127.0.0.1", 0, self._respond, Threaded, Quiet)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _respond(self, environ: Any, start: Callable[..., Any]) -> Any:
        if self.answer == "hang":
            self.hangs.set()
            time.sleep(6)
        answer = self.lacks[1] if self.lacks and self.lacks[0] in environ["PATH_INFO"] else self.answer
        if isinstance(answer, int):
            start(f"{answer} Spoilt", [("Content-Type", "text/html")])
            return [b"<html>an error page of some proxy</html>"]
        return self._app(environ, start)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for variable in self._variables:
            del os.environ[variable]
        forget_registry()


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    server = Server(folder, Path(shutil.copy(empty_store, folder / "mlflow.db")))
    yield server
    server.close()


@pytest.fixture
def server(running_server: Server, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running_server.address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "4")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_registry_uri(running_server.address)
    yield running_server
    running_server.answer = running_server.lacks = None
    forget_registry()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What plumbline warns of; MLflow itself and its server are not of interest."""
    caplog.set_level(logging.WARNING, "plumbline")
    caplog.handler.addFilter(lambda record: record.name.startswith("plumbline"))
    return caplog
