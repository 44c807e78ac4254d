"""Shared by all tests: offline, no tracking unless a test asks for it, a project folder to run stages in."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["MLFLOW_TRACKING_URI"] = "off"
os.environ["WARM_PROCESS"] = "off"  # 8 s of importing for each folder would outweigh what its few stages gain
for variable in ("DVC_STAGE", "DVC_ROOT", "DVC_EXP_NAME"):
    os.environ.pop(variable, None)

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's `set_tracking_uri` also sets the variable, so that a test which calls it would make later ones track."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the current one, with the default recipe as its params.yaml and an empty folder of inputs."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "conf/recipe/default.yaml", tmp_path / "params.yaml")
    (tmp_path / "data/raw").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def own_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of conf/ that `recipe_errors` reads in its place."""
    import stages.check
    from plumbline.pipeline import composing, recipe_files

    folder = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", folder)
    for module in (composing, recipe_files, stages.check):
        monkeypatch.setattr(module, "CONF", folder)
    caches = (composing.defaults_list, recipe_files.file_misfits, recipe_files._read)
    for read in caches:
        read.cache_clear()
    yield folder
    for read in caches:
        read.cache_clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest goes first, so that the workers end together."""
    items.sort(key=lambda item: item.path.name != "test_smoke.py")
