"""What does not fit its schema in params.yaml and in the files of conf/ that it chooses, each named with its file and its key."""

import importlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml
from omegaconf import OmegaConf

from plumbline.pipeline.composing import CONF, LEARNING, conf_values, open_groups, schema_module
from plumbline.pipeline.misfits import hints, misfits, suggestion
from plumbline.pipeline.params import Params

PARAMS = "params.yaml"


def stage_misfits(stage: str, schema: type, params: Params) -> Iterator[str]:
    """Of a stage as a whole: its values in conf/<stage>.yaml, and its sections of params.yaml that are not entries."""
    chosen = {*open_groups(stage)}
    yield from misfits({key: params[key] for key in hints(schema) if key in params and key not in chosen}, schema, PARAMS)
    yield from misfits(_read(f"{stage}.yaml"), schema, f"conf/{stage}.yaml")


def entry_misfits(stage: str, name: str, entry: Mapping[str, Any], schema: type) -> list[str]:
    """Of one entry; empty if nothing says which schema it has to fit, such as an entry of `align` with a method that does not exist."""
    fitting = schema_of("method", str(entry.get("method"))) if stage in LEARNING else hints(schema)[stage]
    return [*misfits(entry, fitting, f"{PARAMS}: {stage}.{name}")] if fitting else []


@cache
def file_misfits(group: str, choice: str) -> tuple[str, ...]:
    """Of conf/<group>/<choice>.yaml, which may build on nothing but a schema: for a stage that chooses it, DVC watches no other file."""
    where = f"conf/{group}/{choice}.yaml"
    try:
        schema, values, bases = schema_of(group, choice), _read(f"{group}/{choice}.yaml"), _bases(group, choice)
    except (yaml.YAMLError, OSError) as error:
        return (f"{where}: {' '.join(str(error).split())}",)
    if bases:
        return (
            f"{where}: defaults: expected a schema ({', '.join(_schemas(group, choice))}) and _self_, found {bases[0]}, whose edits "
            "DVC would not see. Copy its values here, and name its schema instead",
        )
    if schema is None:
        return (f"{where}: expected the name of a schema first in `defaults` ({', '.join(_schemas(group, choice))}), found none",)
    return tuple(misfits(values, schema, where))


def size_misfits(size: str, schemas: Mapping[str, type]) -> Iterator[str]:
    """Of conf/size/<size>.yaml; `schemas` has those of the sections that are no methods."""
    where = f"conf/size/{size}.yaml"
    methods = {file.stem: schema_of("method", file.stem) for file in sorted((CONF / "method").glob("*.yaml"))}
    known = {name: schema for name, schema in {**methods, **schemas}.items() if schema}
    for section, values in conf_values(CONF / f"size/{size}.yaml").items():
        if section not in known:
            yield f"{where}: unknown method or stage {section!r}.{suggestion(section, [*known])} Known: {', '.join(known)}"
        elif not isinstance(values, dict):
            yield f"{where}: {section}: expected a mapping, found {values!r}"
        else:
            yield from misfits(values, known[section], f"{where}: {section}")


def schema_of(group: str, choice: str) -> type | None:
    """The dataclass that a file of conf/<group> fills in, as its defaults list says; None if that names none."""
    if not (CONF / group / f"{choice}.yaml").is_file():
        return None
    schemas = _schemas(group, choice)
    named = [schemas[item] for item in _defaults(group, choice) if item in schemas]
    return named[0] if named else schemas.get("closed_world_schema")  # the closed world's file names none


def _bases(group: str, choice: str) -> list[str]:
    """What a file's defaults list names besides a schema."""
    return [item for item in _defaults(group, choice) if item not in (*_schemas(group, choice), "_self_")]


def _defaults(group: str, choice: str) -> list[str]:
    """A file's defaults list; of a mapping, such as `/judge: gold`, what Hydra makes of it: `/judge/gold`."""
    items = _read(f"{group}/{choice}.yaml", whole=True).get("defaults") or []
    items = items if isinstance(items, list) else [items]
    return ["/".join(f"{key}/{value}" for key, value in item.items()) if isinstance(item, dict) else str(item) for item in items]


def _schemas(group: str, choice: str) -> dict[str, type]:
    module = schema_module(group, choice)
    schemas: dict[str, type] = importlib.import_module(module).SCHEMAS if module else {}
    return schemas


@cache
def _read(file: str, *, whole: bool = False) -> dict[str, Any]:
    """The values of a file of conf/; without its defaults list unless the whole is asked for."""
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / file))
    return {str(key): value for key, value in values.items() if whole or key != "defaults"}
