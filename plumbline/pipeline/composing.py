"""params.yaml meets Hydra: what the recipe says becomes options and choices of each stage's Hydra config.

`conf/<stage>.yaml` is the primary config of `stages/<stage>.py`. Its defaults list names two nodes that are registered here:
`<stage>_schema`, the stage's dataclass, and `<stage>_params`, what params.yaml says to this stage. By these rules:

- a group left open (`judge: ???`) is chosen by the key of that name: in the stage's own section or entry, or at the top level;
- a mapping whose entries are nodes of the DAG (`align: ???`) becomes the group `align` with an option for each entry;
- an entry's key that names another folder of conf/ (`method: dpo`) puts that file's values below the entry's own;
- values that depend on the model's size come between the two: the section of the method or stage in conf/size/<size>.yaml, which `size` in
  conf/model/<model>.yaml names;
- everything else that the schema has a field for is copied.

So nothing is stated twice, an unknown key is Hydra's error, and the command line still overrides all of it.
"""

import dataclasses
import importlib
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from plumbline.pipeline.launcher import batch_problems
from plumbline.pipeline.misfits import suggestion
from plumbline.pipeline.params import Params, load_params
from plumbline.pipeline.ranges import COUNT, SEED, outside
from plumbline.pipeline.sources import module_file

CONF = Path(__file__).parents[2] / "conf"


@cache
def defaults_list(stage: str) -> dict[str, str]:
    """The groups in the defaults list of conf/<stage>.yaml → their choice, `???` where params.yaml is to choose."""
    primary = conf_values(CONF / f"{stage}.yaml")
    chosen = {group: choice for item in primary.get("defaults", []) if isinstance(item, dict) for group, choice in item.items()}
    return {group.partition("@")[0]: choice for group, choice in chosen.items() if not group.startswith("override ")}


def open_groups(stage: str) -> list[str]:
    """The groups that conf/<stage>.yaml leaves open (`group: ???`) for params.yaml to choose."""
    return [group for group, choice in defaults_list(stage).items() if choice == "???"]


def groups() -> set[str]:
    """The config groups: the folders of conf/."""
    return {folder.name for folder in CONF.iterdir() if folder.is_dir()}


def has_entries(stage: str) -> bool:
    """Whether the stage is repeated: one node of the DAG for each entry of its section."""
    return stage in open_groups(stage)


def register(stage: str, schema: type, params: Params | None = None) -> None:
    """Registers `schema` and what params.yaml says for `stage` with Hydra; call before `@hydra.main`'s function.

    params: what params.yaml says; None to read it.
    """
    params = load_params() if params is None else params
    store = ConfigStore.instance()
    store.store(name=f"{stage}_schema", node=schema)
    store.store(name=f"{stage}_params", node=_stage_node(stage, schema, params))
    for group, choice in defaults_list(stage).items():
        if choice != "???":
            register_schemas(group, choice)
    if has_entries(stage):
        for name, entry in (params.get(stage) or {}).items():
            store.store(group=stage, name=str(name), node=_entry_node(stage, str(name), entry, params))


def _stage_node(stage: str, schema: type, params: Params) -> dict[str, Any]:
    """What params.yaml says to a stage as a whole: its scalars and sections, and the groups that they choose."""
    fields = {field.name for field in dataclasses.fields(schema)} - {stage if has_entries(stage) else ""}
    values = {key: value for key, value in params.items() if key in fields and key not in open_groups(stage)}
    if stage in SIZED and stage in fields and isinstance(section := values.get(stage, {}), dict):
        values[stage] = values_by_size(stage, section, params) | section
    sections = {"params.yaml: ": params} | {
        f"params.yaml: {key}.": value for key, value in values.items() if isinstance(value, dict)
    }
    choices = {}
    for where, section in sections.items():
        for group in open_groups(stage):
            if group in section and group != stage:
                choices[group] = require_file(group, section[group], f"{where}{group}")
                register_schemas(group, choices[group])
    return {"defaults": [{f"override /{group}": choice} for group, choice in choices.items()] + ["_self_"], **values}


def _entry_node(stage: str, name: str, entry: Any, params: Params) -> dict[str, Any]:
    """One entry of a repeated stage as an option of its group."""
    where = f"params.yaml: {stage}.{name}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a mapping, found {entry!r}")
    if unnamed := [group for group in open_groups(stage) if group not in (stage, *entry, *params)]:
        raise ValueError(
            f"{where}.{unnamed[0]}: missing; DVC needs it to know what the entry depends on. Name a file of conf/{unnamed[0]}"
        )
    defaults: list[Any] = []
    for key, value in entry.items():
        if key in groups():
            require_file(key, value, f"{where}.{key}")
            register_schemas(key, value)
            # from inside an entry's package, an override must say where the group lies
            defaults.append(
                {f"override /{key}@_global_.{key}": value} if key in open_groups(stage) else {f"/{key}@_here_": value}
            )
    defaults.sort(key=lambda item: next(iter(item)).startswith("override "))  # which Hydra wants last
    return {"defaults": [*defaults, "_self_"], **values_by_size(stage, entry, params), **entry}


SIZED = ("pretrain", "sft", "sample", "reward_model", "align", "rl")
"""The stages with values that depend on the model's size."""


def values_by_size(stage: str, entry: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The values that the model's size gives to an entry of a stage, or to the section of a stage without entries.

    `check` sees to it that the conf files of methods and stages leave them open.
    """
    return size_section(model_size(params), section_of(stage, entry)) if stage in SIZED else {}


def sized_file(section: str) -> Path:
    """The conf file of the method, or of the stage without methods, whose values a section of conf/size gives."""
    method = CONF / f"method/{section}.yaml"
    return method if method.is_file() else CONF / f"{section}.yaml"


def section_of(stage: str, entry: Mapping[str, Any]) -> str:
    """The section of conf/size/<size>.yaml that an entry of a stage reads: its method's, or the stage's if that has no methods."""
    return str(entry.get("method")) if stage in LEARNING else stage


def sizes() -> list[str]:
    """The sizes: the files of conf/size."""
    return sorted(file.stem for file in (CONF / "size").glob("*.yaml"))


def size_section(size: str, section: str) -> dict[str, Any]:
    """A section of conf/size/<size>.yaml; empty if the file has none, as for a method whose values do not depend on the size."""
    values = conf_values(CONF / f"size/{size}.yaml").get(section, {})
    return dict(values) if isinstance(values, dict) else {}


def model_size(params: Mapping[str, Any]) -> str:
    """What the model's file in conf/model says under `size`.

    Raises:
        ValueError: there is no such model, it names no size, or there is no such size.
    """
    model = require_file("model", params.get("model"), "params.yaml: model")
    return require_file("size", conf_values(CONF / f"model/{model}.yaml").get("size"), f"conf/model/{model}.yaml: size")


@cache
def conf_values(file: Path) -> dict[str, Any]:
    """What a file of conf/ says, with its defaults list.

    Raises:
        ValueError: it is not valid YAML, or not a mapping.
    """
    where = file.relative_to(CONF.parent)
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(file))
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a mapping, found {values!r}")
    return {str(key): value for key, value in values.items()}


def require_file(group: str, choice: Any, where: str) -> str:
    """The name of a file in a folder of conf/, as a key of params.yaml says it; `where` names the key in messages.

    Raises:
        ValueError: there is no such file; the message names those that there are.
    """
    known = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
    if choice not in known:
        raise ValueError(
            f"{where}: expected the name of a file of conf/{group}, found {choice!r}.{suggestion(str(choice), known)} There are: "
            f"{', '.join(known)}"
        )
    return str(choice)


SCHEMAS = {
    "model": "plumbline.models.architecture",
    "data": "plumbline.data.schema",
    "judge": "plumbline.judging.judges",
    "launcher": "plumbline.pipeline.launcher",
    "engine": "plumbline.pipeline.engine",
}
"""Where a group's schemas come from: each module's SCHEMAS maps the name in a conf file's defaults list to its dataclass."""

LEARNING = {"align": "offline", "rl": "online"}
"""The package of plumbline/methods that holds a stage's methods: those that learn from rows, and those that learn from a reward."""


def schema_module(group: str, choice: str) -> str | None:
    """The module with the schema of conf/<group>/<choice>.yaml; None for a group without schemas."""
    if group == "method":
        return next((name for stage in LEARNING if module_file(name := method_module(stage, choice))), None)
    return SCHEMAS.get(group)


def method_module(stage: str, method: str) -> str:
    """The module of a method of `align` or `rl`."""
    return f"plumbline.methods.{LEARNING[stage]}.{method}"


def register_schemas(group: str, choice: str) -> None:
    """Registers the dataclasses that conf/<group>/*.yaml name in their defaults lists."""
    if name := schema_module(group, choice):
        for schema_name, schema in importlib.import_module(name).SCHEMAS.items():
            ConfigStore.instance().store(group=group, name=schema_name, node=schema)


def entry_name(stage: str) -> str:
    """Which entry of params.yaml this run is (`align=dpo` → `dpo`)."""
    return str(HydraConfig.get().runtime.choices[stage])


def problems(config: Any, prefix: str = "") -> list[str]:
    """What is wrong with a config's values, each as `key: expected …, found …`; empty if nothing is.

    Every schema in the config may have a method `problems() -> list[str]`, which names its own keys; here they get the path to that schema.
    """
    complaints: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = value.items() if isinstance(value, dict) else [("", value)]
        for name, child in nested:
            if dataclasses.is_dataclass(child):
                complaints += problems(child, f"{prefix}{field.name}.{name}{'.' if name else ''}")
    own = config.problems() if hasattr(config, "problems") else []
    if not prefix:
        own += outside(config, **{key: limits for key, limits in EVERYWHERE.items() if hasattr(config, key)})
        own += batch_problems(config)
    own += [
        complaint
        for complaint in _not_finite(config)
        if not any(other.startswith(f"{complaint.split(':')[0]}:") for other in own)
    ]
    return complaints + [f"{prefix}{complaint}" for complaint in own]


EVERYWHERE = {"seed": SEED, "threads": COUNT}
"""Values of every stage's config, with their ranges."""


def _not_finite(config: Any) -> list[str]:
    """Complaints about NaN and infinity, which no value may be."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    flat = {f"{key}.{name}": item for key, value in values.items() if isinstance(value, dict) for name, item in value.items()}
    return [
        f"{key}: expected a finite number, found {value}"
        for key, value in (values | flat).items()
        if isinstance(value, float) and not math.isfinite(value)
    ]


def require_sound(config: Any) -> None:
    """Refuses a config whose values do not fit; all complaints at once.

    Raises:
        ValueError: what was expected and found, under each key.
    """
    if complaints := problems(config):
        raise ValueError("\n- ".join(["values that do not fit:", *complaints]) if len(complaints) > 1 else complaints[0])


def typed(config: DictConfig) -> Any:
    """The composed config as an instance of the stage's dataclass.

    Raises:
        ValueError: a value is still `???`; the message names the key.
    """
    missing = OmegaConf.missing_keys(config)
    if missing:
        raise ValueError(
            f"no value for {', '.join(sorted(missing))}: set it in params.yaml, in the file of conf/ that leaves it open, or on the command line"
        )
    return OmegaConf.to_object(config)
