"""Which files of the project a module runs on: itself and all that it imports, directly or through others, and the data that these read.

`dvc.yaml` is compared with these in the tests; a reward's folder and a checkpoint carry their digest.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("plumbline", "stages")

DATA = (".css", ".csv", ".html", ".j2", ".js", ".json", ".jsonl", ".toml", ".tsv", ".txt", ".yaml", ".yml")
"""The suffixes of the packages' data files. Any other file there is not read: an editor's copy, a swap file, what Python caches."""

READ_ELSEWHERE = {"plumbline.judging.templates": "conf/judge/templates"}
"""A module → the folder outside its package whose data files it reads."""

LIBRARIES = ("requirements.lock", "requirements-torch.txt")
"""The files that name the libraries' versions, which are dependencies of every stage."""


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
    if file is None:
        return frozenset()
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return frozenset(_imports(ast.parse(file.read_text(encoding="utf-8")), package))


def files_of(modules: Iterable[str]) -> list[Path]:
    """The files that these modules run on: their source, that of all they import, and the data (word lists, templates) below its folders."""
    sources = set(closure(modules).values())
    folders = {file.parent for file in sources}
    return sorted(sources.union(*map(_data_below, folders)))


def files_read_by(modules: Iterable[str]) -> list[Path]:
    """Every file of the project that may change what these modules compute from the same values and inputs.

    That is `files_of` them, the packages that they are in, the data that they read elsewhere, and the libraries' versions.
    """
    names = closure(modules)
    packages = {parent / "__init__.py" for file in names.values() for parent in file.parents if ROOT in parent.parents}
    read_data = [_data_below(ROOT / folder) for module, folder in READ_ELSEWHERE.items() if module in names]
    files = packages.union(files_of(names), *read_data, (ROOT / name for name in LIBRARIES))
    return sorted(file for file in files if file.is_file())


def code_digest(module: str) -> str:
    """Identifies what a module runs on: its source, that of all it imports, and their data files."""
    return files_digest(files_of([module]))


def files_digest(files: Iterable[Path]) -> str:
    """Identifies files of the project by their paths and their content."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(ROOT).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _data_below(folder: Path) -> set[Path]:
    """The data files of a folder and of those in it; at the top of a package, where all others begin, only the folder's own."""
    files = folder.glob("*") if folder.parent == ROOT else folder.rglob("*")
    return {
        file
        for file in files
        if file.suffix in DATA
        and file.is_file()
        and not any(part.startswith(".") or part == "__pycache__" for part in file.relative_to(folder).parts)
    }


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """The project's modules that a syntax tree of a module in a package imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING":
            yield from _imports(ast.Module(node.orelse, []), package)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            if module_file(origin):
                for alias in node.names:
                    inner = f"{origin}.{alias.name}"
                    yield inner if module_file(inner) else origin
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if module_file(alias.name))
        else:
            yield from _imports(node, package)
