"""What the values of a recipe demand of each other and of this machine, beyond what one stage's config can tell.

Each function takes every node's composed config, by (stage, entry), and says what does not fit, under the key of params.yaml.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plumbline.checking.following import require_checkers, require_library
from plumbline.checking.instructions import COLUMN, Instruction
from plumbline.checking.program_runs import COLUMN as TESTS
from plumbline.checking.program_runs import NOT_RUN
from plumbline.checking.references import REFERENCE_COLUMNS
from plumbline.checking.sandbox import SandboxUnavailable, require_isolation
from plumbline.data.faults import DataError
from plumbline.data.files import find_files
from plumbline.data.schema import ROLES, FilesData
from plumbline.graph import NOTHING, REPEATED, Params, entries, options, outputs, policies_in
from plumbline.models.architecture import HubModel, ScratchModel
from plumbline.models.bfloat16 import is_saved_in_bfloat16, slowdown
from plumbline.pipeline.composing import CONF, model_size, values_by_size
from plumbline.pipeline.engine import engine_lacks
from plumbline.pipeline.launcher import machine_problems, trains
from plumbline.pipeline.misfits import suggestion
from plumbline.pipeline.processes import oversubscription
from plumbline.world.families.catalog import FAMILIES

Node = tuple[str, str | None]
Configs = Mapping[Node, Any]

CLOSED_WORLD_ONLY = ("simulated", "gold")
"""Backends of judges that know what the closed world asks, and nothing else."""


FAR_ABOVE = 30
"""How many times the value for the model's size a learning rate may be.

An adapter takes ten times the rate of full training (thinkingmachines.ai/blog/lora), and published rates for one size are up to three times apart.
A tiny model's rates are 33 to 1,000 times those of a small one; only SFT's (8) and the reward model's (30) come near.
"""


MUCH_SLOWER = 2
"""From this factor on, a matrix product that is slower in bfloat16 than in float32 is worth a note."""


def inconsistencies(configs: Configs, params: Params) -> list[str]:
    """What does not fit between nodes and with this machine; empty if all does."""
    prepare = configs.get(("prepare", None))
    if prepare is None:
        return []
    files = isinstance(prepare.data, FilesData)
    return [
        *(_wrong_files(prepare, params) if files else []),
        *_of_another_world(configs, () if files else FAMILIES, params),
        *without_sandbox(configs),
        *without_sandbox_for_answers(configs, params),
        *without_checkers(configs, params),
        *_not_launchable(configs, params),
        *_without_engine(configs, params),
    ]


def where(node: Node) -> str:
    """A node's place in params.yaml."""
    return f"params.yaml: {'.'.join(filter(None, node))}"


def settings(node: Node, config: Any) -> Any:
    """The values of a node's own entry or section."""
    return config.evaluate if node[0] == "answer" else getattr(config, node[0])


def _wrong_files(prepare: Any, params: Params) -> Iterator[str]:
    """Files that the data conf names and that are not there."""
    inputs = Path(prepare.inputs)
    for role in ROLES:
        for source in getattr(prepare.data, role).sources if inputs.is_dir() else ():
            try:
                find_files(source, inputs)
            except DataError as error:
                yield f"conf/data/{params['data']}.yaml: {role}: {error}"


def wrong_rows(configs: Configs, params: Params) -> Iterator[str]:
    """Errors for stages of a sound recipe that need rows which the data conf has no source for."""
    prepare, section = configs["prepare", None], params["evaluate"]
    data, file = prepare.data, f"conf/data/{params['data']}.yaml"
    files = isinstance(data, FilesData)
    missing = {role for role in ROLES if not getattr(data, role).sources} if files else {"unpaired"}
    needed = {"sft": "sft", "prompts": "evaluate"} | ({"pretrain": "pretrain"} if isinstance(prepare.model, ScratchModel) else {})
    for stage, name, entry in entries(params):
        if str(entry.get("signal")).startswith("data/"):
            needed[entry["signal"].removeprefix("data/")] = f"{stage}.{name}.signal"
    for role in sorted(missing & set(needed)):
        yield f"params.yaml: {needed[role]}: expected a source of the role `{role}` in {file}, found none"
    if files and "prompts" not in missing:
        by_hash = {"train", *(split for split in ("validation", "test") if getattr(data, f"{split}_fraction"))}
        splits = {split for source in data.prompts.sources for split in ([source.into] if source.into else by_hash)}
        if (split := section["split"]) not in splits:
            yield (
                f"params.yaml: evaluate.split: expected a split of the prompts in {file} ({', '.join(sorted(splits))}), found {split}. Set `into` "
                f"of a source to {split}, or {split}_fraction above 0"
            )


def _of_another_world(configs: Configs, world: Any, params: Params) -> Iterator[str]:
    """Judges and verifiers that know the closed world alone on other data, and kinds that need what the closed world lacks.

    world: the closed world's families; empty for data from files.
    """
    for node, config in configs.items():
        values = settings(node, config) if node[0] in ("label", "reward_verifier", "rl") else None
        only = "" if world else _only_of_the_closed_world(config, values)
        if only:
            yield f"{where(node)}: {only}: expected data: closed_world, which is all that it knows, found data: {params.get('data')}"
        kind = getattr(values, "kind", "")
        if world and (column := REFERENCE_COLUMNS.get(kind)):
            yield f"{where(node)}.kind: expected closed_world with data: closed_world, whose prompts have no {column}, found {kind}"
        if world and (unknown := [family for family in getattr(values, "families", ()) if family not in world]):
            yield f"{where(node)}.families: expected families of the closed world ({', '.join(world)}), found {', '.join(unknown)}"


def _only_of_the_closed_world(config: Any, values: Any) -> str:
    """The judge or reward of a stage that answers for the closed world alone; empty if there is none."""
    judge = getattr(config, "judge", None)
    backends = [judge.backend, *(member.get("backend") for member in getattr(judge, "members", {}).values())] if judge else []
    if known := [backend for backend in backends if backend in CLOSED_WORLD_ONLY]:
        return f"judge: {known[0]}"
    if getattr(values, "known", "") == "gold":
        return "known: gold"
    return "kind: closed_world" if getattr(values, "kind", "") == "closed_world" else ""


def far_above(configs: Configs, params: Params) -> Iterator[str]:
    """Learning rates in params.yaml that are for a much smaller model."""
    for node, config in configs.items():
        stage, name = node
        entry = params[stage][name] if name else params.get(stage, {})
        for key, fitting in values_by_size(stage, entry, params).items():
            found = getattr(settings(node, config), key) if key in entry and key.endswith("learning_rate") else 0
            if found > FAR_ABOVE * fitting:
                yield (
                    f"{where(node)}.{key}: expected at most {FAR_ABOVE} times {fitting:g}, the value for a {model_size(params)} model, found "
                    f"{found:g}. Delete the key, or lower the value"
                )


def slow_precision(configs: Configs, params: Params) -> str:
    """A note on a sound recipe that computes in bfloat16 where that is much slower than float32; empty if there is nothing to note."""
    nodes = [node for node, config in configs.items() if getattr(settings(node, config), "bf16", False)]
    model = configs["prepare", None].model
    saved = isinstance(model, HubModel) and (
        model.dtype == "bfloat16" or (not model.dtype and is_saved_in_bfloat16(model.path, model.revision))
    )
    if not (nodes or saved) or (factor := slowdown()) < MUCH_SLOWER:
        return ""
    remedies = [f"bf16: false for {', '.join('.'.join(filter(None, node)) for node in nodes)} in params.yaml"] if nodes else []
    remedies += [f"dtype: float32 in conf/model/{params['model']}.yaml"] if saved else []
    return (
        f"this machine has no GPU, and its CPU takes about {factor:.0f} times as long for a matrix product in bfloat16 as in float32: set "
        f"{', and '.join(remedies)}"
    )


def _launched(configs: Configs) -> list[Any]:
    """The configs of the stages that train in the processes of a launcher."""
    return [
        config for config in configs.values() if hasattr(config, "launcher") and not config.launcher.is_local and trains(config)
    ]


def _not_launchable(configs: Configs, params: Params) -> Iterator[str]:
    """What the launcher of stages that train needs, and this machine lacks."""
    if stages := _launched(configs):
        yield from (f"conf/launcher/{params['launcher']}.yaml: {complaint}" for complaint in machine_problems(stages[0].launcher))


def crowded(configs: Configs) -> Iterator[str]:
    """Notes on a launcher and an engine that start more threads than this machine has cores."""
    for stage in _launched(configs)[:1]:
        if not stage.launcher.prefix:  # which starts processes on other machines
            yield oversubscription("processes", stage.launcher.processes, stage.threads)
    for stage in _with_engine(configs)[:1]:
        if stage.engine.shards == "processes":
            yield oversubscription("workers", stage.engine.workers, stage.threads)


def _with_engine(configs: Configs) -> list[Any]:
    """The configs of the stages that an engine draws completions or computes shards for; all have the same engine."""
    return [config for config in configs.values() if hasattr(config, "engine")]


def asked_here(configs: Configs) -> str:
    """A note on labels whose judge is asked by the stage's own process although the engine has workers; empty if there are none."""
    nodes = [
        f"label@{entry}"
        for (stage, entry), config in configs.items()
        if stage == "label" and config.engine.shards != "here" and config.judge.backend != "none"
    ]
    return f"{', '.join(nodes)}: the judge is asked by the stage's own process, not by workers (docs/scale.md)" if nodes else ""


def _without_engine(configs: Configs, params: Params) -> Iterator[str]:
    """What the engine needs, and the environment does not offer."""
    if stages := _with_engine(configs):
        yield from (f"conf/engine/{params['engine']}.yaml: {complaint}" for complaint in engine_lacks(stages[0].engine))


def without_sandbox(configs: Configs) -> Iterator[str]:
    """Verifiers that run programs with an isolation that this machine does not offer."""
    nodes = {
        node: values
        for node, config in configs.items()
        if node[0] == "reward_verifier" and (values := settings(node, config)).kind == "code"
    }
    for isolation in dict.fromkeys(values.isolation for values in nodes.values()):
        try:
            require_isolation(isolation)
        except SandboxUnavailable as error:
            yield from (f"{where(node)}: {error}" for node, values in nodes.items() if values.isolation == isolation)


def without_sandbox_for_answers(configs: Configs, params: Params) -> Iterator[str]:
    """Programs that answers are evaluated by, as far as the data conf tells, with an isolation that this machine does not offer."""
    data = configs["prepare", None].data
    sources = [source for source in data.prompts.sources if not source.problems()] if isinstance(data, FilesData) else []
    evaluated = (None, params.get("evaluate", {}).get("split"))
    with_tests = [s.name for s in sources if s.into in evaluated and (TESTS in s.fields or s.format in ("mbpp", "humaneval"))]
    programs = next((config.programs for node, config in configs.items() if node[0] == "evaluate"), None)
    if not with_tests or programs is None or programs.isolation == NOT_RUN:
        return
    try:
        require_isolation(programs.isolation)
    except SandboxUnavailable as error:
        yield (
            f"conf/evaluate.yaml: programs.{error} Or set `isolation: none`, which runs no program: the answers to the prompts of "
            f"{', '.join(with_tests)} are then not checked."
        )


def wrong_references(params: Params) -> list[str]:
    """Errors for entries that name a node which does not exist, that lack the name of one, or that make what another makes."""
    made = outputs(params)
    errors = [
        f"params.yaml: expected each output once, found artifacts/{path} made by {' and '.join(makers)}: rename one of these entries"
        for path, makers in made.items()
        if len(makers) > 1
    ]
    for stage, name, entry in entries(params):
        for key, path in REPEATED[stage].slots.items() if isinstance(entry, dict) else ():
            where = f"params.yaml: {stage}.{name}.{key}"
            if key not in entry:
                errors.append(f"{where}: missing; DVC needs it to know what the entry depends on.{_choices(path, made)}")
            elif isinstance(entry[key], str) and entry[key] not in options(path, made):
                errors.append(f"{where}: there is no {entry[key]!r}.{_choices(path, made, str(entry[key]))}")
    return errors + _wrong_evaluation(params["evaluate"], made)


def _wrong_evaluation(section: dict[str, Any], made: dict[str, list[str]]) -> list[str]:
    named_by_dvc = re.findall(r"(?:- |\{)evaluate\.(\w+)", (CONF.parent / "dvc.yaml").read_text(encoding="utf-8"))
    errors = [
        f"params.yaml: evaluate.{key}: missing; DVC needs it to know what the evaluation depends on"
        for key in dict.fromkeys(named_by_dvc)
        if key not in section
    ]
    reward, against, policies = (section.get(key) for key in ("reward", "against", "policies"))
    if "reward" in section and reward not in (NOTHING, *options("reward/{}", made)):
        errors.append(
            f"params.yaml: evaluate.reward: there is no {reward!r}.{_choices('reward/{}', made, str(reward))} {NOTHING}: no reward."
        )
    named = [("evaluate.policies", policy) for policy in (policies if isinstance(policies, list) else [])]
    named += [("evaluate.against", against)] if "against" in section else []
    return errors + [
        f"params.yaml: {where}: there is no policy {name!r}.{_choices('policy/{}', made, str(name))}"
        for where, name in named
        if name not in options("policy/{}", made)
    ]


def _choices(path: str, made: dict[str, list[str]], word: str = "") -> str:
    """What a slot may name, the one that was probably meant first."""
    names = options(path, made)
    return f"{suggestion(word, names)} There are: {', '.join(names) or 'none yet'}."


def wrong_policies(params: Params) -> list[str]:
    """Errors for pairs of two policies of which the sample holds no completions."""
    errors = []
    for name, entry in params.get("label", {}).items():
        held = policies_in(entry["sample"], params)
        errors += [
            f"params.yaml: label.{name}.{key}: expected a policy whose completions sample {entry['sample']!r} holds ({', '.join(sorted(held))}), "
            f"found {entry[key]!r}"
            for key in ("strong", "weak")
            if entry.get(key) is not None and entry[key] not in held
        ]
    return errors


def wrong_steps(configs: Configs, params: Params) -> Iterator[str]:
    """Errors for steps of a sound recipe that their entry does not keep."""
    keeping = {name: (stage, name) for stage, name, _ in entries(params) if REPEATED[stage].also == "steps"}
    for name, entry in (params.get("overoptimisation") or {}).items():
        node = keeping.get(entry["steps"])
        if node and not getattr(settings(node, configs[node]), "keep_steps", ()):
            yield (
                f"params.yaml: overoptimisation.{name}.steps: expected an entry that keeps its policy during training, found {entry['steps']}. Name "
                f"some steps in {'.'.join(node)}.keep_steps, if its method has that key, or write {NOTHING} for best of n"
            )


def without_checkers(configs: Configs, params: Params) -> list[str]:
    """Prompts with instructions, as far as the data conf tells, and verifiers of these, that this machine lacks what checks them: what is missing is
    said once, with all places that need it.
    """
    missing: dict[str, dict[str, list[str]]] = {}
    for file, place, instructions in _with_instructions(configs, params):
        try:
            require_library()
            require_checkers(instructions)
        except ValueError as error:
            missing.setdefault(str(error), {}).setdefault(file, []).append(place)
    return [
        f"{' and '.join(file + ', '.join(places) for file, places in by_file.items())}: {error}"
        for error, by_file in missing.items()
    ]


def _with_instructions(configs: Configs, params: Params) -> Iterator[tuple[str, str, Sequence[Instruction]]]:
    """What checks instructions, or has prompts with some: the beginning of its place, the rest, and the instructions that are known."""
    data = configs["prepare", None].data
    sources = [source for source in data.prompts.sources if not source.problems()] if isinstance(data, FilesData) else []
    for node, config in configs.items():
        if node[0] == "reward_verifier" and settings(node, config).kind == "instructions":
            yield f"params.yaml: {node[0]}.", f"{node[1]}.kind", [one for source in sources for one in source.instructions]
    evaluated = (None, params.get("evaluate", {}).get("split"))
    for source in sources:
        if source.into in evaluated and (source.instructions or COLUMN in source.fields or source.format == "ifeval"):
            yield f"conf/data/{params['data']}.yaml: prompts: source ", f"'{source.name}'", source.instructions
