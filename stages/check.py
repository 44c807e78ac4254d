"""Checks the whole recipe before any work: every stage's config composes, its values fit, every entry builds on something that exists.

Reads `params.yaml` and `conf/`; writes the placeholders `artifacts/none`, on which `prepare` depends so that this stage runs first, and
`artifacts/reward/none`, which `evaluate.reward: none` names. They never change, so this stage never makes another run again.

It also removes what entries that are gone from the recipe left in folders that `report` reads whole. Takes about a second.
"""

import dataclasses
import difflib
import importlib
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from plumbline.data.schema import FilesData, typed_data
from plumbline.graph import NOTHING, REPEATED, SINGLE, STAGES, Params, entries, nodes, options, outputs, rows_of
from plumbline.pipeline.composing import CONF, LEARNING, has_entries, load_params, method_module, problems, register, typed
from plumbline.pipeline.sources import module_file

PLACEHOLDERS = ("none", f"reward/{NOTHING}")
SECTIONS = ("seed", "threads", "inputs", "model", "data", *SINGLE, *REPEATED, "evaluate")
"""What params.yaml is made of; `answer` takes its values from `evaluate`, `report` those of conf/report.yaml."""

REQUIRED = ("seed", "threads", "inputs", "model", "data", *SINGLE, "evaluate")
"""The sections that every recipe has; of the others it names those that it uses."""

CLOSED_WORLD_ONLY = ("simulated", "gold")
"""Backends of judges that know what the closed world asks, and nothing else."""


def wrong_sections(params: Params) -> list[str]:
    """Errors for sections that nothing reads, that are missing, or that are not mappings."""
    errors = [
        f"params.yaml: expected sections among {', '.join(SECTIONS)}, found {key!r}.{_suggestion(key, [*SECTIONS])}"
        for key in params
        if key not in SECTIONS
    ]
    errors += [f"params.yaml: expected a section {key!r}, found none" for key in REQUIRED if key not in params]
    return errors + [
        f"params.yaml: {stage}: expected a mapping (`{{}}` for nothing), found {params[stage]!r}"
        for stage in SECTIONS
        if stage in STAGES and not isinstance(params.get(stage, {}), dict)
    ]


def wrong_references(params: Params) -> list[str]:
    """Errors for entries that name a node which does not exist, that lack the name of one, or that make what another makes."""
    made = outputs(params)
    errors = [
        f"params.yaml: expected each output once, found artifacts/{path} made by {' and '.join(makers)}: rename one of these entries"
        for path, makers in made.items()
        if len(makers) > 1
    ]
    for stage, name, entry in entries(params):
        for key, path in REPEATED[stage].slots.items():
            where = f"params.yaml: {stage}.{name}.{key}"
            if isinstance(entry, dict) and key not in entry:
                errors.append(f"{where}: missing; DVC needs it to know what the entry depends on.{_choices(path, made)}")
            elif isinstance(entry, dict) and str(entry[key]) not in options(path, made):
                errors.append(f"{where}: there is no {entry[key]!r}.{_choices(path, made, str(entry[key]))}")
    section = params.get("evaluate") or {}
    named = [("evaluate.reward", "reward/{}", section.get("reward", NOTHING))]
    named += [("evaluate", "policy/{}", policy) for policy in [*section.get("policies", []), section.get("against")]]
    for where, path, name in named:
        if path.format(name) not in made:
            what = "there is no policy" if path.startswith("policy") else "there is no"
            errors.append(f"params.yaml: {where}: {what} {name!r}.{_choices(path, made, str(name))}")
    return errors


def wrong_signals(params: Params) -> list[str]:
    """Errors for methods and reward models whose signal holds rows of another kind than they learn from."""
    errors = []
    for stage, name, entry in entries(params):
        if stage == "reward_model":
            wanted: tuple[str, ...] = ("preferences",)
        elif stage == "align":
            wanted = importlib.import_module(method_module(stage, entry["method"])).LEARNS_FROM
        else:
            continue
        if (kind := rows_of(entry["signal"], params)) not in wanted:
            errors.append(
                f"params.yaml: {stage}.{name}.signal: expected {' or '.join(wanted)}, found {entry['signal']}, which holds {kind}"
            )
    return errors


def composition_errors(params: Params) -> list[str]:
    """Composes every stage's config, each entry in its turn, and returns what Hydra, the schemas and their `problems` object to."""
    errors = []
    closed_world = True  # until `prepare`, the first, says otherwise
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base=None):
        for stage in STAGES:
            schema = stage_schema(stage)
            try:
                register(stage, schema)
            except ValueError as error:
                errors.append(str(error))
                continue
            names = [str(name) for name in params.get(stage) or {}] if has_entries(stage) else [None]
            policy = ["policy=sft"] if "policy" in {field.name for field in dataclasses.fields(schema)} else []
            for name in names:
                where = f"params.yaml: {stage}.{name}" if name else f"params.yaml: {stage}"
                if moved := misplaced_method(stage, (params.get(stage) or {}).get(name)):
                    errors.append(f"{where}.method: {moved}")
                    continue
                try:
                    config = typed(compose(stage, overrides=[f"{stage}={name}", *policy] if name else policy))
                except (HydraException, OmegaConfBaseException, ValueError) as error:
                    text = _explained(error)
                    errors.append(text if text.startswith(where) else f"{where}: {text}")
                    continue
                errors += [_located(problem, stage, name) for problem in problems(config)]
                if stage == "prepare":
                    closed_world = not isinstance(typed_data(config.data), FilesData)
                elif not closed_world and (only := only_of_the_closed_world(config)):
                    errors.append(
                        f"{where}: {only}: expected data: closed_world, which is all that it knows, found data: {params.get('data')}"
                    )
    return list(dict.fromkeys(errors))


def stage_schema(stage: str) -> type:
    """The dataclass that a stage's config is an instance of: `RewardModelStage` in stages/reward_model.py."""
    words = "".join(word.title() for word in stage.split("_"))
    schema: type = getattr(importlib.import_module(f"stages.{stage}"), f"{words}Stage")
    return schema


def misplaced_method(stage: str, entry: Any) -> str:
    """A complaint about a method that learns from a reward under `align`, or one that learns from rows under `rl`; empty if there is none."""
    method = entry.get("method") if isinstance(entry, dict) and stage in LEARNING else None
    others = [other for other in LEARNING if other != stage and method and module_file(method_module(other, str(method)))]
    what = {"align": "rows", "rl": "a reward"}.get(stage)
    return f"expected a method that learns from {what}, found {method}: move the entry to `{others[0]}`" if others else ""


def only_of_the_closed_world(config: Any) -> str:
    """The judge or reward of a stage that answers for the closed world alone; empty if there is none."""
    judge, verifier = getattr(config, "judge", None), getattr(config, "reward_verifier", None)
    backends = [judge.backend, *(member.get("backend") for member in getattr(judge, "members", {}).values())] if judge else []
    if known := [backend for backend in backends if backend in CLOSED_WORLD_ONLY]:
        return f"judge: {known[0]}"
    return "kind: closed_world" if getattr(verifier, "kind", "") == "closed_world" else ""


def _located(problem: str, stage: str, name: str | None) -> str:
    """A problem of a config, `label.pairs: …`, under the key of params.yaml: `label.round1.pairs: …`."""
    section, dot, rest = problem.partition(".")
    if section == stage and name:
        return f"params.yaml: {stage}.{name}.{rest}"
    return (
        f"params.yaml: {problem}"
        if dot and section in SECTIONS
        else f"params.yaml: {stage}{f'.{name}' if name else ''}: {problem}"
    )


def _explained(error: Exception) -> str:
    """Hydra's error in one line, with the key that was probably meant."""
    text = " ".join(f"{error.__cause__ or error}".split())
    match = re.search(r"Key '(\w+)' not in '(\w+)'", text)
    if not match:
        return text
    known = _schema_fields(ConfigStore.instance().repo).get(match[2], [])
    listed = f" Known: {', '.join(known)}" if known else ""
    return f"unknown key {match[1]!r}.{_suggestion(match[1], known)}{listed}"


def _schema_fields(repo: Any) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for value in repo.values():
        if isinstance(value, dict):
            fields.update(_schema_fields(value))
        elif (schema := getattr(value.node, "_metadata", None)) and isinstance(schema.object_type, type):
            fields[schema.object_type.__name__] = [str(key) for key in value.node]
    return fields


def _choices(path: str, made: dict[str, list[str]], word: str = "") -> str:
    """What a slot may name, the one that was probably meant first."""
    names = options(path, made)
    return f"{_suggestion(word, names)} There are: {', '.join(names) or 'none yet'}."


def _suggestion(word: str, options: list[str]) -> str:
    close = difflib.get_close_matches(word, options, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def remove_leftovers(params: Params) -> None:
    """Removes outputs of entries that the recipe no longer has from the folders that `report` reads as a whole."""
    policies = set((params.get("evaluate") or {}).get("policies", []))
    kept = {"metrics": policies, "artifacts/answer": policies, "artifacts/evaluate": policies}
    for stage in REPEATED:
        names = {str(name) for name in params.get(stage) or {}}
        kept |= {f"artifacts/figures/{stage}": names, f"artifacts/curves/{stage}": names}
    for folder, names in kept.items():
        for item in Path(folder).glob("*"):
            if item.name.partition(".")[0] not in names and item.name != ".gitignore":
                shutil.rmtree(item) if item.is_dir() else item.unlink()


def main() -> None:
    try:
        params = load_params()
        errors = wrong_sections(params) or composition_errors(params) + wrong_references(params)
        if not errors:
            nodes(params)
            errors = wrong_signals(params)
    except (OSError, ValueError) as error:
        errors = [str(error)]
    if errors:
        sys.exit("\n".join(["The recipe has errors; nothing was run.", *(f"- {error}" for error in errors)]))
    remove_leftovers(params)
    for placeholder in PLACEHOLDERS:
        folder = Path("artifacts") / placeholder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README").write_text("Nothing: what an entry names that builds on nothing.\n")
    print("The recipe is sound.")


if __name__ == "__main__":
    main()
