"""params.yaml and Hydra: what is composed, and what is refused before any work."""

import subprocess
import sys
from pathlib import Path

import pytest

from stages.pipeline.composing import load_params
from tests.conftest import ROOT


def stage(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "MLFLOW_TRACKING_URI": "off", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, env=environment, check=False
    )


def check(project: Path, recipe: str) -> str:
    (project / "params.yaml").write_text(recipe)
    done = stage("stages.check", cwd=project)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def recipe(project: Path) -> str:
    return (project / "params.yaml").read_text()


def test_the_default_recipe_is_sound(project: Path) -> None:
    done = stage("stages.check", cwd=project)
    assert done.returncode == 0, done.stderr
    assert (project / "artifacts/sample/none").is_dir()


def test_an_entry_composes_with_its_methods_values_and_the_command_line_wins(project: Path) -> None:
    done = stage("stages.align", "align=dpo", "align.beta=0.3", "--cfg", "job", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "beta: 0.3" in done.stdout
    assert "label_smoothing: 0.0" in done.stdout  # from conf/method/dpo.yaml
    assert "seed: 17" in done.stdout  # from params.yaml
    assert not (project / "artifacts").exists()


def test_a_mistyped_key_is_named_with_the_one_meant(project: Path, recipe: str) -> None:
    error = check(project, recipe.replace("beta: 0.1", "btea: 0.1"))
    assert "params.yaml: align.dpo" in error
    assert "'btea'" in error
    assert "'beta'" in error


def test_a_wrong_type_names_the_key(project: Path, recipe: str) -> None:
    error = check(project, recipe.replace("beta: 0.1", "beta: strong"))
    assert "align.dpo" in error
    assert "strong" in error


def test_values_that_do_not_fit_together_stop_the_build_too(project: Path, recipe: str) -> None:
    error = check(
        project, recipe.replace("    reward: rm\n    cost: none", "    reward: rm\n    strategy: statistical\n    cost: none")
    )
    assert error.count("params.yaml: reject.rs") == 1
    assert "beta above 0, found None" in error
    error = check(
        project,
        recipe.replace("    second: none", "    kind: modle\n    second: none", 1),
    )
    assert "params.yaml: reward.rm.kind: expected one of model, cost" in error
    error = check(project, recipe.replace("    pairs: all_pairs", "    way: agreement\n    pairs: all_pairs", 1))
    assert "params.yaml: label.ranked: way: agreement asks no judge" in error


def test_a_node_that_does_not_exist_is_named_with_those_that_do(project: Path, recipe: str) -> None:
    error = check(project, recipe.replace("signal: reject/rs", "signal: reject/rz"))
    assert "align.rs.signal" in error
    assert "Did you mean 'reject/rs'?" in error


def test_what_only_evaluation_reads_is_checked_before_training(project: Path, recipe: str) -> None:
    before, _, after = recipe.partition("\nevaluate:")
    for right, wrong, said in (
        ("reward: rm", "reward: rmm", "evaluate.reward: there is no 'rmm'. Did you mean 'rm'?"),
        ("split: test", "split: tset", "evaluate.split: expected one of test, validation, found 'tset'"),
        ("temperature: 1.0", "temperature: 0", "evaluate.temperature: expected more than 0"),
        ("against: sft", "against: none", "there is no policy 'none'"),
    ):
        assert said in check(project, f"{before}\nevaluate:{after.replace(right, wrong)}")


def test_a_section_that_nothing_reads_or_that_is_no_mapping_is_named(project: Path, recipe: str) -> None:
    assert "there is no section 'evalaute'. Did you mean 'evaluate'?" in check(
        project, recipe.replace("\nevaluate:", "\nevalaute:")
    )
    assert "params.yaml: revise: expected a mapping" in check(project, recipe.replace("\nrevise: {}", "\nrevise: [a]", 1))
    assert "params.yaml" in check(project, recipe + "\nseed: 18\n  x: [")


def test_what_knows_the_closed_world_alone_is_refused_on_other_data(project: Path, recipe: str) -> None:
    error = check(project, recipe.replace("data: closed_world", "data: gsm8k"))
    assert "params.yaml: label.round1: judge: simulated knows nothing but `data: closed_world`, found data: gsm8k" in error
    assert "params.yaml: evaluate: judge: simulated" in error


def test_a_cycle_is_shown_as_the_nodes_on_it(project: Path, recipe: str) -> None:
    cyclic = recipe.replace("policy: sft\n    extends", "policy: rs\n    extends")
    error = check(project, cyclic)
    assert "a cycle" in error
    assert "align@rs" in error
    assert "sample@round1" in error


def test_a_conf_file_that_does_not_exist_is_named_with_those_that_do(project: Path, recipe: str) -> None:
    error = check(project, recipe.replace("judge: simulated              #", "judge: simulatd #"))
    assert "simulatd" in error
    assert "simulated" in error.replace("simulatd", "")


def test_a_key_that_dvc_needs_is_asked_for(project: Path, recipe: str) -> None:
    error = check(project, recipe.replace("    extends: none\n", ""))
    assert "sample.round1.extends" in error
    assert "none" in error


def test_an_interpolation_is_refused_because_dvc_cannot_see_it(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("seed: 1\nsft:\n  epochs: ${seed}\n")
    with pytest.raises(ValueError, match=r"sft\.epochs"):
        load_params(path)


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("sft:\n  learning_rate: 1e-4\n")
    assert load_params(path)["sft"]["learning_rate"] == 1e-4


def test_a_stage_by_hand_without_its_inputs_says_which_stage_makes_them(project: Path) -> None:
    done = stage("stages.align", "align=dpo", cwd=project)
    assert done.returncode == 1
    assert "artifacts/policy/sft is missing" in done.stderr
    assert "dvc repro" in done.stderr
    assert "Traceback" not in done.stderr


def test_leftovers_of_removed_entries_do_not_reach_the_report(project: Path) -> None:
    gone = ("metrics/gone.json", "metrics/align/gone.json", "artifacts/curves/align/gone.csv", "artifacts/calibration/gone.csv")
    kept = ("metrics/align/dpo.json", "artifacts/calibration/rm.csv")
    for name in (*gone, *kept):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("{}")
    assert stage("stages.check", cwd=project).returncode == 0
    left = {
        path.relative_to(project).as_posix()
        for folder in ("metrics", "artifacts/curves", "artifacts/calibration")
        for path in (project / folder).rglob("*.*")
    }
    assert left == {*kept}
    assert (project / "artifacts/calibration/none").is_dir()  # the folder is there where nothing makes a reward
