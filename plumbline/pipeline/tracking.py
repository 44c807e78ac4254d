"""MLflow: one run for each executed stage. A view that no stage reads; files that DVC tracks are the truth.

`MLFLOW_TRACKING_URI` chooses the server; unset, it is `mlflow.db` in the project (with its artifacts under `mlartifacts/`), and
`off` switches tracking off. If MLflow cannot be used, the stage stops here, before any work; once the work has begun, nothing that MLflow
does ends it (plumbline/pipeline/outbox.py). What is logged besides is chosen in conf/tracking.yaml.
"""

import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from plumbline.pipeline.descriptions import description
from plumbline.pipeline.metric_names import cost_metric, figure_rows, step_metric
from plumbline.pipeline.mlflow_calls import Started, project_root, start_run, without_password
from plumbline.pipeline.mlflow_fault import MlflowFault
from plumbline.pipeline.mlflow_models import POLICY
from plumbline.pipeline.outbox import Outbox, SafeNames, safe_value, send_kept, unsent_file
from plumbline.pipeline.provenance import Input, maker_run, process_tags
from plumbline.pipeline.system_metrics import system_metrics
from plumbline.pipeline.tracking_values import tracking_values

BATCH = 1000  # MLflow's limit for one batch of metrics; a single one costs about 4 ms, a batch 200 ms
QUIET_AND_PATIENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it would report its use to its makers
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # at INFO a new database takes a page
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; by default a server that hangs would take a quarter of an hour of the stage's time
}
"""Values for MLflow, unless the environment has others."""
CHOICES = ("method", "init", "signal", "policy", "against", "sample", "judge", "reward", "first", "second")
"""The values of a stage that say what it works on, for its description."""


class TrackingUnavailable(RuntimeError):
    """MLflow cannot be used: no server answers, or its database does not fit."""


class Run:
    """Collects what a stage logs; this base class keeps nothing (tracking is off)."""

    id: str | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs numbers as they are named, or those of a training step by the names that all trainers share (metric_names.py)."""

    def log_figures(self, figures: Mapping[str, float | None], headline: Collection[str] | None = None) -> None:
        """Logs what the stage found: headline figures (None: all) as metrics and in the description, all as a table if there are more."""

    def log_costs(self, figures: Mapping[str, float]) -> None:
        """Logs seconds, rates, memory and calls."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs rows as a table that the MLflow UI shows and compares across runs."""

    def extend_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows to a table of this run."""

    def log_text(self, path: str, text: str) -> None:
        """Logs a text as an artifact."""

    def log_model(self, name: str, kind: str, folder: Path, card: str) -> None:
        """Logs the model in a folder, with its card; weights are not copied. A `kind` of `policy` is registered."""

    def log_evaluation(self, of: str | Path, figures: Mapping[str, float | None], card: str) -> None:
        """Logs the headline figures of a policy to this run and to the model in the folder `of`, with its card."""

    def log_best(self, of: str | Path, metric: str) -> None:
        """Gives the policy in the folder `of` the alias `best`; `metric` says by what."""

    def log_traces(self, traces: Sequence[Mapping[str, Any]]) -> None:
        """Logs a judge's conversations (plumbline/judging/conversations.py)."""

    def log_params(self, params: Mapping[str, Any], tags: Mapping[str, Any] | None = None) -> None:
        """Logs parameters, with tags in the same call; nested mappings become dotted names."""


class MlflowRun(Run):
    """A run in MLflow; metrics are sent in batches."""

    def __init__(self, uri: str, started: Started, name: str) -> None:
        self.id: str = started.run
        self._experiment = started.experiment
        self._name = name
        self._outbox = Outbox(uri, started.run)
        self._metrics: list[Any] = []
        self._safe = SafeNames()
        self._tables: dict[str, list[dict[str, Any]]] = {}
        self._headline: dict[str, float] = {}
        self._about: dict[str, Any] = {"choices": {}, "inputs": []}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        now = int(time.time() * 1000)
        named = {name if step is None else step_metric(name): value for name, value in metrics.items() if value is not None}
        self._metrics += [
            [self._safe(name, name.replace("@", "_")), float(value), now, step or 0] for name, value in named.items()
        ]
        while len(self._metrics) >= BATCH:
            batch, self._metrics = self._metrics[:BATCH], self._metrics[BATCH:]
            self._outbox.add({"metrics": batch})

    def log_figures(self, figures: Mapping[str, float | None], headline: Collection[str] | None = None) -> None:
        measured = {name: float(value) for name, value in figures.items() if value is not None}
        first = {name: value for name, value in measured.items() if headline is None or name in headline}
        self._headline |= first
        self.log_metrics(first)
        if len(first) < len(measured):
            self.log_table("figures", figure_rows(measured))

    def log_costs(self, figures: Mapping[str, float]) -> None:
        self.log_metrics({cost_metric(name): value for name, value in figures.items()})

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._outbox.add({"table": [name, [dict(row) for row in rows]]})

    def extend_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        table = self._tables.setdefault(name, [])
        table += [dict(row) for row in rows]
        self.log_table(name, table)

    def log_text(self, path: str, text: str) -> None:
        self._outbox.add({"text": [path, text]})

    def log_model(self, name: str, kind: str, folder: Path, card: str) -> None:
        if card:
            self.log_text("README.md", card)
        model = [name, kind, str(project_root() / folder), _without_metadata(card)]
        self._outbox.add({"model": model})
        if kind == POLICY:
            self._outbox.add({"version": model})

    def log_evaluation(self, of: str | Path, figures: Mapping[str, float | None], card: str) -> None:
        self.log_text("README.md", card)
        headline = {name: float(value) for name, value in figures.items() if value is not None}
        self._headline |= headline
        self._outbox.add({"evaluated": [maker_run(of), _without_metadata(card), headline, int(time.time() * 1000)]})

    def log_best(self, of: str | Path, metric: str) -> None:
        if maker := maker_run(of):
            self._outbox.add({"best": [maker, metric]})

    def log_traces(self, traces: Sequence[Mapping[str, Any]]) -> None:
        if traces:
            self._outbox.add({"traces": [dict(trace) for trace in traces]})

    def log_params(self, params: Mapping[str, Any], tags: Mapping[str, Any] | None = None) -> None:
        flat = [[self._safe(name), safe_value(value)] for name, value in flatten(params).items()]
        for start in range(0, max(1, len(flat)), 100):
            self._outbox.add({"params": flat[start : start + 100], **(tags or {} if start == 0 else {})})

    def begin(self, params: Mapping[str, Any], inputs: Sequence[Input]) -> None:
        """Logs the stage's values, which files it reads, and a first description."""
        stage = self._name.partition("@")[0]
        entry = params.get(stage)
        chosen = {**params, **(entry if isinstance(entry, Mapping) else {})}
        self._about = {"choices": {key: chosen[key] for key in CHOICES if isinstance(chosen.get(key), str)}, "inputs": inputs}
        self.log_params(params, self._note())
        if inputs:
            named = [[self._safe(one.path, Path(one.path).as_posix().replace("/", ".")), one.digest, one.path] for one in inputs]
            self._outbox.add({"inputs": named})

    def _note(self, error: str = "") -> dict[str, Any]:
        stage = self._name.partition("@")[0]
        text = description(stage, **self._about, figures=self._headline, experiment=self._experiment, error=error)
        return {"tags": {"mlflow.note.content": safe_value(text)}}

    def close(self, status: str, error: str = "") -> None:
        """Sends what is left and ends the run; what cannot be sent is kept for the next stage."""
        note = self._note(error) if self._headline or error else {}
        last = [{"metrics": self._metrics, **note}] if self._metrics or note else []
        self._outbox.records += [*last, {"end": [status, int(time.time() * 1000)]}]
        self._outbox.send()
        if self._outbox.records:
            self._outbox.keep(unsent_file(_unsent_folder(), tracking_uri(), self.id))


def _without_metadata(card: str) -> str:
    """A card's text without the YAML that it begins with."""
    return card.split("\n---\n", 1)[-1].lstrip()


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


def quiet_mlflow() -> None:
    """Lets MLflow say what matters, and gives up on a server that hangs within seconds."""
    for variable, value in QUIET_AND_PATIENT.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it announces each retry
    logging.getLogger("mlflow.store.db.utils").addFilter(_has_no_traceback)  # of what is said in one line here


@contextmanager
def tracked(name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], inputs: Sequence[Input]) -> Iterator[Run]:
    """Opens a run for a stage and closes it as FINISHED, or FAILED where the block raises. Once it is open, MLflow raises nothing.

    Raises:
        TrackingUnavailable: MLflow cannot be used; nothing has been done yet.
        ValueError: conf/tracking.yaml does not fit.
    """
    values = tracking_values()
    if tracking_uri() == "off":
        yield Run()
        return
    quiet_mlflow()
    run = _open(name, tags)
    status, reason = "FAILED", ""
    with ExitStack() as measuring:
        try:
            run.begin(params, inputs)
            measuring.enter_context(system_metrics(tracking_uri(), run.id, values.system_metrics_seconds))
            yield run
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise
        finally:
            measuring.close()
            run.close(status, reason)


def _has_no_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info


def _open(name: str, tags: Mapping[str, str]) -> MlflowRun:
    """A new run, after what earlier stages left open or unsent has been settled."""
    uri = tracking_uri()
    try:
        started = start_run(uri, name, {**process_tags(), **tags})
    except MlflowFault as fault:
        shown = without_password(uri)
        raise TrackingUnavailable(
            f"MLflow at {shown} cannot be used: {fault.reason.replace('<database_uri>', shown)}. Fix that, set MLFLOW_TRACKING_URI to "
            "another server (`make ui` starts the local one), or to `off` to work without tracking."
        ) from fault
    send_kept(_unsent_folder(), uri)
    return MlflowRun(uri, started, name)
