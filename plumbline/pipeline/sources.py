"""Which files of the project a module is made of: itself and all that it imports, directly or through others.

`dvc.yaml` is compared with these in the tests; a reward's folder and a checkpoint carry their digest.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("plumbline", "stages")


def module_file(name: str) -> Path | None:
    """The file of one of the project's modules or packages; None for any other module."""
    path = ROOT / name.replace(".", "/")
    if name.partition(".")[0] not in PACKAGES:
        return None
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def closure(modules: Iterable[str]) -> dict[str, Path]:
    """These modules and everything of the project that they import, by name; imports for type checking alone do not count."""
    files: dict[str, Path] = {}
    waiting = [*modules]
    while waiting:
        name = waiting.pop()
        if name not in files and (file := module_file(name)):
            files[name] = file
            waiting += direct_imports(name)
    return files


@cache
def direct_imports(module: str) -> frozenset[str]:
    """The project's modules that a module imports, wherever in its code."""
    file = module_file(module)
    return frozenset(_imports(ast.parse(file.read_text(encoding="utf-8")))) if file else frozenset()


def files_of(modules: Iterable[str]) -> list[Path]:
    """The files that these modules run on: their source, that of all they import, and the data (word lists, templates) below its folders."""
    sources = set(closure(modules).values())
    folders = {file.parent for file in sources if file.parent.parent != ROOT}
    data = {file for folder in folders for file in folder.rglob("*.*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    return sorted(sources | data)


def code_digest(module: str) -> str:
    """Identifies what a module runs on: its source, that of all it imports, and their data files."""
    digest = hashlib.sha256()
    for file in files_of([module]):
        digest.update(f"{file.relative_to(ROOT).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def all_files() -> list[Path]:
    """Every source and data file of the project's packages."""
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.*"))
    return sorted(file for file in files if file.is_file() and file.suffix != ".pyc")


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and module_file(node.module):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if module_file(inner) else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if module_file(alias.name))
        else:
            yield from _imports(node)
