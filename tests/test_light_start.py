"""Claims about what a stage imports before it works: nothing that takes seconds, so that `check`, `--help` and a typing error are quick."""

import json
import subprocess
import sys
from pathlib import Path

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
