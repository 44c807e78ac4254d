"""Claims about what is done before there is work: `check`, `--help` and a typing error import nothing that takes seconds, and a `make repro` that
has nothing to do reads no file twice.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc.cli import main as dvc
from dvc.repo import Repo
from dvc.utils import strictyaml

from plumbline.graph import STAGES
from tests.conftest import ROOT

HEAVY = (
    "accelerate",
    "datasets",
    "matplotlib",
    "mlflow",
    "pandas",
    "pyarrow",
    "ray",
    "scipy",
    "sympy",
    "torch",
    "transformers",
    "trl",
)
SCRIPT = """
import importlib, json, sys
from stages.check import recipe_errors
from plumbline.pipeline.params import load_params

assert recipe_errors(load_params()) == []
for stage in {stages!r}:
    importlib.import_module("stages." + stage)
print(json.dumps([name for name in {heavy!r} if name in sys.modules]))
"""


def test_checking_the_default_recipe_and_importing_every_stage_loads_no_heavy_library(project: Path) -> None:
    script = SCRIPT.format(stages=STAGES, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project, env={"PYTHONPATH": str(ROOT)}, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_a_make_repro_with_nothing_to_do_reads_dvc_yaml_and_dvc_lock_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    Repo.init(str(tmp_path), no_scm=True)
    (tmp_path / "dvc.yaml").write_text("stages:\n  one:\n    cmd: echo 1 > one\n    outs:\n      - one\n")
    recipe = re.search(r"^\tdvc (repro.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    assert dvc(recipe[1].split()) == 0
    assert (tmp_path / "one").read_text() == "1\n"

    read: list[str] = []

    def reading(path: str, *arguments: Any, load: Any = strictyaml.load, **options: Any) -> Any:
        read.append(Path(path).name)
        return load(path, *arguments, **options)

    monkeypatch.setattr(strictyaml, "load", reading)
    assert dvc(recipe[1].split()) == 0
    assert sorted(read) == ["dvc.lock", "dvc.yaml"]
