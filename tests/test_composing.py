"""params.yaml and Hydra: what is composed, and what is refused before any work."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from plumbline.pipeline.composing import load_params, problems, require_sound
from tests.conftest import ROOT


def stage(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "MLFLOW_TRACKING_URI": "off", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, env=environment, check=False
    )


def check(project: Path, *replacements: tuple[str, str]) -> str:
    """What `check` says of the default recipe after these replacements, each of which must apply."""
    recipe = (ROOT / "conf/recipe/default.yaml").read_text()
    for old, new in replacements:
        assert old in recipe, old
        recipe = recipe.replace(old, new, 1)
    (project / "params.yaml").write_text(recipe)
    done = stage("stages.check", cwd=project)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def expect(error: str, *messages: str) -> None:
    """Each message is on a line of its own and nothing else is complained of."""
    lines = [line for line in error.splitlines() if line.startswith("- ")]
    missing = [message for message in messages if not any(message in line for line in lines)]
    assert not missing, error
    assert len(lines) == len(messages), error


def test_the_default_recipe_is_sound(project: Path) -> None:
    done = stage("stages.check", cwd=project)
    assert done.returncode == 0, done.stderr
    assert (project / "artifacts/none").is_dir()
    assert (project / "artifacts/reward/none").is_dir()


def test_an_entry_composes_with_its_methods_values_and_the_command_line_wins(project: Path) -> None:
    done = stage("stages.align", "align=dpo", "align.beta=0.3", "--cfg", "job", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "beta: 0.3" in done.stdout
    assert "label_smoothing: 0.0" in done.stdout  # from conf/method/dpo.yaml
    assert "seed: 17" in done.stdout  # from params.yaml
    assert not (project / "artifacts").exists()


def test_all_mistakes_in_a_recipe_are_named_at_once_each_with_its_key(project: Path) -> None:
    error = check(
        project,
        ("beta: 0.1", "btea: 0.1"),
        ("beta: 0.15", "beta: strong"),
        ("signal: reject/rs", "signal: reject/rz"),
        ("    reward: rm\n\nalign:", "    reward: rm\n    strategy: statistical\n\nalign:"),
        ("    epochs: 1", "    kind: modle\n    epochs: 1"),
        ("    pairs: all_pairs", "    way: agreement\n    pairs: all_pairs"),
        ("  reward: rm\n  split: test", "  reward: rmm\n  split: tset"),
        ("  - ppo\n", "  - pppo\n"),
    )
    expect(
        error,
        "params.yaml: align.dpo: unknown key 'btea'. Did you mean 'beta'?",
        "params.yaml: rl.ppo: ",
        "params.yaml: align.rs.signal: there is no 'reject/rz'. Did you mean 'reject/rs'?",
        "params.yaml: reject.rs.beta: ",
        "params.yaml: reward_model.rm.kind: expected one of preference, cost, found 'modle'",
        "params.yaml: label.ranked.min_margin: ",
        "params.yaml: label.ranked.judge: ",
        "params.yaml: evaluate.reward: there is no 'rmm'. Did you mean 'rm'?",
        "params.yaml: evaluate.split: expected one of test, validation, found 'tset'",
        "params.yaml: evaluate: there is no policy 'pppo'",
    )


def test_a_key_that_dvc_needs_is_asked_for_and_one_output_made_twice_is_refused(project: Path) -> None:
    error = check(project, ("    policy: sft\n", ""), ("  ppo:  ", "  dpo:  "))
    assert "params.yaml: sample.round1.policy: missing; DVC needs it" in error
    assert "artifacts/policy/dpo made by align@dpo and rl@dpo" in error


def test_a_method_under_the_wrong_stage_is_sent_to_the_right_one(project: Path) -> None:
    error = check(
        project,
        (
            "    method: dpo\n    init: sft\n    signal: label/round1\n    beta: 0.1",
            "    method: grpo\n    init: sft\n    signal: label/round1",
        ),
    )
    expect(error, "params.yaml: align.dpo.method: expected a method that learns from rows, found grpo: move the entry to `rl`")


def test_rows_of_the_wrong_kind_and_values_out_of_range_are_refused_before_training(project: Path) -> None:
    error = check(project, ("signal: label/round1", "signal: data/sft"), ("signal: label/ranked", "signal: data/unpaired"))
    expect(
        error,
        "params.yaml: align.dpo.signal: expected preferences, found data/sft, which holds demonstrations",
        "params.yaml: reward_model.rm.signal: expected preferences, found data/unpaired, which holds unpaired",
    )
    error = check(project, ("beta: 0.1\n", "beta: -1\n    learning_rate: 0\n"), ("n: 8", "n: 0"))
    expect(error, "sample.round1.n: ", "align.dpo.learning_rate: ", "align.dpo.beta: ")


def test_a_section_that_nothing_reads_or_that_is_not_a_mapping_is_named(project: Path) -> None:
    error = check(project, ("\nalign:", "\nalgin:"), ("\nreject:", "\nreject: [a]\nlabels:"))
    assert "found 'algin'. Did you mean 'align'?" in error
    assert "params.yaml: reject: expected a mapping" in error
    assert "expected a section 'evaluate'" in check(project, ("\nevaluate:", "\nevaluation:"))
    assert "params.yaml" in check(project, ("seed: 17", "seed: 17\n  x: ["))


def test_what_knows_the_closed_world_alone_is_refused_on_other_data(project: Path) -> None:
    error = check(project, ("data: closed_world", "data: gsm8k"))
    assert "params.yaml: label.round1: judge: simulated: expected data: closed_world" in error
    assert "params.yaml: evaluate: judge: simulated" in error


def test_a_cycle_is_shown_as_the_nodes_on_it(project: Path) -> None:
    error = check(project, ("policy: sft\n", "policy: rs\n"))
    assert "a cycle" in error
    assert "align@rs" in error
    assert "sample@round1" in error


def test_a_conf_file_that_does_not_exist_is_named_with_those_that_do(project: Path) -> None:
    error = check(project, ("judge: simulated              #", "judge: simulatd #"))
    assert "simulatd" in error
    assert "simulated" in error.replace("simulatd", "")


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
    folders = ("metrics", "artifacts/curves", "artifacts/figures")
    gone = (
        "metrics/gone.json",
        "artifacts/figures/align/gone.json",
        "artifacts/curves/rl/gone.csv",
        "artifacts/figures/reward_model/gone.calibration.csv",
    )
    kept = ("metrics/dpo.json", "artifacts/figures/align/dpo.json", "artifacts/figures/reward_model/rm.calibration.csv")
    for name in (*gone, *kept):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("{}")
    assert stage("stages.check", cwd=project).returncode == 0
    left = {path.relative_to(project).as_posix() for folder in folders for path in (project / folder).rglob("*.*")}
    assert left == {*kept}


def test_problems_are_collected_from_every_schema_within_a_config() -> None:
    @dataclass
    class Rule:
        weight: float

        def problems(self) -> list[str]:
            return [] if self.weight > 0 else [f"weight: expected above 0, found {self.weight}"]

    @dataclass
    class Section:
        first: Rule
        rules: dict[str, Rule]

        def problems(self) -> list[str]:
            return ["first: expected another"]

    config = Section(Rule(0), {"good": Rule(1), "bad": Rule(-1)})
    assert problems(config) == [
        "first.weight: expected above 0, found 0",
        "rules.bad.weight: expected above 0, found -1",
        "first: expected another",
    ]
    with pytest.raises(ValueError, match=r"(?s)first\.weight.*rules\.bad\.weight"):
        require_sound(config)
