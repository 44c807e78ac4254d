"""Models in MLflow: what a run made, and the registry of the project's policies. Weights are not copied: a version's source is their folder.

The registry has one model for each project, under the experiment's name, and a version for each policy that a stage trained. What evaluations find
stands on the version, and `report` gives the alias `best`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

POLICY = "policy"
BEST = "best"
TAGGED = 3  # headline figures that stand on a version as tags, one call each; the description has all
LONGEST_DESCRIPTION = 5000  # characters that MLflow's registry takes


class Model(NamedTuple):
    """A model that a stage made."""

    name: str
    kind: str
    """`policy` or `reward`; policies are registered."""
    source: str
    """Its folder."""
    description: str
    """Its card."""


def create(client: "MlflowClient", run_id: str, registry: str, model: Model) -> None:
    """Logs a model as the run's output and registers a policy under the name `registry`; does nothing that an earlier try has done."""
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
    if model.kind == POLICY and not _versions(client, run_id):
        _register(client, run_id, registry, model, logged.model_id)


def _register(client: "MlflowClient", run_id: str, registry: str, model: Model, model_id: str) -> None:
    """A new version; its source is the folder, or the logged model on a server that takes no path of another machine."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(registry, description="Policies of this project, a version for each that was trained.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for source in (model.source, f"models:/{model_id}"):
        try:
            client.create_model_version(
                registry,
                source=source,
                run_id=run_id,
                model_id=model_id,
                tags={"policy": model.name, "folder": model.source},
                description=model.description[:LONGEST_DESCRIPTION],
            )
        except MlflowException as error:
            if source != model.source or error.error_code != "INVALID_PARAMETER_VALUE":
                raise
        else:
            return


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
        client.update_model_version(version.name, version.version, description=text[:LONGEST_DESCRIPTION])
        for name, value in list(figures.items())[:TAGGED]:
            client.set_model_version_tag(version.name, version.version, name, f"{value:.4g}")


def name_best(client: "MlflowClient", registry: str, maker: str, metric: str) -> None:
    """Gives the alias `best` to the version that the run `maker` made; the model says by which metric."""
    for version in _versions(client, maker):
        client.set_registered_model_alias(registry, BEST, version.version)
        client.set_registered_model_tag(registry, "best_by", metric)


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
    found = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'", max_results=1)
    return next(iter(found), None)
