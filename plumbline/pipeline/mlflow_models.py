"""Models in MLflow: what a run made, and the registry of the project's policies. Weights are not copied: a version's source is their folder.

The registry has one model for each project, under the experiment's name (`registered_name`), and a version for each policy that a stage trained. What
evaluations find stands on the version, and `report` gives the alias `best`.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

POLICY = "policy"
BEST = "best"
TAGGED = 3  # headline figures that stand on a version as tags, one call each; the description has all
LONGEST_DESCRIPTION, LONGEST_NAME = 5000, 250  # characters that MLflow's registry takes

NOT_OFFERED = ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED", "PERMISSION_DENIED")
"""MLflow's error codes for what a server does not have, or does not allow."""


class Model(NamedTuple):
    """A model that a stage made."""

    name: str
    kind: str
    """`policy` or `reward`; policies are registered."""
    source: str
    """Its folder."""
    description: str
    """Its card."""


def create(client: "MlflowClient", run_id: str, model: Model) -> None:
    """Logs a model as the run's output; does nothing that an earlier try has done."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    run = client.get_run(run_id)
    logged = _logged(client, run.info.experiment_id, run_id)
    if logged is None:
        params = {name: value for name, value in run.data.params.items() if len(name) <= 250 and len(value) <= 500}
        tags = {"folder": model.source, "node": run.info.run_name or ""}
        logged = client.create_logged_model(
            run.info.experiment_id, name=model.name, source_run_id=run_id, tags=tags, params=params, model_type=model.kind
        )
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    if not (run.outputs and run.outputs.model_outputs):
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])


def register(client: "MlflowClient", run_id: str, experiment: str, model: Model) -> None:
    """Registers a policy as a version of the project's model; does nothing that an earlier try has done.

    Its source is the folder, or the logged model on a server that takes no path of another machine.
    """
    from mlflow.exceptions import MlflowException

    if _versions(client, run_id):
        return
    logged = _logged(client, client.get_run(run_id).info.experiment_id, run_id)
    name = registered_name(experiment)
    try:
        client.create_registered_model(name, description="Policies of this project, a version for each that was trained.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for source in (model.source, *([f"models:/{logged.model_id}"] if logged else [])):
        try:
            client.create_model_version(
                name,
                source=source,
                run_id=run_id,
                model_id=logged.model_id if logged else None,
                tags={"policy": model.name, "folder": model.source},
                description=_version_text(model.description),
            )
        except MlflowException as error:
            if not logged or source != model.source or error.error_code != "INVALID_PARAMETER_VALUE":
                raise
        else:
            return


def registered_name(experiment: str) -> str:
    """The experiment's name as the registry takes it. Where a mark had to go, a digest follows, so that no two experiments share a model."""
    plain = re.sub("[/:]", "-", experiment)
    if plain == experiment and plain.strip(". ") and len(plain) <= LONGEST_NAME:
        return experiment
    return f"{plain.strip('-. ')[: LONGEST_NAME - 9]}-{hashlib.sha256(experiment.encode()).hexdigest()[:8]}".lstrip("-")


def evaluated(
    client: "MlflowClient", run_id: str, maker: str | None, text: str, figures: Mapping[str, float], milliseconds: int
) -> None:
    """Logs the figures of an evaluation, and writes them to the model that the run `maker` made, if that is in this MLflow.

    text: the model's card with its figures.
    """
    from mlflow.entities import LoggedModelInput, Metric

    run = _run(client, maker) if maker else None
    logged = _logged(client, run.info.experiment_id, run.info.run_id) if run else None
    model_id = logged.model_id if logged else None
    metrics = [Metric(name, value, milliseconds, 0, model_id=model_id) for name, value in figures.items()]
    client.log_batch(run_id, metrics=metrics)
    inputs = client.get_run(run_id).inputs
    if model_id and not (inputs and inputs.model_inputs):
        client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
    for version in _versions(client, maker) if maker else []:
        client.update_model_version(version.name, version.version, description=_version_text(text))
        for name, value in list(figures.items())[:TAGGED]:
            client.set_model_version_tag(version.name, version.version, name, f"{value:.4g}")


def name_best(client: "MlflowClient", maker: str, metric: str) -> None:
    """Gives the alias `best` to the version that the run `maker` made; the model says by which metric."""
    for version in _versions(client, maker):
        client.set_registered_model_alias(version.name, BEST, version.version)
        client.set_registered_model_tag(version.name, "best_by", metric)


def _version_text(card: str) -> str:
    """A version's description: its card below the heading, because the registry's table shows the first line."""
    return re.sub(r"\A# .*\n*", "", card)[:LONGEST_DESCRIPTION]


def _versions(client: "MlflowClient", run_id: str) -> "list[ModelVersion]":
    return list(client.search_model_versions(f"run_id='{run_id}'"))


def _run(client: "MlflowClient", run_id: str) -> "Run | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _logged(client: "MlflowClient", experiment: str, run_id: str) -> "LoggedModel | None":
    """The model that a run has logged; None if there is none, as on a server that has no logged models."""
    from mlflow.exceptions import MlflowException

    try:
        matches = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'", max_results=1)
    except MlflowException as error:
        if error.error_code not in NOT_OFFERED:
            raise
        return None
    return next(iter(matches), None)
