"""Compares dvc.yaml with what each stage really depends on: modules, conf files, values, inputs, library versions."""

import ast
import dataclasses
import importlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from stages.pipeline import composing

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-torch.txt")
HYDRA_STAGES = (
    "prepare",
    "pretrain",
    "sft",
    "sample",
    "revise",
    "label",
    "reward",
    "reject",
    "align",
    "answer",
    "evaluate",
    "report",
)
ORDERING = {"prepare": {"artifacts/none"}}
"""Dependencies on a constant, there only so that `check` runs first."""
READ_AS_DATA = {stage: {"conf/judge/templates"} for stage in ("revise", "label", "reward", "reject", "align", "evaluate")}
"""Conf files that a stage reads itself, beside those that Hydra composes."""


METHODS = sorted(f"stages.methods.{file.stem}" for file in (ROOT / "conf/method").glob("*.yaml"))


class Node(NamedTuple):
    """One node of the DAG as dvc.yaml declares it."""

    stage: str
    entry: str | None
    deps: list[str]
    params: list[str]
    outs: list[str]
    cmd: str

    @property
    def name(self) -> str:
        return f"{self.stage}@{self.entry}" if self.entry else self.stage


def declared_nodes(pipeline: dict[str, Any], params: dict[str, Any]) -> list[Node]:
    """Every node that dvc.yaml and params.yaml make together, templates resolved."""
    nodes = []
    for stage, body in pipeline["stages"].items():
        if "foreach" not in body:
            nodes.append(_node(stage, None, None, body, params))
            continue
        over = _lookup(params, body["foreach"][2:-1])
        items = over.items() if isinstance(over, dict) else ((item, item) for item in over)
        nodes += [_node(stage, str(key), item, body["do"], params) for key, item in items]
    return nodes


def _node(stage: str, key: str | None, item: Any, body: dict[str, Any], params: dict[str, Any]) -> Node:
    def resolved(text: Any) -> str:
        path = next(iter(text)) if isinstance(text, dict) else str(text)
        return re.sub(r"\$\{([^}]+)\}", lambda match: str(_lookup({**params, "key": key, "item": item}, match[1])), path)

    return Node(
        stage,
        key,
        [resolved(dep) for dep in body.get("deps", [])],
        [resolved(param) for param in body.get("params", [])],
        [resolved(out) for kind in ("outs", "metrics") for out in body.get(kind, [])],
        resolved(body["cmd"]),
    )


def _lookup(values: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        values = values[part]
    return values


# ---- modules ------------------------------------------------------------------------------------------------------------


@cache
def direct_imports(module: str) -> frozenset[str]:
    """The modules of `stages` that a module imports, wherever in its code, but for type checking."""
    return frozenset(_imports(ast.parse(module_file(module).read_text())))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stages"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if is_module(inner) else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("stages."))
        else:
            yield from _imports(node)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def module_file(name: str) -> Path:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"


def all_imports(module: str) -> set[str]:
    """What a module imports, directly or through others, itself included."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += direct_imports(name)
    return seen


# ---- what a node needs --------------------------------------------------------------------------------------------------


class Needs(NamedTuple):
    """What one node really depends on."""

    files: set[str]
    params: set[str]
    inputs: set[str]


class _Captured(BaseException):
    pass


def needs(node: Node, params: dict[str, Any]) -> Needs:
    """Asks the code: Hydra for the conf files, the syntax trees for modules, the stage itself for its inputs."""
    module = importlib.import_module(f"stages.{node.stage}")
    schema = getattr(module, f"{node.stage.title()}Stage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composing, "load_params", lambda *_: params)
        composing.register(node.stage, schema)
    overrides = re.sub(r"^python -m \S+ ?", "", node.cmd).split()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(composing.CONF), version_base=None):
        config = composing.typed(compose(node.stage, overrides=overrides))
        chosen = _composed_files(node.stage, overrides)
    modules = all_imports(f"stages.{node.stage}")
    for group, choice in (path.split("/") for path in chosen if path.count("/") == 1):
        if group in composing.SCHEMAS:
            modules |= all_imports(composing.SCHEMAS[group].format(choice=choice))
    files = {str(module_file(name).relative_to(ROOT)) for name in modules}
    files |= {f"conf/{path}.yaml" for path in chosen}
    return Needs(files, _read_params(node, schema, params), _inputs(module, config, node.entry))


def _composed_files(stage: str, overrides: Sequence[str]) -> set[str]:
    """The files of conf/ on Hydra's own defaults list for this run."""
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    found = create_defaults_list(
        repo=loader.repository,
        config_name=stage,
        overrides_list=OverridesParser.create().parse_overrides(list(overrides)),
        prepend_hydra=True,
        skip_missing=False,
    ).defaults
    paths = {str(item.config_path) for item in found}
    return {path for path in paths if (composing.CONF / f"{path}.yaml").is_file()}


def _read_params(node: Node, schema: type, params: dict[str, Any]) -> set[str]:
    """Keys of params.yaml that reach the stage: whole sections, or the fields of a shared section that its code names."""
    read = set()
    shared = {"evaluate"}
    for field in dataclasses.fields(schema):
        if field.name in shared and node.stage != "report":
            tree = ast.parse(module_file(f"stages.{node.stage}").read_text())
            named = {item.attr for item in ast.walk(tree) if isinstance(item, ast.Attribute)}
            read |= {f"{field.name}.{key}" for key in params[field.name] if key in named}
        elif field.name == node.stage and node.entry:
            read.add(f"{node.stage}.{node.entry}")
        elif field.name in params:
            read.add(field.name)
    # groups that params.yaml chooses for the stage
    for group in composing.open_groups(node.stage):
        if group in params and group != node.stage:
            read.add(group)
        elif "evaluate" in {field.name for field in dataclasses.fields(schema)} and group in params["evaluate"]:
            read.add(f"evaluate.{group}")
    return read


def _inputs(module: Any, config: Any, entry: str | None) -> set[str]:
    """The inputs that the stage passes to `executing`, which is stopped there."""
    captured: list[str] = []

    def capture(stage: str, entry: str | None, config: Any, inputs: Sequence[Any]) -> None:
        captured.extend(Path(path).as_posix() for path in inputs)
        raise _Captured

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "executing", capture)
        arguments = [config, entry] if module.run.__code__.co_argcount == 2 else [config]
        with pytest.raises(_Captured):
            module.run(*arguments)
    return set(captured)


# ---- the comparison -----------------------------------------------------------------------------------------------------


def problems(pipeline: dict[str, Any], params: dict[str, Any]) -> list[str]:
    """Everything in which dvc.yaml differs from what the stages need, in words; empty if the cache cannot lie."""
    found = []
    nodes = [node for node in declared_nodes(pipeline, params) if node.stage != "check"]
    for node in nodes:
        need = _cached_needs(node, params)
        # deps are written once for a stage: what one entry's method imports, the others of the stage carry too, and what a method
        # imports that this recipe does not choose
        anywhere = set().union(*(_cached_needs(other, params).files for other in nodes if other.stage == node.stage))
        if "method" in {key for entry in (params.get(node.stage) or {}).values() if isinstance(entry, dict) for key in entry}:
            anywhere |= {str(module_file(name).relative_to(ROOT)) for method in METHODS for name in all_imports(method)}
        files = {dep for dep in node.deps if dep.startswith(("stages/", "conf/"))}
        found += [f"{node.name}: no dep covers {file}" for file in sorted(need.files) if not _covered(file, files)]
        extra = READ_AS_DATA.get(node.stage, set())
        found += [f"{node.name}: dep {dep} is not needed" for dep in sorted(files - extra) if not _needed(dep, anywhere)]
        found += [f"{node.name}: no dep on {path}" for path in sorted(extra - files)]
        found += [f"{node.name}: params lacks {key}" for key in sorted(need.params - set(node.params))]
        found += [f"{node.name}: params names {key}, which it does not read" for key in sorted(set(node.params) - need.params)]
        inputs = set(node.deps) - files - set(LOCKS) - ORDERING.get(node.stage, set())
        found += [f"{node.name}: no dep on its input {path}" for path in sorted(need.inputs - inputs)]
        given = {path for path in inputs if path.endswith("/none")}  # the constant of a slot that an entry leaves empty
        found += [f"{node.name}: dep {path} is no input" for path in sorted(inputs - need.inputs - given)]
        found += [f"{node.name}: no dep on constant {path}" for path in ORDERING.get(node.stage, set()) - set(node.deps)]
        found += [f"{node.name}: no dep on {lock}" for lock in LOCKS if lock not in node.deps]
    return found


_needs_cache: dict[str, Needs] = {}


def _cached_needs(node: Node, params: dict[str, Any]) -> Needs:
    key = f"{node.name} {node.cmd} {params}"
    if key not in _needs_cache:
        _needs_cache[key] = needs(node, params)
    return _needs_cache[key]


def _covered(file: str, deps: set[str]) -> bool:
    return file in deps or any(file.startswith(f"{dep}/") for dep in deps)


def _needed(dep: str, files: set[str]) -> bool:
    return dep in files or any(file.startswith(f"{dep}/") for file in files)


def load_pipeline() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())


def load_recipe(name: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(ROOT / "conf/recipe" / f"{name}.yaml"))
