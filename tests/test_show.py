"""Claims about `make show`: who changed what, whose figures are whose, and that it fits a terminal."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plumbline.tools.show import Row, experiment_rows, table
from tests.conftest import ROOT

LISTING: list[dict[str, Any]] = json.loads((Path(__file__).parent / "experiments.json").read_text())
"""What `dvc exp show --json` printed of a project with two policies: an edit in the workspace, a commit, and from that commit an
experiment that succeeded, one that failed and one that waits."""

FIGURES = {"gold": 0.6572, "gold_gain": 0.154, "gold_gain_low": 0.1444, "win_rate": 0.6357, "harmful_fraction": 0.1528}


def test_a_real_listing_shows_each_experiment_once_with_its_own_figures_and_changes() -> None:
    rows = experiment_rows(LISTING)
    names = [name.split()[0] for name in dict.fromkeys(row.experiment for row in rows)]
    assert names == ["workspace", "main", "smaller-beta", "waiting", "fails"]
    changes = {row.experiment.split()[0]: row.changes for row in rows}
    assert changes == {
        "workspace": ("align.dpo.beta=0.3",),
        "main": ("align.dpo.beta=0.1",),
        "smaller-beta": ("align.dpo.beta=0.05",),
        "waiting": ("align.dpo.beta=0.2", "align.dpo.label_smoothing=0.1"),
        "fails": ("align.dpo.beta=1.0",),
    }
    golds = {(row.experiment.split()[0], row.policy): row.figures.get("gold") for row in rows}
    assert golds["main", "dpo"] == 0.657205
    assert golds["smaller-beta", "dpo"] == 0.662205


def test_an_experiment_that_failed_or_waits_is_not_shown_with_the_figures_of_its_commit() -> None:
    """DVC lists a failed experiment with them."""
    rows = {row.experiment.split()[0]: row for row in experiment_rows(LISTING)}
    for name, state in (("fails", "failed"), ("waiting", "queued")):
        assert rows[name].experiment.endswith(state)
        assert (rows[name].policy, rows[name].figures) == ("", {})


def test_a_workspace_without_changes_is_left_out() -> None:
    workspace, commit = LISTING
    same = {**workspace, "data": workspace["data"] | {"params": commit["data"]["params"], "metrics": commit["data"]["metrics"]}}
    assert "workspace" in {row.experiment for row in experiment_rows(LISTING)}
    assert "workspace" not in {row.experiment for row in experiment_rows([same, commit])}


def experiment(name: str, seed: int, beta: float, gold: float) -> dict[str, Any]:
    """An experiment as DVC lists it, with one policy."""
    params = {"seed": seed, "align": {"dpo": {"beta": beta}}}
    data = {"params": {"params.yaml": {"data": params}}, "metrics": {"metrics/dpo.json": {"data": FIGURES | {"gold": gold}}}}
    return {"rev": name * 8, "name": name, "data": data, "error": None}


def test_seeds_of_one_experiment_are_pooled_with_their_spread_and_others_are_not() -> None:
    """Gold 0.86, 0.84 and 0.85: mean 0.85, standard deviation 0.01."""
    others = [experiment("second", 18, 0.1, 0.84), experiment("third", 19, 0.1, 0.85), experiment("other", 18, 0.5, 0.1)]
    branches = [{"revs": [one], "executor": None, "name": one["name"]} for one in others]
    commit = experiment("main", 17, 0.1, 0.86) | {"experiments": branches}
    rows = experiment_rows([commit])
    assert [row.policy for row in rows] == ["dpo"] * 4 + ["dpo", "  ±"]
    mean, spread = rows[-2:]
    assert mean.experiment == "3 seeds of main mainmai: mean, ± standard deviation"
    assert mean.changes == ("seed=17, 18, 19",)
    assert (mean.figures["gold"], spread.figures["gold"]) == (pytest.approx(0.85), pytest.approx(0.01))
    assert spread.figures["win_rate"] == 0.0
    assert table(rows).splitlines()[-1].split()[0] == "±"
    elsewhere = experiment("next", 20, 0.1, 0.9) | {"experiments": None}  # other code
    assert len(experiment_rows([commit, elsewhere])) == len(rows) + 1


def test_metrics_that_are_not_a_policys_or_cannot_be_read_make_no_row() -> None:
    metrics = {
        "metrics/dpo.json": {"data": FIGURES},
        "metrics/ppo.json": {"error": {"type": "FileNotFoundError", "msg": "no such file"}},
        "metrics/prepare/prepare.json": {"data": {"rows": 1}},
    }
    commit = {"rev": "c" * 40, "name": "main", "data": {"params": {}, "metrics": metrics}, "error": None, "experiments": None}
    assert [(row.policy, row.figures) for row in experiment_rows([commit])] == [("dpo", FIGURES)]
    broken = {
        "rev": "d" * 40,
        "name": None,
        "data": None,
        "error": {"type": "YAMLError", "msg": "bad dvc.yaml"},
        "experiments": None,
    }
    [row] = experiment_rows([broken])
    assert "bad dvc.yaml" in row.experiment


def test_the_table_has_a_heading_for_each_experiment_and_a_line_for_each_policy() -> None:
    rows = [Row("main 1234567", ("align.dpo.beta=0.1",), policy, FIGURES) for policy in ("sft", "dpo")]
    lines = table([*rows, Row("later 7654321, queued", ("align.dpo.beta=0.2",), "", {})]).splitlines()
    assert lines[0].split() == ["gold", "gain", "at", "least", "harmful", "win", "rate"]  # other figures have no value here
    assert lines[2] == "main 1234567  align.dpo.beta=0.1"
    assert [line.split() for line in lines[3:5]] == [
        [policy, "0.66", "+0.15", "+0.14", "15%", "64%"] for policy in ("sft", "dpo")
    ]
    assert lines[5:] == ["later 7654321, queued  align.dpo.beta=0.2", "  no figures"]


def test_the_table_fits_its_width_whatever_the_names() -> None:
    every = FIGURES | {"over_refusal_fraction": 0.05, "accuracy": 0.34, "reward": -1.5, "kl": 12.3, "length_tokens": 123.4}
    every |= {"gold_at_1": 0.6}
    changes = tuple(f"reward_rules.a_long_entry_name.rules.rule_{number}.weight={number}" for number in range(30))
    rows = [Row("a-very-long-experiment-name-" * 8, changes, "policy_with_a_very_long_name_indeed", every)]
    for width in (112, 120, 160):
        lines = table(rows, width).splitlines()
        assert max(map(len, lines)) <= width
        assert "policy_w" in lines[-1]
        assert "and 18 more" in lines[-2]


def test_without_figures_there_is_a_message_and_no_table(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    commands = (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"], ["git", *author, "commit", "-qm", "start"])
    for command in commands:
        subprocess.run(command, cwd=tmp_path, check=True)
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "plumbline.tools.show"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
    assert "no experiment has figures yet" in done.stderr
