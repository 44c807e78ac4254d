"""Compares dvc.yaml with what each stage really depends on: modules, conf files, values, inputs, library versions."""

import ast
import dataclasses
import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
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

from plumbline import graph
from plumbline.pipeline import composing
from plumbline.pipeline.computation import modules_of_stage
from plumbline.pipeline.sources import files_of, files_read_by
from plumbline.rewards import reward
from plumbline.rewards.reward import KINDS
from stages.check import stage_schema

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-torch.txt")
ORDERING = {"prepare": {"artifacts/none"}, "answer": {"artifacts/decoding.json"}}
"""Dependencies on what `check` writes and no stage reads: so that it runs first, and so that a value is noticed that a recipe may leave out."""
GENERATORS, DECIDING = "plumbline/models/generating.py", "artifacts/engine.json"
"""What a stage with an engine imports if it generates, and what it then depends on instead of the engine's file: `check` writes the values that
decide what is drawn there. All other values of an engine change no output, so that no stage depends on them."""
SAMPLER = "artifacts/samplers/{entry}.json"
"""On which an entry of `rl` depends for the same reason."""
JUDGING = ("revise", "label", "reward_judge", "evaluate")
READ_AS_DATA = {stage: {"conf/judge/templates"} for stage in JUDGING}
"""Conf files that a stage reads itself, besides those that Hydra composes."""
OUTSIDE_THE_GRAPH = {
    "prepare": {"data/raw"},
    "feedback": {"data/feedback"},
    "label": {"data/annotations"},
    "report": {f"artifacts/{folder}" for folder in ("curves", "data_report", "evaluate", "figures")},
}
"""Inputs that no node makes, and folders that hold what many nodes make."""

LOADED = "rules"
"""The kind of every reward that a stage loads here."""

METHODS = sorted(file.stem for file in (ROOT / "conf/method").glob("*.yaml"))


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
    values = {**{key: value for defaults in pipeline.get("vars", []) for key, value in defaults.items()}, **params}
    nodes = []
    for stage, body in pipeline["stages"].items():
        if "foreach" not in body:
            nodes.append(_node(stage, None, None, body, values))
            continue
        over = _lookup(values, body["foreach"][2:-1])
        items = over.items() if isinstance(over, dict) else ((item, item) for item in over)
        nodes += [_node(stage, str(key), item, body["do"], values) for key, item in items]
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


def touched(path: str, pipeline: dict[str, Any], params: dict[str, Any]) -> set[str]:
    """The nodes that depend on a file directly: those that run again when it is edited."""
    return {node.name for node in declared_nodes(pipeline, params) if _covered(path, set(node.deps))} - {"check"}


# ---- what a node needs --------------------------------------------------------------------------------------------------


class Needs(NamedTuple):
    """What one node really depends on."""

    files: set[str]
    params: set[str]
    inputs: set[str]
    identifying: set[str]
    """The files that its shards and checkpoints belong to: after an edit of one they are not taken over."""


class _Captured(BaseException):
    pass


def needs(node: Node, params: dict[str, Any]) -> Needs:
    """Asks the code: Hydra for the conf files, the syntax trees for modules, the stage itself for its inputs."""
    schema = stage_schema(node.stage)
    read_while_registering: set[Path] = set()

    def reading(file: Path, read: Any = composing.conf_values) -> Any:
        read_while_registering.add(file)
        return read(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composing, "load_params", lambda *_: params)
        patch.setattr(composing, "conf_values", reading)
        composing.register(node.stage, schema)
    overrides = re.sub(r"^python -m \S+ ?", "", node.cmd).split()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(composing.CONF), version_base=None):
        config = composing.typed(compose(node.stage, overrides=overrides))
        composing.require_sound(config)
        chosen = _composed_files(node.stage, overrides)
    schemas = [composing.schema_module(*path.split("/")) for path in chosen if path.count("/") == 1]
    modules = [f"stages.{node.stage}", *filter(None, schemas), *_loaded_by_name(node.stage, config)]
    files = {str(file.relative_to(ROOT)) for file in {*files_of(modules), *read_while_registering}}
    files |= {f"conf/{path}.yaml" for path in chosen if not path.startswith("engine/")}
    return Needs(files, _read_params(node, schema, params), *_executed(node, config))


def _loaded_by_name(stage: str, config: Any) -> list[str]:
    """The module of a kind of reward that a stage makes, which its folder then answers for; no import statement names it."""
    kinds = {"reward_model": "model", "reward_rules": "rules", "reward_judge": "judge"}
    if stage == "reward_verifier":
        return [KINDS[config.reward_verifier.kind]]
    return [KINDS[kinds[stage]]] if stage in kinds else []


def _composed_files(stage: str, overrides: Sequence[str]) -> set[str]:
    """The files of conf/ on Hydra's own defaults list for this run."""
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    defaults = create_defaults_list(
        repo=loader.repository,
        config_name=stage,
        overrides_list=OverridesParser.create().parse_overrides(list(overrides)),
        prepend_hydra=True,
        skip_missing=False,
    ).defaults
    paths = {str(item.config_path) for item in defaults}
    return {path for path in paths if (composing.CONF / f"{path}.yaml").is_file()}


def _read_params(node: Node, schema: type, params: dict[str, Any]) -> set[str]:
    """Keys of params.yaml that reach the stage: whole sections, or the fields of a shared section that its code names."""
    fields = {field.name for field in dataclasses.fields(schema)}
    if node.stage == "report":
        return {"params.yaml"}  # it shows the whole recipe
    read = set()
    for name in fields:
        if name == "evaluate":
            tree = ast.parse((ROOT / f"stages/{node.stage}.py").read_text())
            named = {item.attr for item in ast.walk(tree) if isinstance(item, ast.Attribute)}
            read |= {f"{name}.{key}" for key in params[name] if key in named}
        elif name == node.stage and node.entry:
            read.add(f"{node.stage}.{node.entry}")
        elif name in params:
            read.add(name)
    if node.stage in composing.SIZED:
        read.add("model")
    # groups that params.yaml chooses for the stage
    for group in composing.open_groups(node.stage):
        if group in params and group != node.stage:
            read.add(group)
        elif "evaluate" in fields and group in params["evaluate"]:
            read.add(f"evaluate.{group}")
    return read - {"engine"}


def _executed(node: Node, config: Any) -> tuple[set[str], set[str]]:
    """The inputs that the stage passes to `executing`, where it is stopped, and the files that identify its computation with any reward LOADED."""
    module: Any = importlib.import_module(f"stages.{node.stage}")
    captured: list[tuple[set[str], set[str]]] = []

    def capture(stage: str, entry: str | None, config: Any, inputs: Sequence[Any], loads: Iterable[str] = ()) -> None:
        files = files_read_by(modules_of_stage(stage, config, loads))
        captured.append(({Path(path).as_posix() for path in inputs}, {str(file.relative_to(ROOT)) for file in files}))
        raise _Captured

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "executing", capture)
        patch.setattr(reward, "read_description", lambda folder: {"kind": LOADED})
        arguments = [config, node.entry] if module.run.__code__.co_argcount == 2 else [config]
        with pytest.raises(_Captured):
            module.run(*arguments)
    return captured[0]


# ---- the comparison -----------------------------------------------------------------------------------------------------


def problems(pipeline: dict[str, Any], params: dict[str, Any], stage: str | None = None) -> list[str]:
    """Everything in which dvc.yaml differs from what the stages (or one of them) need, in words; empty if the cache cannot lie."""
    nodes = [node for node in declared_nodes(pipeline, params) if node.stage != "check" and stage in (None, node.stage)]
    declared = {node.name: {f"artifacts/{path}" for path in node.reads} for node in graph.nodes(params)}
    return [problem for node in nodes for problem in _problems(node, nodes, params, declared)]


def _problems(node: Node, nodes: list[Node], params: dict[str, Any], declared: dict[str, set[str]]) -> Iterator[str]:
    need = _cached_needs(node, params)
    # deps are written once for a stage: what one entry needs, the others of the stage name too
    anywhere = set().union(*(_cached_needs(other, params).files for other in nodes if other.stage == node.stage)) | _methods(
        node.stage
    )
    files = {dep for dep in node.deps if dep.startswith(("plumbline/", "stages/", "conf/"))}
    extra = READ_AS_DATA.get(node.stage, set())
    yield from (f"{node.name}: no dep covers {file}" for file in sorted(need.files) if not _covered(file, files))
    yield from (
        f"{node.name}: its shards outlive an edit of {file}" for file in sorted(_computing(node, need) - need.identifying)
    )
    yield from (f"{node.name}: dep {dep} is not needed" for dep in sorted(files - extra) if not _needed(dep, anywhere))
    yield from (f"{node.name}: no dep on {path}" for path in sorted(extra - files))
    yield from (f"{node.name}: params lacks {key}" for key in sorted(need.params - set(node.params)))
    yield from (f"{node.name}: params names {key}, which it does not read" for key in sorted(set(node.params) - need.params))
    ordering = ORDERING.get(node.stage, set()) | ({DECIDING} if _generates(node.stage, need) else set())
    ordering |= {SAMPLER.format(entry=node.entry)} if node.stage == "rl" else set()
    inputs = set(node.deps) - files - set(LOCKS) - ordering
    named = declared.get(node.name, set()) | OUTSIDE_THE_GRAPH.get(node.stage, set())
    yield from (f"{node.name}: no dep on its input {path}" for path in sorted(need.inputs - inputs))
    yield from (f"{node.name}: the graph lacks {path}, a dep" for path in sorted(inputs - named))
    yield from (f"{node.name}: no dep on {path}, which the graph names" for path in sorted(named - inputs))
    left_empty = {path for path in inputs if path.endswith(f"/{graph.NOTHING}")}
    yield from (f"{node.name}: dep {path} is not an input" for path in sorted(inputs - need.inputs - left_empty))
    yield from (f"{node.name}: no dep on {path}, which `check` writes" for path in ordering - set(node.deps))
    yield from (f"{node.name}: no dep on {lock}" for lock in LOCKS if lock not in node.deps)


def _generates(stage: str, need: Needs) -> bool:
    """Whether a stage has its engine generate, and not only compute shards."""
    return GENERATORS in need.files and "engine" in {field.name for field in dataclasses.fields(stage_schema(stage))}


def _computing(node: Node, need: Needs) -> set[str]:
    """The files that may change what the shards and checkpoints of a node hold, if it has any; the values of conf/ are in its config."""
    if ".checkpoints()" not in (ROOT / f"stages/{node.stage}.py").read_text():
        return set()
    templates = {f"{folder}/{file.name}" for folder in READ_AS_DATA.get(node.stage, ()) for file in (ROOT / folder).iterdir()}
    rewards = any(path.startswith("artifacts/reward/") for path in need.inputs)
    loaded = {str(file.relative_to(ROOT)) for file in files_of([KINDS[LOADED]])} if rewards else set()
    return {file for file in need.files if not file.startswith("conf/")} | templates | loaded | set(LOCKS)


@cache
def _methods(stage: str) -> frozenset[str]:
    """The files of every method of a stage that has methods, and of all that they import: also of those that a recipe does not choose."""
    names = [composing.method_module(stage, method) for method in METHODS] if stage in composing.LEARNING else []
    return frozenset(str(file.relative_to(ROOT)) for file in files_of(names))


_needs_cache: dict[str, Needs] = {}


def _cached_needs(node: Node, params: dict[str, Any]) -> Needs:
    """What a node needs, asked once for the same values, since recipes share most of their nodes."""
    fields = {field.name for field in dataclasses.fields(stage_schema(node.stage))}
    values = {key: params.get(key) for key in [*sorted(fields), *composing.open_groups(node.stage), "model"]}
    if node.entry and node.stage in graph.REPEATED:
        values[node.stage] = params[node.stage][node.entry]
    key = f"{node.cmd} {values}"
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
