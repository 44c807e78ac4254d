"""MLflow: one run for each executed stage. A view that no stage reads; files that DVC tracks are the truth.

`MLFLOW_TRACKING_URI` chooses the server; unset, it is `mlflow.db` in the project (with its artifacts under `mlartifacts/`), and
`off` switches tracking off. A server that does not answer stops the stage here, before any work.
"""

import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
from filelock import FileLock

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "plumbline"
BATCH = 1000  # MLflow's limit for one batch of metrics; a single one costs about 4 ms, a batch 200 ms


class Input(NamedTuple):
    """A file or folder that a stage read."""

    path: str
    digest: str


class TrackingUnavailable(RuntimeError):
    """The tracking server does not answer."""


class Run:
    """Collects what a stage logs; this base class keeps nothing (tracking is off)."""

    id: str | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs numbers, at a training step if one is given."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs rows as a table that the MLflow UI shows and compares across runs."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Logs parameters; nested mappings become dotted names."""


class MlflowRun(Run):
    """A run in MLflow; metrics are sent in batches."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self._client = client
        self.id: str = run_id
        self._pending: list[Any] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [
            Metric(name.replace("@", "_"), float(value), now, step or 0) for name, value in metrics.items() if value is not None
        ]
        if len(self._pending) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Sends what is pending."""
        pending, self._pending = self._pending, []
        for start in range(0, len(pending), BATCH):
            self._client.log_batch(self.id, metrics=pending[start : start + BATCH])

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        import pandas

        self._client.log_table(self.id, pandas.DataFrame([dict(row) for row in rows]), f"tables/{name}.json")

    def log_params(self, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        flat = [Param(key, str(value)) for key, value in flatten(params).items()]
        for start in range(0, len(flat), 100):
            self._client.log_batch(self.id, params=flat[start : start + 100])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"align": {"beta": 0.1}}` as `{"align.beta": 0.1}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def project_root() -> Path:
    """The project's own folder, also from the temporary copy in which a queued experiment runs."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def tracking_uri() -> str:
    """Where runs are logged, or `off`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow.db'}"


@contextmanager
def tracked(name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], inputs: Sequence[Input]) -> Iterator[Run]:
    """Opens a run for a stage and closes it as FINISHED, or FAILED where the block raises.

    Raises:
        TrackingUnavailable: the server does not answer; nothing has been done yet.
    """
    if tracking_uri() == "off":
        yield Run()
        return
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # at INFO a new database takes a page
    logging.getLogger("alembic").setLevel(logging.WARNING)
    client, experiment = _connect()
    run = MlflowRun(client, _start(client, experiment, name, tags))
    status = "FAILED"
    try:
        run.log_params(params)
        _log_inputs(client, run.id, inputs)
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        run.flush()
        client.set_terminated(run.id, status)


def _connect() -> tuple["MlflowClient", str]:
    """A client and the experiment's id; creating a new SQLite store is serialised (six at once broke it 17 times in 18)."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = tracking_uri()
    patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    changed = {key: value for key, value in patience.items() if key not in os.environ}
    os.environ.update(changed)
    try:
        with FileLock(project_root() / ".mlflow.lock"):
            client = MlflowClient(uri)
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment:
                return client, experiment.experiment_id
            local = (project_root() / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
            return client, client.create_experiment(EXPERIMENT, artifact_location=local)
    except (MlflowException, OSError) as error:
        raise TrackingUnavailable(
            f"MLflow at {_without_password(uri)} does not answer ({type(error).__name__}). Start it (`make ui` for the "
            "local one), set MLFLOW_TRACKING_URI to one that runs, or to `off` to work without tracking."
        ) from error
    finally:
        for key in changed:
            del os.environ[key]


def _without_password(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else uri


def _start(client: "MlflowClient", experiment: str, name: str, tags: Mapping[str, str]) -> str:
    _close_orphans(client, experiment, name)
    identity = {"mlflow.runName": name, "host": socket.gethostname(), "pid": str(os.getpid()), **tags, **_git_tags()}
    return str(client.create_run(experiment, run_name=name, tags=identity).info.run_id)


def _close_orphans(client: "MlflowClient", experiment: str, name: str) -> None:
    """Closes runs of this stage whose process was killed: SIGKILL leaves them RUNNING for ever."""
    running = client.search_runs([experiment], f"attributes.status = 'RUNNING' and attributes.run_name = '{name}'")
    for run in running:
        here = run.data.tags.get("host") == socket.gethostname()
        if here and not psutil.pid_exists(int(run.data.tags.get("pid", 0))):
            client.set_terminated(run.info.run_id, "KILLED")


def _git_tags() -> dict[str, str]:
    """The commit that the code came from, and whether it was edited since."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": str(bool(dirty.strip())).lower()}


def _log_inputs(client: "MlflowClient", run_id: str, inputs: Sequence[Input]) -> None:
    from mlflow.entities import Dataset, DatasetInput

    datasets = [
        DatasetInput(Dataset(Path(item.path).as_posix().replace("/", "."), item.digest, "local", f'{{"uri": "{item.path}"}}'), [])
        for item in inputs
    ]
    if datasets:
        client.log_inputs(run_id, datasets=datasets)
