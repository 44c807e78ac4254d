"""How MLflow's pages open on the runs: the link to them, and the view of the runs' table that comes with it.

MLflow 3.17 opens an experiment on its pages for generative AI unless the address, or what the browser remembers, says `machine_learning`; no tag
of the experiment decides it. The columns of the table are remembered by the browser as well, or come with a link that names a view: an experiment
tag, as MLflow's own "share view" writes it.
"""

import json

WORKFLOW = "machine_learning"
VIEW = "plumbline"
METRICS = (
    "accuracy", "gold", "gold_gain", "harmful_fraction", "instructions_followed", "kl", "over_refusal_fraction", "reward", "train/reward",
    "validation_loss", "win_rate",
)  # fmt: skip
"""Columns of the runs' table: headline figures of evaluations and of training. MLflow shows them in the order of the alphabet."""
COLUMNS = (
    "attributes.`Description`",
    *(f"metrics.`{name}`" for name in METRICS),
)
TABLE = {"selectedColumns": COLUMNS, "runsHiddenMode": "SHOWALL"}


def experiment_tags() -> dict[str, str]:
    """The tags that a project's experiment has: its kind, and the view."""
    return {"mlflow.experimentKind": "custom_model_development", f"mlflow.sharedViewState.{VIEW}": json.dumps(TABLE)}


def runs_route(experiment: str) -> str:
    """The part of the address, from `#` on, that leads to the runs of an experiment."""
    return f"#/experiments/{experiment}/runs?workflowType={WORKFLOW}"


def view_route(experiment: str) -> str:
    """As `runs_route`, for a server that is not ours: the link brings the columns along."""
    return f"{runs_route(experiment)}&viewStateShareKey={VIEW}"


def remembered(experiment: str) -> dict[str, str]:
    """What a browser that has not been here is to remember, by its key in the browser's storage: the workflow, the columns, no open assistant."""
    return {
        "mlflow.workflowType_v1": json.dumps(WORKFLOW),
        f'MLflowLocalStorage-1.1-ExperimentPage-["{experiment}"]-ReactComponentState': json.dumps(TABLE),
        "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    }
