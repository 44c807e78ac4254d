"""Checks the whole recipe before any work: every stage's config composes, its values fit, every entry builds on something that exists.

Reads `params.yaml` and `conf/`; writes the placeholders `artifacts/none`, on which `prepare` depends so that this stage runs first, and
`artifacts/reward/none` and `artifacts/steps/none`, which slots name that are left empty. They never change. It also writes
`artifacts/decoding.json`, the decoding of `evaluate`, on which `answer` depends because DVC cannot depend on a value that params.yaml leaves out,
and `artifacts/engine.json`, the values of the engine that decide what is drawn, on which `sample` and `answer` depend instead of on the engine's
file. `artifacts/samplers/<entry>.json` says the same of what draws for an entry of `rl`, which need not be the engine. So this stage makes no
other run again unless one of these values has changed.

It also removes what entries that are gone from the recipe left in folders that `report` reads whole. Takes about two seconds, a few more for a
model from elsewhere, whose tokenizer is tried, and a second for each gigabyte of its folder; and a few more without a GPU if the recipe computes in
bfloat16, which is measured.
"""

import dataclasses
import importlib
import shutil
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from plumbline.consistency import (
    Node,
    asked_here,
    crowded,
    far_above,
    inconsistencies,
    slow_precision,
    where,
    wrong_policies,
    wrong_references,
    wrong_rows,
    wrong_steps,
)
from plumbline.data.schema import typed_data
from plumbline.evaluation.section import EvaluateSection
from plumbline.graph import NOTHING, REPEATED, SINGLE, STAGES, entries, has_outputs, name_problem, nodes, rows_of
from plumbline.hub_models import wrong_models, wrong_revisions
from plumbline.machine_memory import memory_problems
from plumbline.models.decoding_values import Decoding
from plumbline.models.size import PARAMETERS, ParameterRange
from plumbline.pipeline.composing import (
    CONF,
    LEARNING,
    SIZED,
    conf_values,
    defaults_list,
    groups,
    has_entries,
    method_module,
    model_size,
    open_groups,
    problems,
    register,
    require_file,
    section_of,
    sized_file,
    typed,
)
from plumbline.pipeline.engine import deciding_values
from plumbline.pipeline.misfits import hints, suggestion
from plumbline.pipeline.params import Params, load_params
from plumbline.pipeline.recipe_files import entry_misfits, file_misfits, size_misfits, stage_misfits
from plumbline.pipeline.records import write_json
from plumbline.pipeline.sources import module_file
from plumbline.pipeline.tracking_values import tracking_values

PLACEHOLDERS = ("none", f"reward/{NOTHING}", f"steps/{NOTHING}")
DECODING, ENGINE, SAMPLERS = Path("artifacts/decoding.json"), Path("artifacts/engine.json"), Path("artifacts/samplers")
SECTIONS = ("seed", "threads", "launcher", "engine", "inputs", "model", "data", *SINGLE, *REPEATED, "evaluate")
"""What params.yaml is made of; `answer` takes its values from `evaluate`, `report` those of conf/report.yaml."""

HYDRAS_OWN = ("launcher", "sweeper", "help", "hydra_help", "hydra_logging", "output", "env")
"""Parts of Hydra's own config that decide no value of a stage; leaving them out saves a quarter of the time."""

REQUIRED = ("seed", "threads", "launcher", "engine", "inputs", "model", "data", *SINGLE, "evaluate")
"""The sections that every recipe has; of the others it names those that it uses."""

ADDED_LATER = {
    "launcher": ". Add the line `launcher: local`: each stage then trains in one process, as before",
    "engine": ". Add the line `engine: here`: each stage then generates in its own process, as before",
}
"""Sections that an older params.yaml lacks → what to write."""


def wrong_sections(params: Params) -> list[str]:
    """Errors for sections that nothing reads, that are missing, or that are not mappings."""
    errors = [
        f"params.yaml: expected sections among {', '.join(SECTIONS)}, found {key!r}.{suggestion(key, [*SECTIONS])}"
        for key in params
        if key not in SECTIONS
    ]
    errors += [
        f"params.yaml: expected a section {key!r}, found none{ADDED_LATER.get(key, '')}" for key in REQUIRED if key not in params
    ]
    return errors + [
        f"params.yaml: {stage}: expected a mapping (`{{}}` for nothing), found {params[stage]!r}"
        for stage in SECTIONS
        if stage in STAGES and not isinstance(params.get(stage, {}), dict)
    ]


def wrong_names(params: Params) -> list[str]:
    """Errors for entries whose name cannot name a node, a folder and an option of Hydra's all at once."""
    return [
        f"params.yaml: {stage}: expected a name of letters, digits, `_` and `-`, found {name!r}: {problem}"
        for stage, name, _ in entries(params)
        if (problem := name_problem(stage, name))
    ]


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


def compositions(params: Params) -> tuple[list[str], dict[Node, Any]]:
    """What the schemas, Hydra and the configs' `problems` object to in the nodes, and the config of each node that can be composed."""
    errors, configs = [], {}
    store = ConfigStore.instance()
    hydras = dict(store.repo)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base=None):
        for stage in STAGES:
            section = params.get(stage, {}) if has_entries(stage) else [None]
            for node in [(stage, name) for name in section if name is None or not name_problem(stage, name)]:
                store.repo = dict(hydras)  # each composition copies all that is registered
                found, config = composed(node, params)
                errors += found
                if config is not None:
                    configs[node] = config
    return list(dict.fromkeys(errors)), configs


def composed(node: Node, params: Params) -> tuple[list[str], Any]:
    """What is wrong with a node's values, and its config if it can be composed; Hydra has to be initialised."""
    stage, name = node
    schema, entry = stage_schema(stage), params[stage][name] if name else {}
    if not isinstance(entry, dict):
        return [f"{where(node)}: expected a mapping, found {entry!r}"], None
    if moved := misplaced_method(stage, entry):
        return [f"{where(node)}.method: {moved}"], None
    try:
        chosen = choices(node, params)
        errors = wrong_values_by_size(params) if stage in SIZED else []
    except ValueError as error:
        return [str(error)], None
    errors += [*stage_misfits(stage, schema, params), *(entry_misfits(stage, name, entry, schema) if name else [])]
    if errors := [*errors, *(error for choice in chosen.items() for error in file_misfits(*choice))]:
        return errors, None
    overrides = [f"~hydra/{group}" for group in HYDRAS_OWN] + ([f"{stage}={name}"] if name else [])
    overrides += ["policy=sft"] if "policy" in {field.name for field in dataclasses.fields(schema)} else []
    try:
        register(stage, schema, params | ({stage: {name: entry}} if name else {}))
        composition = compose(stage, overrides=overrides)
        if missing := OmegaConf.missing_keys(composition):
            return [
                _located(f"{key}: expected a value, found none", node, params, chosen)
                for key in sorted(missing - referring(node))
            ], None
        config = typed(composition)
        if "data" in chosen:
            config.data = typed_data(config.data)
        return [_located(problem, node, params, chosen) for problem in problems(config)], config
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        text = " ".join(f"{error.__cause__ or error}".split())
        return [text if text.startswith(("params.yaml", "conf/")) else _located(text, node, params, chosen)], None


def choices(node: Node, params: Params) -> dict[str, str]:
    """The files of conf/ that a node's values come from: group → name.

    Raises:
        ValueError: there is no such file, or no choice although DVC needs one.
    """
    stage, name = node
    chosen = {group: choice for group, choice in defaults_list(stage).items() if group in groups()}
    entry = params[stage][name] if name else params.get("evaluate" if stage in ("answer", "evaluate") else stage, {})
    at = where((stage, name) if name else ("evaluate" if stage in ("answer", "evaluate") else stage, None))
    for group in [*open_groups(stage), *(["method"] if stage in LEARNING else [])]:
        if group in entry:
            chosen[group] = require_file(group, entry[group], f"{at}.{group}")
        elif group in params and group != stage:
            chosen[group] = require_file(group, params[group], f"params.yaml: {group}")
        elif group != stage:
            raise ValueError(f"{at}.{group}: missing; DVC needs it to know what depends on it. Name a file of conf/{group}")
    return chosen


def wrong_values_by_size(params: Params) -> list[str]:
    """What does not fit in the file of conf/size for the recipe's model.

    Raises:
        ValueError: the model names no such file, or it is not valid YAML.
    """
    sections = {stage: hints(stage_schema(stage))[stage] for stage in SIZED if stage not in LEARNING}
    size = model_size(params)
    return [*size_misfits(size, sections | {PARAMETERS: ParameterRange}), *given_twice(size)]


def given_twice(size: str) -> list[str]:
    """Values of conf/size/<size>.yaml that the conf file of the method or stage gives as well: an edit of that file would have no effect."""
    return [
        f"{sized_file(section).relative_to(CONF.parent)}: {key}: expected ???, because conf/size/{size}.yaml gives the value, found another value. "
        "Give it in one of the two files"
        for section, values in conf_values(CONF / f"size/{size}.yaml").items()
        if isinstance(values, dict) and sized_file(section).is_file()
        for key in values
        if left_open(section).get(key) is False
    ]


def left_open(section: str) -> dict[str, bool]:
    """Whether the conf file of a method or of a stage leaves each of its values to conf/size (`key: ???`)."""
    values = conf_values(sized_file(section))
    return {key: value == "???" for key, value in values.get(section, values).items()}


def referring(node: Node) -> set[str]:
    """The keys of a node's config that `wrong_references` looks at."""
    slots = REPEATED[node[0]].slots if node[0] in REPEATED else ()
    return {f"{node[0]}.{slot}" for slot in slots} | {f"evaluate.{field}" for field in hints(EvaluateSection)}


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


def _located(problem: str, node: Node, params: Params, chosen: dict[str, str]) -> str:
    """A problem of a config, `label.pairs: …`, with the file and the key to change: `params.yaml: label.round1.pairs: …`."""
    stage, name = node
    section, dot, rest = problem.partition(".")
    key = rest.partition(":")[0].partition(".")[0]
    if dot and section in chosen and section != stage:
        return f"conf/{section}/{chosen[section]}.yaml: {rest}"
    if section == stage and name:
        set_here = params[stage][name]
        file = f"conf/method/{chosen['method']}.yaml" if stage in LEARNING else f"conf/{stage}.yaml"
        if stage in SIZED and left_open(section_of(stage, set_here)).get(key):
            file = f"conf/size/{model_size(params)}.yaml"
        return (
            f"params.yaml: {stage}.{name}.{rest}{'' if key in set_here or ',' in key else f' (or change the default in {file})'}"
        )
    if dot and section in SECTIONS:
        return f"params.yaml: {problem}"
    return f"params.yaml: {problem}" if problem.partition(":")[0] in SECTIONS else f"{where(node)}: {problem}"


def no_repository() -> list[str]:
    """An error for a project outside a Git repository, such as a downloaded archive, unless DVC is told that there is none."""
    project = Path.cwd()
    if not Path(".dvc").is_dir() or any((folder / ".git").exists() for folder in (project, *project.parents)):
        return []
    from dvc.config import Config

    if Config(str(project / ".dvc"))["core"].get("no_scm"):
        return []
    return [
        "expected a Git repository, which DVC works in, found none. Run `git init && git add . && git commit -m start`; or "
        "`dvc config core.no_scm true`, with which `dvc exp` and `make show` do not work"
    ]


def remove_leftovers(params: Params) -> None:
    """Removes outputs of entries that the recipe no longer has from the folders that `report` reads as a whole."""
    policies = set((params.get("evaluate") or {}).get("policies", []))
    folders = ("metrics", "artifacts/answer", "artifacts/evaluate", "artifacts/figures/answer")
    kept = dict.fromkeys(folders, policies)
    for stage in REPEATED:
        names = {str(name) for name in params.get(stage) or {}}
        kept |= {f"artifacts/figures/{stage}": names, f"artifacts/curves/{stage}": names}
    for folder, names in kept.items():
        for item in Path(folder).glob("*"):
            if item.name.partition(".")[0] not in names and item.name != ".gitignore":
                shutil.rmtree(item) if item.is_dir() else item.unlink()


def write_samplers(configs: dict[Node, Any]) -> None:
    """Writes what decides the completions of each entry of `rl`, so that an engine that draws none of them makes no entry run again."""
    shutil.rmtree(SAMPLERS, ignore_errors=True)
    SAMPLERS.mkdir(parents=True)
    for (stage, name), config in configs.items():
        if stage == "rl":
            write_json(SAMPLERS / f"{name}.json", deciding_values(dataclasses.asdict(config.drawing_engine)))


def recipe_errors(params: Params) -> list[str]:
    """Everything that is wrong with a recipe; empty if it is sound."""
    return examined(params)[0]


def examined(params: Params, *, chosen: bool = False) -> tuple[list[str], dict[Node, Any]]:
    """Everything that is wrong with a recipe, and the config of each node that can be composed.

    chosen: whether it is that of params.yaml, whose outputs may be there. What has been made may need a model that is not here, or more memory.
    """
    if errors := wrong_sections(params):
        return errors, {}
    errors, configs = compositions(params)
    made = {node for node in configs if has_outputs(*node, params)} if chosen else set()
    errors += [*far_above(configs, params), *inconsistencies(configs, params), *wrong_models(configs, params, made)]
    if errors := [*wrong_names(params), *errors, *wrong_references(params)]:
        return errors, configs
    nodes(params)
    errors = wrong_signals(params) or [*wrong_rows(configs, params), *wrong_policies(params), *wrong_steps(configs, params)]
    errors += [*wrong_revisions(configs, params), *memory_problems(to_make(configs, made), params)]
    return errors, configs


def to_make(configs: Mapping[Node, Any], made: Set[Node]) -> dict[Node, Any]:
    """The nodes whose outputs are not there, and `prepare`, which names the model."""
    return {node: config for node, config in configs.items() if node not in made or node[0] == "prepare"}


def too_large_to_make_again(configs: Mapping[Node, Any], params: Params) -> list[str]:
    """Notes on what needs more memory than there is, and is not refused because it has been made."""
    made = {node for node in configs if has_outputs(*node, params)}
    refused = memory_problems(to_make(configs, made), params)
    complaints = [complaint for complaint in memory_problems(configs, params) if complaint not in refused]
    return [f"{complaint}. Not refused, because its outputs are there and need not be made again" for complaint in complaints]


def refuse(errors: list[str]) -> None:
    """Ends the program with the errors, if there are any."""
    if errors:
        sys.exit("\n".join(["The recipe has errors; nothing was run.", *(f"- {error}" for error in dict.fromkeys(errors))]))


def check_files(files: Sequence[str]) -> None:
    """Checks other recipes than params.yaml, for who is about to run them, and writes nothing."""
    errors = []
    for file in files:
        try:
            errors += recipe_errors(load_params(Path(file)))
        except (OSError, ValueError) as error:
            errors.append(str(error))
    refuse(errors)


def main(files: Sequence[str] = ()) -> None:
    if files:
        check_files(files)
        return
    try:
        params = load_params()
        errors, configs = examined(params, chosen=True)
        tracking_values()
        errors = no_repository() + errors
    except (OSError, ValueError) as error:
        errors = [str(error)]
    refuse(errors)
    remove_leftovers(params)
    for placeholder in PLACEHOLDERS:
        folder = Path("artifacts") / placeholder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README").write_text("Nothing: what an entry names that builds on nothing.\n")
    section = EvaluateSection(**params["evaluate"])
    write_json(DECODING, {name: getattr(section, name) for name in Decoding._fields})
    write_json(ENGINE, deciding_values(dataclasses.asdict(configs["answer", None].engine)))
    write_samplers(configs)
    print("The recipe is sound.")
    notes = (slow_precision(configs, params), *crowded(configs), asked_here(configs), *too_large_to_make_again(configs, params))
    for note in filter(None, notes):
        print(f"Note: {note}.")


if __name__ == "__main__":
    main(sys.argv[1:])
