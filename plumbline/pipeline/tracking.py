"""MLflow: one run for each executed stage. A view that no stage reads; files that DVC tracks are the truth.

`MLFLOW_TRACKING_URI` chooses the server; unset, it is `mlflow.db` in the project (with its artifacts under `mlartifacts/`), and
`off` switches tracking off. If MLflow cannot be used, the stage stops here, before any work; once the work has begun, nothing that MLflow
does ends it (plumbline/pipeline/outbox.py).
"""

import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from plumbline.pipeline.mlflow_calls import MlflowFault, project_root, start_run, without_password
from plumbline.pipeline.outbox import Outbox, SafeNames, safe_value, send_kept, unsent_file

BATCH = 1000  # MLflow's limit for one batch of metrics; a single one costs about 4 ms, a batch 200 ms
QUIET_AND_PATIENT = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # at INFO a new database takes a page
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; by default a server that hangs would take a quarter of an hour of the stage's time
}
"""Values for MLflow, unless the environment has others."""


class Input(NamedTuple):
    """A file or folder that a stage read."""

    path: str
    digest: str


class TrackingUnavailable(RuntimeError):
    """MLflow cannot be used: no server answers, or its database does not fit."""


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

    def __init__(self, uri: str, run_id: str) -> None:
        self.id: str = run_id
        self._outbox = Outbox(uri, run_id)
        self._metrics: list[Any] = []
        self._safe = SafeNames()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        now = int(time.time() * 1000)
        self._metrics += [
            [self._safe(name, name.replace("@", "_")), float(value), now, step or 0]
            for name, value in metrics.items()
            if value is not None
        ]
        while len(self._metrics) >= BATCH:
            batch, self._metrics = self._metrics[:BATCH], self._metrics[BATCH:]
            self._outbox.add({"metrics": batch})

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._outbox.add({"table": [name, [dict(row) for row in rows]]})

    def log_params(self, params: Mapping[str, Any]) -> None:
        flat = [[self._safe(name), safe_value(value)] for name, value in flatten(params).items()]
        for start in range(0, len(flat), 100):
            self._outbox.add({"params": flat[start : start + 100]})

    def log_inputs(self, inputs: Sequence[Input]) -> None:
        """Logs which files the stage read."""
        if inputs:
            named = [[self._safe(path, Path(path).as_posix().replace("/", ".")), digest, path] for path, digest in inputs]
            self._outbox.add({"inputs": named})

    def close(self, status: str) -> None:
        """Sends what is left and ends the run; what cannot be sent is kept for the next stage."""
        last = [{"metrics": self._metrics}] if self._metrics else []
        self._outbox.records += [*last, {"end": [status, int(time.time() * 1000)]}]
        self._outbox.send()
        if self._outbox.records:
            self._outbox.keep(unsent_file(_unsent_folder(), tracking_uri(), self.id))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"align": {"beta": 0.1}}` as `{"align.beta": 0.1}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def _unsent_folder() -> Path:
    return project_root() / ".mlflow-unsent"


def tracking_uri() -> str:
    """Where runs are logged, or `off`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow.db'}"


@contextmanager
def tracked(name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], inputs: Sequence[Input]) -> Iterator[Run]:
    """Opens a run for a stage and closes it as FINISHED, or FAILED where the block raises. Once it is open, MLflow raises nothing.

    Raises:
        TrackingUnavailable: MLflow cannot be used; nothing has been done yet.
    """
    if tracking_uri() == "off":
        yield Run()
        return
    for variable, value in QUIET_AND_PATIENT.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it announces each retry
    logging.getLogger("mlflow.store.db.utils").addFilter(_has_no_traceback)  # of what is said in one line here
    run = _open(name, tags)
    status = "FAILED"
    try:
        run.log_params(params)
        run.log_inputs(inputs)
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        run.close(status)


def _has_no_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info


def _open(name: str, tags: Mapping[str, str]) -> MlflowRun:
    """A new run, after what earlier stages left open or unsent has been settled."""
    uri = tracking_uri()
    identity = {"host": socket.gethostname(), "pid": str(os.getpid()), **tags, **_git_tags()}
    try:
        run_id = start_run(uri, name, identity)
    except MlflowFault as fault:
        shown = without_password(uri)
        raise TrackingUnavailable(
            f"MLflow at {shown} cannot be used: {fault.reason.replace('<database_uri>', shown)}. Fix that, set MLFLOW_TRACKING_URI to "
            "another server (`make ui` starts the local one), or to `off` to work without tracking."
        ) from fault
    send_kept(_unsent_folder(), uri)
    return MlflowRun(uri, run_id)


def _git_tags() -> dict[str, str]:
    """The commit that the code came from, and whether it was edited since."""
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {}
    heads, edits = ([line for line in lines if line.startswith("# ") == header] for header in (True, False))
    return {"mlflow.source.git.commit": heads[0].removeprefix("# branch.oid "), "git.dirty": str(bool(edits)).lower()}
