"""What identifies a computation: an edit of a file that it runs on starts it afresh, an edit of any other file loses nothing."""

import ast
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from plumbline.pipeline import sources
from plumbline.pipeline.computation import computation_key, modules_of_stage
from plumbline.pipeline.execution import executing
from plumbline.pipeline.launcher import Launcher
from plumbline.pipeline.mlflow_calls import project_root
from plumbline.pipeline.provenance import Input
from plumbline.rewards.reward import KINDS, describe, modules_of
from tests.conftest import ROOT


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the project to edit, below a hidden folder as in a queued experiment."""
    copy = tmp_path / ".dvc/tmp"
    for name in (*sources.PACKAGES, "conf/judge/templates"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in sources.LIBRARIES:
        shutil.copy(ROOT / name, copy)
    monkeypatch.setattr(sources, "ROOT", copy)
    sources.direct_imports.cache_clear()
    yield copy
    sources.direct_imports.cache_clear()


def key_of(*modules: str) -> str:
    """The key after edits that change no import, since those are read once."""
    return computation_key("{}", [], modules)


def test_values_and_inputs_identify_a_computation() -> None:
    inputs = [Input("artifacts/a", "1")]
    key = computation_key("{}", inputs, [])
    assert key == computation_key("{}", inputs, [])
    assert key != computation_key('{"beta": 1}', inputs, [])
    assert key != computation_key("{}", [Input("artifacts/a", "2")], [])


@pytest.mark.parametrize(
    ("modules", "among"),
    [
        (("stages.sample",), ("stages/sample.py", "plumbline/models/sampling.py", "plumbline/models/__init__.py", "requirements.lock")),
        (("stages.label",), ("plumbline/world/families/words/facts.yaml", "conf/judge/templates/pairwise.ko.j2")),
        (("stages.filter", KINDS["model"]), ("plumbline/rewards/model.py", "plumbline/models/chat.py", "requirements-torch.txt")),
    ],
)  # fmt: skip
def test_an_edit_of_any_file_that_a_stage_runs_on_starts_it_afresh(
    copied: Path, modules: tuple[str, ...], among: tuple[str, ...]
) -> None:
    before = key_of(*modules)
    files = sources.files_read_by(modules)
    assert {*among} <= {str(file.relative_to(copied)) for file in files}
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        assert key_of(*modules) != before, file
        file.write_bytes(content)
    assert key_of(*modules) == before


@pytest.mark.parametrize("stage", ["sample", "label"])
def test_files_that_a_stage_does_not_read_change_nothing(copied: Path, stage: str) -> None:
    before = key_of(f"stages.{stage}")
    written = [
        "stages/report.py",
        "plumbline/report/page.py",
        "plumbline/report/templates/report.css",
        "plumbline/methods/offline/dpo.py",
        "plumbline/models/a_new_module.py",
        "plumbline/models/.served.py.swp",
        "plumbline/models/served.py~",
        "plumbline/world/families/words/.facts.yaml.swp",
        "plumbline/world/families/words/.#facts.yaml",
        "plumbline/world/families/words/#facts.yaml#",
        "plumbline/world/families/words/facts.yaml~",
        "plumbline/world/families/__pycache__/family.cpython-312.pyc.140022",
        "plumbline/world/families/__pycache__/words.json",
        "conf/judge/templates/.rating.en.j2.swp",
    ]
    for name in written:
        (copied / name).parent.mkdir(exist_ok=True)
        with (copied / name).open("a") as file:
            file.write("\n# edited\n")
        assert key_of(f"stages.{stage}") == before, name


def test_the_reward_that_a_stage_loads_is_part_of_its_computation_and_others_are_not(copied: Path) -> None:
    describe(copied / "rules", "rules")
    describe(copied / "model", "model")
    describe(copied / "both", "sum", parts=[{"weight": 1.0, "reward": name} for name in ("model", "rules")])
    assert [*modules_of(copied / "rules")] == [KINDS["rules"]]
    assert [*modules_of(copied / "both")] == [KINDS["model"], KINDS["rules"]]
    modules = modules_of_stage("filter", None, modules_of(copied / "rules"))
    before = key_of(*modules)
    for name, same in (("plumbline/rewards/model.py", True), ("plumbline/rewards/rules.py", False)):
        with (copied / name).open("a") as file:
            file.write("# edited\n")
        assert (key_of(*modules) == before) is same


FORMS = {
    "import plumbline.b": True,
    "from plumbline import b": True,
    "from plumbline.b import c": True,
    "from . import b": True,
    "from .b import c": True,
    "def load():\n    from plumbline.b import c": True,
    "if TYPE_CHECKING:\n    pass\nelse:\n    from plumbline.b import c": True,
    "if not TYPE_CHECKING:\n    import plumbline.b": True,
    "try:\n    pass\nexcept ImportError:\n    import plumbline.b": True,
    "if TYPE_CHECKING:\n    import plumbline.b": False,
    "if typing.TYPE_CHECKING:\n    import plumbline.b": False,
    "import yaml": False,
}
"""A module's text → whether it runs on plumbline/b.py."""


@pytest.mark.parametrize("text", FORMS)
def test_imports_of_every_form_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    (tmp_path / "plumbline").mkdir()
    for name, content in {"a": text, "b": "", "__init__": ""}.items():
        (tmp_path / f"plumbline/{name}.py").write_text(content)
    sources.direct_imports.cache_clear()
    assert (tmp_path / "plumbline/b.py" in sources.files_of(["plumbline.a"])) is FORMS[text]
    sources.direct_imports.cache_clear()


LOADING = {
    "plumbline/checking/inside.py",  # what a program of a model may import
    "plumbline/pipeline/composing.py",  # the schemas of a config, which `modules_of_stage` finds
    "plumbline/pipeline/recipe_files.py",  # as above, for `check`
    "plumbline/pipeline/shard_workers.py",  # a function of the stage
    "plumbline/pipeline/warm_process.py",  # libraries
    "plumbline/rewards/reward.py",  # `modules_of`
    "stages/align.py",  # passed to `executing`
    "stages/check.py",  # which keeps no checkpoints
    "stages/rl.py",  # passed to `executing`
}
"""Files that load a module by its name, where no import statement shows it, and why no computation's identity lacks it."""


def test_whatever_loads_a_module_by_its_name_is_known() -> None:
    loading = set()
    for package in sources.PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            names = {getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(ast.parse(file.read_text()))}
            if names & {"import_module", "__import__", "run_module", "run_path", "exec_module"}:
                loading.add(str(file.relative_to(ROOT)))
    assert loading == LOADING


def test_every_file_of_the_packages_is_code_or_data_of_a_known_kind() -> None:
    listed = subprocess.run(["git", "ls-files", *sources.PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {Path(name).suffix for name in listed.split()} <= {".py", *sources.DATA}


@dataclass
class Config:
    seed: int = 17
    threads: int = 1
    launcher: Launcher = field(default_factory=Launcher)
    others: dict[str, Any] = field(default_factory=lambda: {"one": [Launcher()]})


def test_the_classes_of_a_config_are_part_of_a_computation() -> None:
    assert modules_of_stage("sft", Config(), ["m"]) == ["stages.sft", __name__, *["plumbline.pipeline.launcher"] * 2, "m"]


def test_a_stage_finds_its_checkpoints_after_an_edit_of_another_stage_and_not_after_one_of_its_own(
    project: Path, copied: Path
) -> None:
    def folder() -> Path:
        with pytest.raises(RuntimeError), executing("sft", None, Config(), []) as work, work.checkpoints() as checkpoints:
            raise RuntimeError
        return checkpoints

    first = folder()
    assert first.parent == project_root() / ".checkpoints"
    for name, same in (("stages/report.py", True), ("stages/sft.py", False)):
        with (copied / name).open("a") as file:
            file.write("# edited\n")
        assert (folder() == first) is same


def test_all_processes_of_a_stage_take_the_key_of_the_first() -> None:
    code = "from plumbline.pipeline import processes as p; p.join(); print(p.as_first_finds(lambda: f'key {p.index()}'))"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, **where, "PLUMBLINE_LAUNCHED": "1", "ACCELERATE_USE_CPU": "true", "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]  # fmt: skip
    assert [process.communicate()[0] for process in both] == ["key 0\n", "key 0\n"]
