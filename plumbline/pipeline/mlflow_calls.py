"""What is asked of MLflow, in plain values, and how it fails."""

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
from filelock import FileLock

from plumbline.pipeline import landing
from plumbline.pipeline.mlflow_fault import MlflowFault

if TYPE_CHECKING:
    from mlflow import MlflowClient

Record = Mapping[str, Any]
"""What one call sends: {"metrics": [[name, value, milliseconds, step], …]}, {"params": [[name, value], …]}, either with `tags`,
{"table": [name, rows]}, {"text": [path, text]}, {"inputs": [[name, digest, path], …]}, {"model": [name, kind, source, description]},
{"version": [name, kind, source, description]}, {"evaluated": [run, description, figures, milliseconds]}, {"best": [run, metric]},
{"traces": [trace, …]} or {"end": [status, milliseconds]}."""

STORED = ("table", "text")
"""The records that go to the store of artifacts."""

REGISTERED = ("version", "evaluated", "best")
"""The records that go to the registry of models, also if they go to the server of runs; MLFLOW_REGISTRY_URI may name another for it."""

LONGEST_REASON = 500  # characters; a proxy's error page is longer
MOST_TABLES = 100  # that a run's tag lists, so that it stays below MLflow's 8,000 characters

REFUSALS = ("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")
"""MLflow's error codes for what it would refuse again."""


def experiment_name() -> str:
    """The experiment of this project's runs: MLFLOW_EXPERIMENT_NAME, or else the name of the project's folder."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or project_root().name or "plumbline"


def project_root() -> Path:
    """The project's own folder, also from the temporary copy in which a queued experiment runs."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


class Started(NamedTuple):
    """A run that has begun."""

    experiment: str
    """The experiment's id."""
    run: str
    """The run's id."""


def start_run(uri: str, name: str, tags: Mapping[str, str]) -> Started:
    """Starts a run; closes runs of this stage whose process was killed.

    Raises:
        MlflowFault: MLflow at `uri` cannot be used.
    """
    with _explained():
        from mlflow import MlflowClient

        experiment = open_experiment(uri)
        client = MlflowClient(uri)
        _close_orphans(client, experiment, name)
        run = client.create_run(experiment, run_name=name, tags={"mlflow.runName": name, **tags})
        return Started(experiment, str(run.info.run_id))


def open_experiment(uri: str) -> str:
    """The id of the project's experiment, which is made if there is none, with the view in which `make ui` opens it.

    Raises:
        MlflowFault: MLflow at `uri` cannot be used.
    """
    with _explained():
        from mlflow import MlflowClient

        with FileLock(project_root() / ".mlflow.lock"):  # six at once broke a new SQLite store 17 times in 18
            return _experiment(MlflowClient(uri), uri)


def deliver(uri: str, run_id: str, record: Record) -> None:
    """Sends a record. Sending it twice changes nothing.

    Raises:
        MlflowFault: it could not be sent, now or ever.
    """
    with _explained():
        from mlflow import MlflowClient
        from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag

        client = MlflowClient(uri)
        match record:
            case {"metrics": _} | {"params": _}:
                client.log_batch(
                    run_id,
                    metrics=[Metric(*metric) for metric in record.get("metrics", ())],
                    params=[Param(*param) for param in record.get("params", ())],
                    tags=[RunTag(*tag) for tag in record.get("tags", {}).items()],
                )
            case {"inputs": inputs}:
                datasets = [Dataset(name, digest, "local", json.dumps({"uri": path})) for name, digest, path in inputs]
                client.log_inputs(run_id, datasets=[DatasetInput(dataset, []) for dataset in datasets])
            case {"table": [name, rows]}:
                _deliver_table(client, run_id, f"tables/{name}.json", rows)
            case {"text": [path, text]}:
                client.log_text(run_id, text, path)
            case {"end": [status, milliseconds]}:
                client.set_terminated(run_id, status, milliseconds)
            case _:
                with _if_offered(client, run_id):
                    _deliver_model_or_traces(client, uri, run_id, record)


def _deliver_model_or_traces(client: "MlflowClient", uri: str, run_id: str, record: Record) -> None:
    """Sends a record of what an older server, or one with fewer rights, may not take."""
    from plumbline.pipeline import mlflow_models, mlflow_traces

    match record:
        case {"model": model}:
            mlflow_models.create(client, run_id, mlflow_models.Model(*model))
        case {"version": model}:
            mlflow_models.register(client, run_id, experiment_name(), mlflow_models.Model(*model))
        case {"evaluated": [maker, text, figures, milliseconds]}:
            mlflow_models.evaluated(client, run_id, maker, text, figures, milliseconds)
        case {"best": [maker, metric]}:
            mlflow_models.name_best(client, maker, metric)
        case {"traces": traces}:
            mlflow_traces.deliver_traces(uri, run_id, client.get_run(run_id).info.experiment_id, traces)
        case _:
            raise ValueError(f"expected a record that can be sent, found {str(record)[:80]}")


def _experiment(client: "MlflowClient", uri: str) -> str:
    name = experiment_name()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        local = (project_root() / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
        return client.create_experiment(name, artifact_location=local, tags=landing.experiment_tags())
    if experiment.lifecycle_stage == "deleted":
        raise MlflowFault(
            f"the experiment {name!r} was deleted, and its name is still taken. Restore it (`MLFLOW_TRACKING_URI={without_password(uri)} "
            f"mlflow experiments restore --experiment-id {experiment.experiment_id}`) or remove it for good (`mlflow gc`)"
        )
    for key, value in landing.experiment_tags().items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return str(experiment.experiment_id)


def _close_orphans(client: "MlflowClient", experiment: str, name: str) -> None:
    """Closes runs of this stage whose process was killed: SIGKILL leaves them RUNNING for ever."""
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        is_own = run.info.run_name == name and run.data.tags.get("host") == socket.gethostname()
        if is_own and not psutil.pid_exists(int(run.data.tags.get("pid", 0))):
            client.set_terminated(run.info.run_id, "KILLED")


def _deliver_table(client: "MlflowClient", run_id: str, path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """As MLflow's log_table, which would append to what an earlier try has left, and fails when its tag is full."""
    import pandas
    from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

    client.log_text(run_id, pandas.DataFrame(rows).to_json(orient="split", index=False, date_format="iso"), path)
    logged = json.loads(client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    table = {"path": path, "type": "table"}
    if table not in logged:
        client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*logged, table][-MOST_TABLES:]))


@contextmanager
def _if_offered(client: "MlflowClient", run_id: str) -> Iterator[None]:
    """For what a server may not have or not allow although it takes runs: that is then refused, and not a server that fails.

    A proxy in front of a server that fails answers the same for everything, so the run itself is asked for before that is believed.
    """
    from mlflow.exceptions import MlflowException

    from plumbline.pipeline.mlflow_models import NOT_OFFERED

    try:
        yield
    except (MlflowException, NotImplementedError) as error:
        if isinstance(error, MlflowException) and error.error_code not in NOT_OFFERED:
            raise
        client.get_run(run_id)
        raise MlflowFault(f"the server does not have or does not allow this ({_reason(error)})", final=True) from error


@contextmanager
def _explained() -> Iterator[None]:
    """MLflow, its databases' drivers and its stores raise what they like; all of it becomes MlflowFault."""
    try:
        yield
    except MlflowFault:
        raise
    except Exception as error:
        from mlflow.exceptions import MlflowException

        # otherwise the values cannot be sent at all
        final = error.error_code in REFUSALS if isinstance(error, MlflowException) else isinstance(error, ValueError | TypeError)
        raise MlflowFault(_reason(error), final) from error


def _reason(error: Exception) -> str:
    """MLflow's own reason in one line, without the SQL behind it."""
    text = " ".join(re.split(r"\[SQL:|\n\[parameters:", str(error))[0].split())
    text = f"{text[:LONGEST_REASON]}…" if len(text) > LONGEST_REASON else text.rstrip(".")
    return without_password(text) or type(error).__name__


def without_password(text: str) -> str:
    """An address, or a text that holds some, without user and password."""
    return re.sub(r"(?i)(?<=://)\S*@|(?<=password=)[^&\s]+", "", text)
