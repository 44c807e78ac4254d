"""Checks the whole recipe before any work: every stage's config composes, every entry builds on something that exists.

Reads `params.yaml` and `conf/`; writes the placeholders `artifacts/none` and `artifacts/{policy,sample,reward}/none`, which entries
that build on nothing name, and `artifacts/calibration/none`, so that `report` finds that folder where nothing makes a reward. They never
change, so this stage never makes another run again.

It also removes what entries that are gone from the recipe left in folders that `report` reads whole. Takes about a second.
"""

import dataclasses
import difflib
import importlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from stages.datasets.config import FilesData, typed_data
from stages.evaluation.section import check_section
from stages.pipeline.composing import CONF, Params, has_entries, load_params, register, typed

STAGES = ("prepare", "pretrain", "sft", "sample", "revise", "label", "reward", "reject", "align", "answer", "evaluate", "report")
REFERENCES = {
    "sample": {"policy": "policy/{}", "extends": "sample/{}"},
    "revise": {"sample": "sample/{}"},
    "label": {"sample": "sample/{}"},
    "reward": {"init": "policy/{}", "signal": "{}", "second": "reward/{}"},
    "reject": {"sample": "sample/{}", "reward": "reward/{}", "cost": "reward/{}"},
    "align": {"init": "policy/{}", "signal": "{}"},
}
"""The keys of an entry that name another node, and where below artifacts/ that node's output lies."""

SELF_CHECKED = {"label": ("label", "judge"), "reward": ("reward", "judge"), "reject": ("reject",)}
"""Stages whose `check_entry` says whether an entry's values fit together, beyond their types, and the parts of the config that it takes."""

SECTIONS = ("seed", "threads", "inputs", "model", "data", *(stage for stage in STAGES if stage not in ("answer", "report")))
"""What params.yaml is made of; `answer` takes its values from `evaluate`, `report` those of conf/report.yaml."""

CLOSED_WORLD_ONLY = ("simulated", "gold")
"""Judges that know what the closed world asks, and nothing else."""

GIVEN = {"none", "policy/none", "sample/none", "reward/none"}
GIVEN |= {"data/sft", "data/prompts", "data/preferences", "data/unpaired", "policy/base", "policy/sft"}
"""Outputs that are there without an entry of their own."""


def entries(params: Params) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every entry of the recipe: (stage, name, values)."""
    for stage in REFERENCES:
        for name, entry in (params.get(stage) or {}).items():
            yield stage, str(name), entry


def outputs(params: Params) -> dict[str, str]:
    """Where below artifacts/ each entry's output lies → the entry's node."""
    folder = {"align": "policy"}
    return {f"{folder.get(stage, stage)}/{name}": f"{stage}@{name}" for stage, name, _ in entries(params)}


def wrong_sections(params: Params) -> list[str]:
    """Errors for sections that nothing reads, and for those that are no mappings."""
    errors = [
        f"params.yaml: there is no section {key!r}.{_suggestion(key, [*SECTIONS])} There are: {', '.join(SECTIONS)}."
        for key in params
        if key not in SECTIONS
    ]
    return errors + [
        f"params.yaml: {stage}: expected a mapping (`{{}}` for nothing), found {params[stage]!r}"
        for stage in SECTIONS
        if stage in STAGES and not isinstance(params.get(stage, {}), dict)
    ]


def wrong_references(params: Params) -> list[str]:
    """Errors for entries that name a node which does not exist, or that lack the name of one."""
    known = GIVEN | set(outputs(params))
    errors = []
    for stage, name, entry in entries(params):
        for key, place in REFERENCES[stage].items():
            where = f"params.yaml: {stage}.{name}.{key}"
            if not isinstance(entry, dict) or (
                key not in entry and (stage, key) in {("sample", "policy"), ("label", "sample"), ("revise", "sample")}
            ):
                continue  # composing reports it
            if key not in entry:
                errors.append(
                    f"{where}: missing; DVC needs it to know what the entry depends on. Write `{key}: none` for nothing."
                )
            elif place.format(entry[key]) not in known:
                prefix = place.format("")
                options = sorted(item.removeprefix(prefix) for item in known if item.startswith(prefix))
                errors.append(
                    f"{where}: there is no {entry[key]!r}.{_suggestion(str(entry[key]), options)} There are: {', '.join(options)}."
                )
    section = params.get("evaluate") or {}
    if (reward := f"reward/{section.get('reward', 'none')}") not in known:
        rewards = sorted(item.removeprefix("reward/") for item in known if item.startswith("reward/"))
        said = reward.removeprefix("reward/")
        errors.append(
            f"params.yaml: evaluate.reward: there is no {said!r}.{_suggestion(said, rewards)} There are: {', '.join(rewards)}."
        )
    policies = [item.removeprefix("policy/") for item in sorted(known - {"policy/none"}) if item.startswith("policy/")]
    for name in [*section.get("policies", []), section.get("against")]:
        if name not in policies:
            errors.append(
                f"params.yaml: evaluate: there is no policy {name!r}.{_suggestion(str(name), policies)} There are: {', '.join(policies)}."
            )
    return errors


def cycle(params: Params) -> list[str]:
    """A cycle among the recipe's entries, as the nodes on it; empty if there is none."""
    made_by = outputs(params)
    builds_on = {
        f"{stage}@{name}": [
            made_by[place.format(entry[key])]
            for key, place in REFERENCES[stage].items()
            if place.format(entry.get(key)) in made_by
        ]
        for stage, name, entry in entries(params)
        if isinstance(entry, dict)
    }

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        return next((found for child in builds_on.get(node, []) if (found := visit(child, [*path, node]))), [])

    return next((found for node in builds_on if (found := visit(node, []))), [])


def composition_errors(params: Params) -> list[str]:
    """Composes every stage's config, each entry in its turn, and returns what Hydra and the schemas object to."""
    errors = []
    closed_world = True  # until `prepare`, the first, says otherwise
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base=None):
        for stage in STAGES:
            module = importlib.import_module(f"stages.{stage}")
            try:
                register(stage, schema := getattr(module, f"{stage.title()}Stage"))
            except ValueError as error:
                errors.append(str(error))
                continue
            names = [str(name) for name in params.get(stage) or {}] if has_entries(stage) else [None]
            policy = ["policy=sft"] if "policy" in {field.name for field in dataclasses.fields(schema)} else []
            for name in names:
                where = f"params.yaml: {stage}.{name}" if name else f"params.yaml: {stage}"
                try:
                    config = typed(compose(stage, overrides=[f"{stage}={name}", *policy] if name else policy))
                    if name and stage in SELF_CHECKED:
                        module.check_entry(*(getattr(config, part) for part in SELF_CHECKED[stage]), name)
                    if stage == "answer":
                        check_section(config.evaluate)
                    if stage == "prepare":
                        closed_world = not isinstance(typed_data(config.data), FilesData)
                    elif not closed_world and (found := only_of_the_closed_world(config)):
                        raise ValueError(
                            f"{found} knows nothing but `data: closed_world`, found data: {params.get('data')}: choose another"
                        )
                except (HydraException, OmegaConfBaseException, ValueError) as error:
                    text = _explained(error)
                    errors.append(text if text.startswith(where) else f"{where}: {text}")
    return errors


def only_of_the_closed_world(config: Any) -> str:
    """The judge or reward of a stage that answers for the closed world alone; empty if there is none."""
    judge, reward = getattr(config, "judge", None), getattr(config, "reward", None)
    backends = [judge.backend, *(member.get("backend") for member in getattr(judge, "members", {}).values())] if judge else []
    if found := [backend for backend in backends if backend in CLOSED_WORLD_ONLY]:
        return f"judge: {found[0]}"
    return "kind: verifier" if getattr(reward, "kind", "") == "verifier" else ""


def _explained(error: Exception) -> str:
    """Hydra's error in one line, with the key that was probably meant."""
    text = " ".join(f"{error.__cause__ or error}".split())
    found = re.search(r"Key '(\w+)' not in '(\w+)'", text)
    if not found:
        return text
    from hydra.core.config_store import ConfigStore

    schemas = {name: node for name, node in _schema_fields(ConfigStore.instance().repo).items() if name == found[2]}
    return f"unknown key {found[1]!r}.{_suggestion(found[1], schemas.get(found[2], []))} Known: {', '.join(schemas.get(found[2], []))}"


def _schema_fields(repo: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for value in repo.values():
        if isinstance(value, dict):
            found.update(_schema_fields(value))
        elif (schema := getattr(value.node, "_metadata", None)) and isinstance(schema.object_type, type):
            found[schema.object_type.__name__] = [str(key) for key in value.node]
    return found


def _suggestion(word: str, options: list[str]) -> str:
    close = difflib.get_close_matches(word, options, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def remove_leftovers(params: Params) -> None:
    """Removes outputs of entries that the recipe no longer has from the folders that `report` reads as a whole."""
    policies = set((params.get("evaluate") or {}).get("policies", []))
    kept = {"metrics": policies, "artifacts/answer": policies, "artifacts/evaluate": policies}
    for stage in REFERENCES:
        names = {str(name) for name in params.get(stage) or {}}
        kept |= {f"metrics/{stage}": names, f"artifacts/curves/{stage}": names}
    kept["artifacts/calibration"] = {str(name) for name in params.get("reward") or {}} | {"none"}
    for folder, names in kept.items():
        for item in Path(folder).glob("*"):
            stage_folder = folder == "metrics" and item.is_dir()
            if item.stem not in names and not stage_folder and item.name != ".gitignore":
                shutil.rmtree(item) if item.is_dir() else item.unlink()


def main() -> None:
    try:
        params = load_params()
        errors = wrong_sections(params) or composition_errors(params) + wrong_references(params)
        if not errors and (nodes := cycle(params)):
            errors = [f"params.yaml: a cycle: {' builds on '.join(nodes)}. Let one of them build on something else."]
    except (OSError, ValueError) as error:
        errors = [str(error)]
    if errors:
        sys.exit("\n".join(["The recipe has errors; nothing was run.", *(f"- {error}" for error in errors)]))
    remove_leftovers(params)
    for place in ("none", "policy/none", "sample/none", "reward/none", "calibration/none"):
        folder = Path("artifacts") / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README").write_text("Nothing: what an entry names that builds on nothing.\n")
    print("The recipe is sound.")


if __name__ == "__main__":
    main()
