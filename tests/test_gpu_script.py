"""The measurement on a GPU (tests/gpu) at work on a CPU: it runs every method, needs little, and reports what fails."""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from tests.conftest import ROOT
from tests.gpu import measure, needed
from tests.gpu.checks import checks, loss_curves
from tests.gpu.meter import Mark, peak_flops, rates

BLOCKING = "import sys\nsys.modules.update(dict.fromkeys({modules}))\n"
"""A sitecustomize.py, which Python imports first: from then on, importing one of the modules is an ImportError."""


class DryRun(NamedTuple):
    code: int
    output: str
    errors: str
    report: Mapping[str, Any]


def superfluous_modules() -> list[str]:
    """The modules of all locked libraries that the measurement does not name as needed, and that PyTorch does not need."""
    locked = needed.read_lock((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    others = set(locked) - needed.with_their_needs({*needed.NAMED, "torch"}, locked)
    libraries = importlib.metadata.packages_distributions().items()
    return sorted(module for module, names in libraries if {name.lower().replace("_", "-") for name in names} <= others)


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> DryRun:
    """`run.sh --dry-run` in an environment that has nothing but what needed.py names."""
    folder = tmp_path_factory.mktemp("gpu")
    blocked = superfluous_modules()
    assert {"dvc", "mlflow", "sklearn", "openai", "matplotlib"} <= set(blocked)
    (folder / "sitecustomize.py").write_text(BLOCKING.format(modules=blocked))
    environment = os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(folder),
        "OUT": str(folder),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [str(ROOT / "tests/gpu/run.sh"), "--dry-run"]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    return DryRun(done.returncode, done.stdout, done.stderr, json.loads((folder / "gpu.json").read_text()))


@pytest.mark.slow
def test_the_dry_run_runs_every_method_without_dvc_and_mlflow(dry_run: DryRun) -> None:
    runs = dry_run.report["runs"]
    assert {name: row["error"] for name, row in runs.items() if row["status"] != "ok"} == {}
    assert dry_run.code == 0, dry_run.errors
    methods = {file.stem for file in (ROOT / "conf/method").glob("*.yaml")} - {"merge"}
    assert methods | {"sampling", "reward_model", "sft_lora"} <= set(runs)
    for name in methods | {"reward_model", "sft_lora"}:
        assert runs[name]["trained_tokens_per_second"] > 0, name
        assert runs[name]["flops_per_second"] > 0, name
        assert runs[name]["peak_gib"] > 0, name
    for name in ("sampling", "grpo", "rloo", "ppo"):
        assert runs[name]["sampled_tokens_per_second"] > 0, name
    assert [len(runs[name]["curve"]["loss"]) for name in ("sft", "dpo", "kto", "orpo", "reward_model")] == [2] * 5
    lines = dry_run.output.splitlines()
    assert all(any(line.split()[:2] == [name, "ok"] for line in lines) for name in runs)


@pytest.mark.slow
def test_the_checks_of_the_dry_run_hold(dry_run: DryRun) -> None:
    held = {check["claim"]: check["held"] for check in dry_run.report["checks"]}
    assert held.pop("memory does not grow over steps") is None  # known on a GPU only
    assert len(held) == 8
    assert set(held.values()) == {True}


def test_a_run_that_fails_is_reported_and_the_others_go_on() -> None:
    def failing() -> Mapping[str, Any]:
        raise ValueError("the first line\nthe last line")

    done: list[int] = []
    results = measure.run_all({"wrong": failing, "right": lambda: {"peak_gib": 1.0}}, 60, lambda so_far: done.append(len(so_far)))
    assert [row["status"] for row in results.values()] == ["failed", "ok"]
    assert results["wrong"]["error"] == "the last line"
    assert done == [1, 2]
    assert measure.exit_code(results, []) == 1
    assert measure.exit_code({"right": results["right"]}, []) == 0
    assert "failed" in measure.table(results)


def test_runs_end_when_the_time_is_over() -> None:
    """A run gets a third of 0.3 s, whatever it catches; the last one comes after the end."""

    def stubborn() -> Mapping[str, Any]:
        while True:
            try:
                time.sleep(5)
            except Exception:  # noqa: BLE001  as a library might
                continue

    results = measure.run_all(dict.fromkeys("abcd", stubborn), 0.3, lambda so_far: None)
    assert [row["status"] for row in results.values()] == ["failed", "failed", "failed", "skipped"]
    assert "OutOfTime: stopped after" in results["a"]["error"]
    assert sum(row.get("seconds", 0) for row in results.values()) < 1


def test_rates_are_those_of_the_steps_after_the_warm_up() -> None:
    marks = [
        Mark(0, 100, 0, 9, 2**20),
        Mark(10, 200, 50, 20, 3 * 2**20),
        Mark(12, 1200, 550, 270, 4 * 2**20),
        Mark(14, 2200, 1050, 520, 5 * 2**20),
    ]
    figures = rates(marks, warm_up=2, parameters=10, flops_per_trained=6, peak=70_000)
    assert figures == {
        "steps": 2,
        "seconds_per_step": 2,
        "trained_tokens_per_second": 500,  # 2,000 in 4 s
        "read_tokens_per_second": 250,
        "padding_fraction": 0.2,  # 500 beside 2,000
        "flops_per_second": 10 * (6 * 2000 + 2 * 1000) / 4,
        "utilisation": 0.5,
        "growth_mib": 2,
    }


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("Tesla T4", None),
        ("CPU", None),
    ],
)
def test_a_devices_peak_is_found_by_the_words_of_its_name(device: str, peak: float | None) -> None:
    assert peak_flops(device) == peak


def test_checks_fail_beyond_their_tolerances_and_are_open_without_figures() -> None:
    sft = {"curve": {"loss": [2.0, 1.0]}, "weights": "a", "growth_mib": 40.0}
    results = {
        "sampling": {"logps_gap": 0.3, "logps_gap_mean": 0.01, "repeated": False},
        "sft": sft,
        "sft_fp32": {"curve": {"loss": [2.0, 1.11]}},  # 0.11 is more than 5 % of 2
        "sft_again": sft | {"weights": "b"},
    }
    held = [check.held for check in checks(results)]
    assert held == [False, None, False, None, False, False, None, None, False]
    assert measure.exit_code({}, checks(results)) == 1
    near = results | {"sft_fp32": {"curve": {"loss": [2.0, 1.05]}}, "sft_again": sft, "sft": sft | {"growth_mib": 1.0}}
    assert [check.held for check in checks(near)][2:6] == [True, None, False, True]


@pytest.mark.parametrize(
    ("gaps", "held"),
    [
        ([0.0, 0.09, 0.0, 0.0], True),
        ([0.0, 0.11, 0.0, 0.0], False),  # more than 5 % of the first loss, 2
        ([0.05, 0.05, 0.05, 0.05], False),  # more than 2 % on average
    ],
)
def test_bf16_follows_fp32_if_each_loss_and_their_mean_are_near(gaps: list[float], held: bool) -> None:
    fp32 = {"curve": {"loss": [2.0, 1.5, 1.2, 1.0]}}
    bf16 = {"curve": {"loss": [loss + gap for loss, gap in zip(fp32["curve"]["loss"], gaps, strict=True)]}}
    assert loss_curves("SFT", bf16, fp32).held is held


def test_what_a_library_needs_is_read_from_the_lock() -> None:
    lock = """
one==1.0 \\
    --hash=sha256:00
    # via plumbline (pyproject.toml)
two[extra]==2.1 \\
    --hash=sha256:00
    # via
    #   one
    #   other
three==3 \\
    --hash=sha256:00
    # via two
other==4 \\
    --hash=sha256:00
    # via plumbline (pyproject.toml)
"""
    locked = needed.read_lock(lock)
    assert {name: library.version for name, library in locked.items()} == {"one": "1.0", "two": "2.1", "three": "3", "other": "4"}
    assert needed.with_their_needs({"one"}, locked) == {"one", "two", "three"}
    assert needed.needed(everything=False) == []  # this environment has all of them
