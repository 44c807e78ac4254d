"""docs/add-a-method.md stays true: its blocks, copied as they are, make a method that passes the linter, the DAG's comparison and its own test."""

import ast
import dataclasses
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf
from test_methods import table_of_methods

from plumbline.methods.job import OfflineJob
from plumbline.methods.offline import dpo
from tests.conftest import ROOT

PAGE = (ROOT / "docs/add-a-method.md").read_text(encoding="utf-8")
FILES: dict[str, str] = dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
METHOD, VALUES, TEST = "plumbline/methods/offline/simpo.py", "conf/method/simpo.yaml", "tests/test_simpo.py"


def block_after(sentence: str) -> str:
    """The content of the first code block after a sentence of the page."""
    return PAGE.split(sentence)[1].split("```")[1].partition("\n")[2]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the project's tests need, with the page's files, its entry and its row."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("plumbline", "stages", "conf", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "pyproject.toml", "requirements.lock", "requirements-torch.txt"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "docs").mkdir()
    (folder / "data/raw").mkdir(parents=True)
    (folder / "docs/add-a-method.md").write_text(PAGE, encoding="utf-8")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    recipe: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/recipe/default.yaml"))
    added: Any = OmegaConf.to_container(OmegaConf.create(block_after("an entry of `align` makes the policy")))
    recipe["align"] |= added["align"]
    recipe["evaluate"]["policies"] += added["evaluate"]["policies"]
    OmegaConf.save(recipe, folder / "params.yaml")
    page = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    table = table_of_methods(page)
    row = block_after('below "The methods"')
    (folder / "docs/methods.md").write_text(page.replace(table, f"{table.rstrip()}\n{row.rstrip()}"), encoding="utf-8")
    return folder


def run(copy: Path, *arguments: str) -> str:
    """The output of a command in the copy, which must succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("PYTEST")}
    done = subprocess.run([sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def method(copy: Path) -> ModuleType:
    """The page's method as a module."""
    spec = importlib.util.spec_from_file_location("simpo_of_the_page", copy / METHOD)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_gives_three_whole_files() -> None:
    assert set(FILES) == {METHOD, VALUES, TEST}
    for name in (METHOD, TEST):
        assert ast.get_docstring(ast.parse(FILES[name])), name
    assert not any((ROOT / name).exists() for name in FILES), "the example is now part of the project: choose another"


def test_the_pages_code_passes_the_linter(copy: Path) -> None:
    run(copy, "-m", "ruff", "check", "--no-cache", METHOD, TEST)
    run(copy, "-m", "ruff", "format", "--check", "--no-cache", METHOD, TEST)


def test_the_conf_block_has_the_fields_of_the_dataclass(method: ModuleType) -> None:
    values: Any = OmegaConf.to_container(OmegaConf.create(FILES[VALUES]))
    schema_name, last = values.pop("defaults")
    assert last == "_self_"
    schema = method.SCHEMAS[schema_name]
    assert set(values) == {field.name for field in dataclasses.fields(schema)} - {"init", "signal"}
    assert values["method"] == Path(VALUES).stem == schema().method


def test_the_page_describes_the_job_and_calls_align_as_the_project_does(method: ModuleType) -> None:
    assert [*inspect.signature(method.align).parameters] == [*inspect.signature(dpo.align).parameters]
    described = re.findall(r"^\| `(\w+)` \|", PAGE.split("| `job.` | what it is |")[1].split("\n\n")[0], re.MULTILINE)
    assert set(described) == {field.name for field in dataclasses.fields(OfflineJob)}


def test_every_helper_that_the_page_names_exists() -> None:
    table = PAGE.split("| helper | what it does |")[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)\(([\w, ]+)\)`", table)
    imports = re.findall(r"^ +from (plumbline\.[\w.]+) import (\([^)]*\)|.*)$", FILES[METHOD], re.MULTILINE)
    helpers = {
        name: getattr(importlib.import_module(module), name) for module, names in imports for name in re.findall(r"\w+", names)
    }
    assert sorted(name for name, _ in named) == sorted(name for name, helper in helpers.items() if callable(helper))
    for name, arguments in named:
        inspect.signature(helpers[name]).bind(*arguments.split(", "))


def test_files_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`((?:plumbline|stages|conf|tests|docs)/[\w/.]+)`", PAGE)) - set(FILES)
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert len(named) > 8


def test_the_recipe_with_the_pages_entry_is_sound(copy: Path) -> None:
    assert run(copy, "-m", "stages.check") == "The recipe is sound.\n"
    shown = OmegaConf.create(run(copy, "-m", "stages.align", "align=mine", "--cfg", "job"))
    assert (shown.align.method, shown.align.init, shown.align.beta, shown.align.gamma) == ("simpo", "sft", 2.0, 1.0)


def test_the_dag_covers_what_the_pages_method_imports(copy: Path) -> None:
    compare = """
from plumbline.pipeline.composing import load_params
from tests.dag import load_pipeline, problems
print(problems(load_pipeline(), load_params(), "align"))
"""
    assert run(copy, "-c", compare) == "[]\n"


@pytest.mark.slow
def test_the_pages_test_passes_and_its_row_is_found(copy: Path) -> None:
    table = "tests/test_methods.py::test_the_table_of_methods_names_every_method"
    output = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", TEST, table)
    assert re.search(r"^7 passed", output, re.MULTILINE), output
