"""What people find in MLflow: described runs, ordered metrics, tables that grow, models with their registry, a judge's conversations."""

# ruff: noqa: F401, F811  fixtures of another module

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND, NOT_IMPLEMENTED, PERMISSION_DENIED
from mlflow.utils.validation import _validate_model_name

import stages.rl
from plumbline.evaluation.figures import HEADLINE, HEADLINE_IF_MEASURED, QUALITY
from plumbline.pipeline import mlflow_calls, tracking_values
from plumbline.pipeline.execution import executing
from plumbline.pipeline.landing import METRICS
from plumbline.pipeline.metric_names import figure_rows, step_metric
from plumbline.pipeline.mlflow_calls import deliver, experiment_name
from plumbline.pipeline.mlflow_models import registered_name
from plumbline.pipeline.outbox import Outbox
from plumbline.pipeline.provenance import Input, maker_run
from plumbline.pipeline.records import write_json
from plumbline.pipeline.tracking import tracked
from tests.mlflow_stores import Config, Server, empty_store, running_server, runs, said, server, store, unsent, work


def client() -> MlflowClient:
    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def made_by(project: Path, path: str, run_file: str) -> None:
    """Writes dvc.lock as DVC does after a node that made `path`."""
    outs = [{"path": path, "md5": "0" * 32}, {"path": run_file, "md5": "1" * 32}]
    (project / "dvc.lock").write_text(yaml.safe_dump({"stages": {"align@dpo": {"outs": outs}}}))


# --- one run -----------------------------------------------------------------------------------------------------------


def test_a_run_says_what_its_stage_does_from_what_and_what_came_out(store: Path, project: Path) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    (project / "artifacts/policy/dpo").mkdir(parents=True)
    write_json(project / "artifacts/runs/align/dpo.json", {"run_id": "a" * 32})
    made_by(project, "artifacts/policy/dpo", "artifacts/runs/align/dpo.json")
    with executing("evaluate", "dpo", Config(), ["artifacts/policy/dpo"]) as stage:
        stage.run.log_figures({"gold": 0.5, "gold_low": 0.4, "unknown": None}, ["gold"])
    (run,) = runs()
    note, tags = run.data.tags["mlflow.note.content"], run.data.tags
    assert note.startswith("Scores the answers of one policy by the verifier")
    assert "| gold | 0.5 |" in note
    assert "gold_low" not in note
    assert (
        f"`artifacts/policy/dpo` (d41d8cd9), made by [this run](#/experiments/{run.info.experiment_id}/runs/{'a' * 32})" in note
    )
    assert tags["mlflow.source.name"] == "stages/evaluate.py"
    assert tags["dvc.stage"] == "evaluate@dpo"
    assert len(tags["md5.dvc.lock"]) == 32
    assert tags["mlflow.source.git.branch"]
    assert tags["mlflow.user"]


def test_a_run_that_fails_says_why(store: Path) -> None:
    with pytest.raises(ValueError, match="broken"), tracked("sft", params={}, tags={}, inputs=[]):
        raise ValueError("a broken row")
    (run,) = runs()
    assert run.info.status == "FAILED"
    assert "**It failed**: ValueError: a broken row" in run.data.tags["mlflow.note.content"]


def test_the_maker_of_a_path_is_the_run_of_the_node_whose_output_it_lies_in(project: Path) -> None:
    assert maker_run("artifacts/data/sft/train.jsonl") is None
    made_by(project, "artifacts/data/sft", "artifacts/runs/prepare/prepare.json")
    assert maker_run("artifacts/data/sft/train.jsonl") is None  # DVC has yet to check it out
    write_json(project / "artifacts/runs/prepare/prepare.json", {"run_id": "7"})
    assert maker_run("artifacts/data/sft/train.jsonl") == "7"
    assert maker_run("artifacts/data/prompts") is None


def test_the_experiment_has_the_name_of_the_projects_folder_unless_the_environment_says_another(
    store: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work()
    assert experiment_name() == project.name
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    work()
    assert {experiment.name for experiment in client().search_experiments()} >= {project.name, "another"}


# --- metrics and tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainers_name", "name"),
    [
        ("loss", "train/loss"),
        ("policy_loss", "train/loss"),
        ("eval_loss", "eval/loss"),
        ("grad_norm", "train/grad_norm"),
        ("policy_gradient_norm", "train/grad_norm"),
        ("gradient_norm", "train/grad_norm"),
        ("learning_rate", "train/learning_rate"),
        ("kl_k1", "train/kl_k1"),
        ("rewards/chosen", "train/implicit_rewards_chosen"),
        ("eval_rewards/margins", "eval/implicit_rewards_margins"),
        ("generation_seconds", "system/generation_seconds"),
        ("tokens_per_second", "system/tokens_per_second"),
    ],
)
def test_a_metric_of_a_step_has_one_name_whatever_the_trainer(trainers_name: str, name: str) -> None:
    assert step_metric(trainers_name) == name


def test_headline_figures_are_metrics_and_all_figures_stand_in_a_table_with_their_bounds(store: Path) -> None:
    figures = {"gold": 0.5, "gold_low": 0.4, "gold_high": 0.6, "harmful_n": 7, "win_rate": None}
    with tracked("evaluate@dpo", params={}, tags={}, inputs=[]) as run:
        run.log_figures(figures, ["gold", "win_rate"])
    assert runs()[0].data.metrics == {"gold": 0.5}
    table = json.loads(Path(client().download_artifacts(str(run.id), "tables/figures.json")).read_text())
    assert table["columns"] == ["figure", "value", "low", "high"]
    assert table["data"] == [["gold", 0.5, 0.4, 0.6], ["harmful_n", 7.0, None, None]]


def test_a_figure_whose_name_ends_like_a_bound_is_a_figure() -> None:
    assert figure_rows({"tide_low": 1.0}) == [{"figure": "tide_low", "value": 1.0, "low": None, "high": None}]


def test_a_table_grows_and_is_whole_at_every_step(store: Path, said: Any) -> None:
    with tracked("sft", params={}, tags={}, inputs=[]) as run:
        for step in (0, 10):
            run.extend_table("samples", [{"step": step, "completion": f"at {step}"}])
            table = client().download_artifacts(run.id, "tables/samples.json")
            assert json.loads(Path(table).read_text())["data"][-1] == [step, f"at {step}"]
    assert len(json.loads(Path(table).read_text())["data"]) == 2
    assert said.messages == []


def test_the_runs_table_has_the_headline_figures_of_evaluations_and_none_that_training_also_logs_under_the_same_name() -> None:
    of_evaluations = {*HEADLINE, *HEADLINE_IF_MEASURED}
    assert set(METRICS) - of_evaluations == {"train/reward", "validation_loss"}
    assert set(QUALITY) | {"reward", "kl"} <= set(METRICS)
    assert set(METRICS) & set(stages.rl.HEADLINE) == set()


# --- models ------------------------------------------------------------------------------------------------------------


def trained(project: Path, name: str) -> Any:
    """A run of a stage that trains the policy `name`."""
    folder = project / "artifacts/policy" / name
    folder.mkdir(parents=True, exist_ok=True)
    with tracked(f"align@{name}", params={"align": {"beta": 0.1}}, tags={}, inputs=[]) as run:
        run.log_model(name, "policy", folder, f"# {name}\n\nThe card of {name}.")
    return run


def versions() -> list[Any]:
    return sorted(
        client().search_model_versions(f"name='{registered_name(experiment_name())}'"), key=lambda version: int(version.version)
    )


def test_a_policy_becomes_a_version_of_the_projects_model_without_a_copy_of_its_weights(
    store: Path, project: Path, said: Any
) -> None:
    run = trained(project, "dpo")
    (version,) = versions()
    assert version.source == str(project / "artifacts/policy/dpo")
    assert version.run_id == run.id
    assert version.description == "The card of dpo."  # the registry's table shows the first line, and the name beside it
    (model,) = client().search_logged_models([client().get_run(run.id).info.experiment_id])
    assert (model.name, model.model_type, model.status) == ("dpo", "policy", "READY")
    assert model.params["align.beta"] == "0.1"
    assert client().get_run(run.id).outputs.model_outputs[0].model_id == model.model_id
    assert not [*project.rglob("*.safetensors")]
    for record in ("model", "version"):
        deliver(os.environ["MLFLOW_TRACKING_URI"], run.id, {record: ["dpo", "policy", version.source, "The card of dpo."]})
    assert len(versions()) == 1  # sent twice
    assert said.messages == []


def test_a_server_that_takes_no_folder_of_another_machine_gets_the_logged_model_as_source(
    server: Server, project: Path, said: Any
) -> None:
    trained(project, "dpo")
    assert versions()[-1].source.startswith("models:/m-")
    assert said.messages == []


@pytest.mark.parametrize("status", [403, 404, 501])
@pytest.mark.parametrize("part", ["logged-models", "registered-models", "model-versions"])
def test_what_a_server_does_not_have_or_allow_costs_one_line_and_holds_up_nothing(
    server: Server, project: Path, part: str, status: int, said: Any
) -> None:
    server.lacks = (part, status)
    run = trained(project, "dpo")
    assert client().get_run(run.id).info.status == "FINISHED"
    assert len(said.messages) == 1
    assert "the server does not have or does not allow this" in said.messages[0]
    assert unsent(project) == []
    if part != "logged-models":  # the rest is there
        assert len(client().search_logged_models([client().get_run(run.id).info.experiment_id])) == 1


@pytest.mark.parametrize("code", [ENDPOINT_NOT_FOUND, NOT_IMPLEMENTED, PERMISSION_DENIED])
def test_a_server_without_logged_models_still_has_versions_and_the_figures_of_evaluations(
    store: Path, project: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: Any
) -> None:
    def lacking(*_: Any, **__: Any) -> None:
        raise MlflowException("no such path", code)

    for call in ("search_logged_models", "create_logged_model"):
        monkeypatch.setattr(MlflowClient, call, lacking)
    run = trained(project, "dpo")
    write_json(project / "artifacts/runs/align/dpo.json", {"run_id": run.id})
    made_by(project, "artifacts/policy/dpo", "artifacts/runs/align/dpo.json")
    with tracked("evaluate@dpo", params={}, tags={}, inputs=[]) as evaluation:
        evaluation.log_evaluation("artifacts/policy/dpo", {"gold": 0.9}, "# dpo\n\nGold is 0.9.")
    assert client().get_run(evaluation.id).data.metrics == {"gold": 0.9}
    assert versions()[0].description == "Gold is 0.9."
    assert len(said.messages) == 1


NAMES = ["plain", "a/b", "a:b", "a-b", "/Users/ann@x/align", ".", "..", "a/../b", "x" * 300, "x" * 301, "정렬 1", "//", "::"]


def test_every_name_of_an_experiment_becomes_a_name_that_the_registry_takes_and_no_two_become_one() -> None:
    names = [registered_name(name) for name in NAMES]
    for name in names:
        _validate_model_name(name)
        assert len(name) <= 250
    assert len({*names}) == len(NAMES)
    assert [name for name in NAMES if registered_name(name) == name] == ["plain", "a-b", "정렬 1"]


def test_the_policies_of_an_experiment_whose_name_is_a_path_are_registered(
    store: Path, project: Path, monkeypatch: pytest.MonkeyPatch, said: Any
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team/align: 1")
    run = trained(project, "dpo")
    with tracked("report", params={}, tags={}, inputs=[]):
        deliver(os.environ["MLFLOW_TRACKING_URI"], str(run.id), {"best": [run.id, "gold"]})
    [version] = versions()
    assert client().get_model_version_by_alias(version.name, "best").run_id == run.id
    assert said.messages == []


def test_an_evaluation_writes_its_figures_to_the_model_and_the_best_gets_the_alias(store: Path, project: Path, said: Any) -> None:
    makers = {name: trained(project, name).id for name in ("dpo", "ppo")}
    for name, gold in {"dpo": 0.9, "ppo": 0.8}.items():
        write_json(project / "artifacts/runs/align/dpo.json", {"run_id": makers[name]})
        made_by(project, "artifacts/policy/it", "artifacts/runs/align/dpo.json")
        with tracked(f"evaluate@{name}", params={}, tags={}, inputs=[]) as run:
            run.log_evaluation("artifacts/policy/it", {"gold": gold, "accuracy": None}, f"# {name}\n\nGold is {gold}.")
            if name == "dpo":
                run.log_best("artifacts/policy/it", "gold")
    best = client().get_model_version_by_alias(experiment_name(), "best")
    assert best.tags["policy"] == "dpo"
    assert best.tags["gold"] == "0.9"
    assert best.description == "Gold is 0.9."
    assert client().get_registered_model(experiment_name()).tags["best_by"] == "gold"
    evaluation = client().get_run(runs()[0].info.run_id)
    assert evaluation.data.metrics == {"gold": 0.8}
    assert evaluation.inputs.model_inputs[0].model_id == client().get_run(makers["ppo"]).outputs.model_outputs[0].model_id
    assert client().list_artifacts(evaluation.info.run_id)[0].path == "README.md"
    assert said.messages == []


def test_an_evaluation_of_a_policy_that_this_mlflow_does_not_know_still_has_its_figures(store: Path, said: Any) -> None:
    for folder in ("artifacts/policy/nobodys", "artifacts/policy/it"):
        with tracked("evaluate@it", params={}, tags={}, inputs=[]) as run:
            run.log_evaluation(folder, {"gold": 0.5}, "# it")
            run.log_best(folder, "gold")
        assert runs()[0].data.metrics == {"gold": 0.5}
        write_json("artifacts/runs/align/it.json", {"run_id": "f" * 32})
        made_by(Path(), "artifacts/policy/it", "artifacts/runs/align/it.json")
    assert said.messages == []


# --- traces ------------------------------------------------------------------------------------------------------------


def trace(number: int, verdict: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Which is better, {number}?"}]
    attributes = {"judge": "panel", "attempts": 1}
    return {
        "name": "label@round1",
        "messages": messages,
        "reply": "Verdict: A",
        "verdict": verdict,
        "judge": "a model",
        "nanoseconds": 10**18 + number,
        "attributes": attributes,
    }


def test_a_judges_conversations_are_traces_of_the_run_with_prompt_reply_and_verdict(store: Path, said: Any) -> None:
    traces = [trace(0, "a"), trace(1, None), trace(2, [1.0, 2.0]), trace(3, 7.0)]
    with tracked("label@round1", params={}, tags={}, inputs=[]) as run:
        run.log_traces(traces)
        deliver(os.environ["MLFLOW_TRACKING_URI"], str(run.id), {"traces": traces})  # sent twice
    found = client().search_traces([runs()[0].info.experiment_id])
    assert {one.info.trace_metadata["mlflow.sourceRun"] for one in found} == {run.id}
    by_number = sorted(found, key=lambda one: one.data.spans[0].inputs["messages"][0]["content"])
    assert [one.data.spans[0].outputs["verdict"] for one in by_number] == ["a", None, [1.0, 2.0], 7.0]
    assert by_number[0].data.spans[0].inputs == {"messages": traces[0]["messages"]}
    assert by_number[0].data.spans[0].outputs["reply"] == "Verdict: A"
    assert [[note.feedback.value for note in one.info.assessments] for one in by_number] == [
        ["a"],
        ["unread"],
        [[1.0, 2.0]],
        [7.0],
    ]
    assert said.messages == []


def test_a_server_that_takes_no_traces_costs_one_line(server: Server, said: Any) -> None:
    with tracked("label@round1", params={}, tags={}, inputs=[]) as run:
        run.log_traces([trace(0, "a")])
        run.log_figures({"gold": 0.5})
    assert len(said.messages) == 1
    assert said.messages[0].startswith("MLflow refused traces: the server does not have or does not allow this (")
    assert runs()[0].data.metrics == {"gold": 0.5}


# --- what is logged ----------------------------------------------------------------------------------------------------


@pytest.fixture
def values(own_conf: Path) -> Any:
    """Writes conf/tracking.yaml with changed values."""

    def write(**changes: Any) -> None:
        file = own_conf / "tracking.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))
        tracking_values.conf_values.cache_clear()
        tracking_values.tracking_values.cache_clear()

    yield write
    tracking_values.conf_values.cache_clear()
    tracking_values.tracking_values.cache_clear()


def test_values_that_do_not_fit_are_named_before_any_work(values: Any, own_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_values, "CONF", own_conf)
    values(sample_times=1, judge_traces=-1)
    with (
        pytest.raises(ValueError, match=r"conf/tracking.yaml: sample_times: expected at least 2.*found 1") as error,
        executing("sft", None, Config(), []),
    ):
        pytest.fail("work began")
    assert "judge_traces: expected 0 or above, found -1" in str(error.value)
    values(judge_trace=3)
    with pytest.raises(ValueError, match=r"unknown key 'judge_trace'\. Did you mean 'judge_traces'"):
        tracking_values.tracking_values()


def test_system_metrics_are_measured_when_they_are_asked_for(
    store: Path, values: Any, own_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setattr(tracking_values, "CONF", own_conf)
    values(system_metrics_seconds=0.2)
    with tracked("sft", params={}, tags={}, inputs=[]):
        time.sleep(1.5)
    assert runs()[0].data.metrics["system/system_memory_usage_megabytes"] > 0
    values(system_metrics_seconds=0)
    work()
    assert not [name for name in runs()[0].data.metrics if name.startswith("system/")]


def test_tables_that_cannot_be_stored_hold_up_no_figures(store: Path, monkeypatch: pytest.MonkeyPatch, said: Any) -> None:
    def failing(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(MlflowClient, "log_text", failing)
    outbox = Outbox(os.environ["MLFLOW_TRACKING_URI"], mlflow_calls.start_run(os.environ["MLFLOW_TRACKING_URI"], "sft", {}).run)
    outbox.add({"text": ["README.md", "# card"]})
    outbox.records.append({"metrics": [["gold", 0.5, 1, 0]]})
    outbox.send()
    assert [[*record] for record in outbox.records] == [["text"]]
    assert runs()[0].data.metrics == {"gold": 0.5}
