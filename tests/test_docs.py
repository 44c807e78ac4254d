"""What the pages promise a reader: links lead somewhere, commands exist, examples are sound, tables are whole."""

import re
import textwrap
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from plumbline import graph
from plumbline.pipeline.sources import module_file
from stages.check import REQUIRED, SECTIONS
from tests.conftest import ROOT
from tests.dag import METHODS

PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    ROOT / "data/README.md",
    ROOT / "data/annotations/README.md",
    ROOT / "data/feedback/README.md",
    ROOT / "tests/benchmarks/README.md",
    ROOT / "tests/gpu/README.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_paths_and_modules_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if not link.startswith("http")]
    paths = re.findall(r"`((?:plumbline|stages|tests|conf|docs)/[\w./-]+)`", text)
    modules = re.findall(r"python -m ((?:plumbline|stages)[\w.]*)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in paths if "mine" not in path and not (ROOT / path).exists()]
    missing += [module for module in modules if not module_file(module)]
    examples = {"docs/add-a-method.md": "simpo", "CHANGELOG.md": "conf/"}.get(str(page.relative_to(ROOT)), "\0")
    assert [item for item in missing if examples not in item] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: small letters, without punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_into_a_page_name_a_heading_of_it(page: Path) -> None:
    links = re.findall(r"\]\(([\w./-]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    targets = [(page.parent / path if path else page, anchor) for path, anchor in links]
    assert [(path, anchor) for path, anchor in targets if not path.is_file() or anchor not in anchors(path)] == []


@pytest.mark.parametrize(
    "name", ["concepts", "methods", "rewards", "judging", "feedback", "data", "reproducibility", "overoptimisation"]
)
def test_examples_of_params_yaml_have_sections_that_exist(name: str) -> None:
    text = (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        values = OmegaConf.to_container(OmegaConf.create(block))
        if isinstance(values, dict) and set(values) & set(graph.REPEATED):
            assert set(values) <= set(SECTIONS), block


def test_a_whole_recipe_on_a_page_has_every_section_that_a_recipe_needs() -> None:
    found = 0
    for page in PAGES:
        for block in re.findall(r"^( *)```yaml\n(.*?)\n\1```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            if re.search(r"^ *seed:", block[1], re.MULTILINE):
                found += 1
                assert set(REQUIRED) <= set(OmegaConf.create(textwrap.dedent(block[1]))), page
    assert found


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_tables_name_every_stage_and_every_method() -> None:
    stages = re.findall(r"^\| `(\w+)[`@]", (ROOT / "docs/concepts.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"check", *graph.STAGES} <= set(stages)
    methods = re.findall(r"^\| `(\w+)`", (ROOT / "docs/methods.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(METHODS) <= set(methods)


def test_the_page_on_data_names_every_model_and_size() -> None:
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    files = [file.stem for group in ("model", "size") for file in (ROOT / "conf" / group).glob("*.yaml")]
    assert files
    assert [name for name in files if f"`{name}`" not in page] == []


def test_the_table_of_benchmarks_names_every_script() -> None:
    page = (ROOT / "tests/benchmarks/README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+\.py)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(file.name for file in (ROOT / "tests/benchmarks").glob("*.py"))
