"""The pipeline's graph, written once: for every kind of stage, the slots of its entries, where each leads, and what it makes.

`check`, the report, the recipe book and the tests read the graph here. `dvc.yaml` spells it out for DVC, and a test compares the two.
All paths are below `artifacts/`.
"""

import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

Params = Mapping[str, Any]

ARTIFACTS = Path("artifacts")

NOTHING = "none"
"""What a slot names that is left empty, such as `evaluate.reward`."""


class Kind(NamedTuple):
    """A kind of stage, each of whose entries in params.yaml is a node."""

    folder: str
    """Where its outputs lie: the entry `dpo` of `align` makes policy/dpo."""
    slots: dict[str, str]
    """An entry's key that names another node → the path of that node's output, `{}` standing for the value."""
    reads: tuple[str, ...] = ()
    """What every entry reads besides; `{split}` stands for the split that `evaluate` names."""
    also: str = ""
    """Another folder in which each entry has an output."""

    def makes(self, name: str) -> tuple[str, ...]:
        """The paths of an entry's outputs that slots can name."""
        return tuple(f"{folder}/{name}" for folder in (self.folder, self.also) if folder)


REPEATED = {
    "feedback": Kind("feedback", {"policy": "policy/{}"}, ("data/prompts",)),
    "sample": Kind("sample", {"policy": "policy/{}"}, ("data/prompts/train.jsonl", "data/sft/train.jsonl")),
    "pool": Kind("sample", {"first": "sample/{}", "second": "sample/{}"}),
    "filter": Kind("sample", {"sample": "sample/{}", "reward": "reward/{}"}),
    "revise": Kind("revise", {"sample": "sample/{}"}),
    "label": Kind("label", {"sample": "sample/{}"}),
    "reward_model": Kind("reward", {"init": "policy/{}", "signal": "{}"}),
    "reward_rules": Kind("reward", {}),
    "reward_verifier": Kind("reward", {}, ("data/prompts",)),
    "reward_judge": Kind("reward", {}),
    "reward_sum": Kind("reward", {"first": "reward/{}", "second": "reward/{}"}),
    "reject": Kind("reject", {"sample": "sample/{}", "reward": "reward/{}"}),
    "align": Kind("policy", {"init": "policy/{}", "signal": "{}"}, also="steps"),
    "rl": Kind("policy", {"init": "policy/{}", "reward": "reward/{}"}, ("data/prompts/train.jsonl",), also="steps"),
    "overoptimisation": Kind(
        "overoptimisation",
        {"init": "policy/{}", "steps": "steps/{}", "proxy": "reward/{}", "gold": "reward/{}"},
        ("data/prompts/{split}.jsonl",),
    ),
}
"""The stages with entries, in the order in which a recipe lists them."""

SIGNALS = ("data/sft", "data/preferences", "data/unpaired", "feedback", "label", "reject", "revise", "policy")
"""What rows, or another policy, can be learnt from: outputs and folders of outputs that a slot `{}` may name."""

DATA = ("data/pretrain", "data/sft", "data/prompts", "data/preferences", "data/unpaired", "tokenizer")
SINGLE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "prepare": ((), DATA),
    "pretrain": (("data/pretrain", "tokenizer"), ("policy/base",)),
    "sft": (("data/sft", "policy/base"), ("policy/sft",)),
}
"""The stages that run once: what each reads and what it makes."""

STAGES = (*SINGLE, *REPEATED, "answer", "evaluate", "report")
"""Every stage that Hydra composes, in order. `check`, which composes them all, is not among them."""


class Node(NamedTuple):
    """A node of the graph: one run of a stage."""

    stage: str
    entry: str | None
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    settings: Mapping[str, Any]
    """What its entry or section says besides the nodes that it names."""

    @property
    def name(self) -> str:
        """As DVC names it: `align@dpo`, `sft`."""
        return f"{self.stage}@{self.entry}" if self.entry else self.stage


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_LONGEST_NAME = 100


def name_problem(stage: str, name: str) -> str:
    """Why an entry cannot have a name, which becomes part of a node's name, of paths, and of a command; empty if it can."""
    if not _NAME.fullmatch(name):
        return "DVC, Hydra or the shell would read it as something else"
    if len(name) > _LONGEST_NAME:
        return f"it has {len(name)} characters, more than {_LONGEST_NAME}"
    if name.lower() in ("true", "false", "null") or _is_number(name):
        return "Hydra would not read it as a text"
    if name == NOTHING and {"reward", "steps"} & {REPEATED[stage].folder, REPEATED[stage].also}:
        return f"`{NOTHING}` stands for none of its kind"
    return ""


def _is_number(name: str) -> bool:
    try:
        return float(name) is not None
    except ValueError:
        return False


def policies_in(sample: str, params: Params) -> set[str]:
    """The policies whose completions a sample of a sound recipe holds; `demonstrations` for those that come from the data."""
    if entry := (params.get("sample") or {}).get(sample):
        return {entry["policy"]} | ({"demonstrations"} if entry.get("of") == "demonstrations" else set())
    if entry := (params.get("pool") or {}).get(sample):
        return policies_in(entry["first"], params) | policies_in(entry["second"], params)
    return policies_in(params["filter"][sample]["sample"], params)


def entries(params: Params) -> Iterator[tuple[str, str, Any]]:
    """Every entry of the recipe: (stage, name, values)."""
    for stage in REPEATED:
        section = params.get(stage)
        for name, entry in (section if isinstance(section, Mapping) else {}).items():
            yield stage, str(name), entry


def nodes(params: Params) -> list[Node]:
    """Every node of a sound recipe but `check` and `report`, each after what it builds on.

    Raises:
        ValueError: entries build on each other in a circle; the message names them.
    """
    declared = {node.name: node for node in _declared(params)}
    sorter = TopologicalSorter(parents([*declared.values()]))
    try:
        return [declared[name] for name in sorter.static_order()]
    except CycleError as error:
        circle = " builds on ".join(reversed(error.args[1]))
        raise ValueError(f"params.yaml: a cycle: {circle}. Let one of them build on something else.") from error


def parents(of: list[Node]) -> dict[str, list[str]]:
    """Each node's name → the names of the nodes that make what it reads."""
    made_by = {path: node.name for node in of for path in node.makes}
    return {node.name: list(dict.fromkeys(made_by[made] for path in node.reads if (made := _made(path, made_by)))) for node in of}


def ancestors(of: list[Node], name: str) -> set[str]:
    """The node itself and all that it is built on."""
    above = parents(of)
    reached: set[str] = set()
    waiting = [name]
    while waiting:
        if (node := waiting.pop()) in above and node not in reached:
            reached.add(node)
            waiting += above[node]
    return reached


def maker(of: list[Node], path: str) -> str | None:
    """The name of the node that makes a path, such as `policy/dpo`; None if nothing does."""
    return next((node.name for node in of if path in node.makes), None)


def outputs(params: Params) -> dict[str, list[str]]:
    """Each path that can be named in a slot → the nodes that make it: more than one is a mistake."""
    made: dict[str, list[str]] = {f"reward/{NOTHING}": [], f"steps/{NOTHING}": []}
    for stage, (_, paths) in SINGLE.items():
        made |= {path: [stage] for path in paths if path != "tokenizer"}
    for stage, name, _ in entries(params):
        for path in REPEATED[stage].makes(name):
            made.setdefault(path, []).append(f"{stage}@{name}")
    return made


def options(path: str, made: Mapping[str, Any]) -> list[str]:
    """What a slot that leads to `path` may name, of all outputs that are made."""
    if path == "{}":
        return sorted(item for item in made if item in SIGNALS or item.partition("/")[0] in SIGNALS)
    prefix = path.format("")
    return sorted(item.removeprefix(prefix) for item in made if item.startswith(prefix) and item != f"reward/{NOTHING}")


def has_outputs(stage: str, entry: str | None, params: Params) -> bool:
    """Whether a node's outputs are there, made here or pulled; for `answer` and `evaluate`, those of every policy."""
    if stage in SINGLE:
        paths = SINGLE[stage][1]
    elif stage in REPEATED:
        paths = REPEATED[stage].makes(str(entry))
    else:
        paths = tuple(f"{stage}/{policy}" for policy in (params.get("evaluate") or {}).get("policies", []))
    return all((ARTIFACTS / path).exists() for path in paths)


def rows_of(signal: str, params: Params) -> str:
    """What kind of rows a signal holds, as its maker's entry says: demonstrations, preferences, unpaired, or another policy's weights."""
    folder, _, name = signal.partition("/")
    section = params.get(folder)
    entry = section[name] if isinstance(section, Mapping) else {}
    if folder == "feedback":
        return str(entry.get("kind", "preferences"))
    if folder == "label":
        return "unpaired" if entry.get("pairs") == "unpaired" else "preferences"
    if folder == "reject":
        return "demonstrations" if entry.get("pairs", NOTHING) == NOTHING else "preferences"
    kinds = {"data/sft": "demonstrations", "data/preferences": "preferences", "data/unpaired": "unpaired"}
    return {"revise": "demonstrations", "policy": "policy"}.get(folder) or kinds[signal]


def _declared(params: Params) -> Iterator[Node]:
    section = params.get("evaluate") or {}
    for stage, (reads, makes) in SINGLE.items():
        model = {"model": params.get("model")} if stage == "pretrain" else {}
        yield Node(stage, None, reads, makes, {**model, **(params.get(stage) or {})})
    for stage, name, entry in entries(params):
        kind = REPEATED[stage]
        named = tuple(path.format(entry[key]) for key, path in kind.slots.items())
        settings = {key: value for key, value in entry.items() if key not in kind.slots}
        reads = tuple(path.format(split=section.get("split")) for path in kind.reads)
        yield Node(stage, name, (*named, *reads), kind.makes(name), settings)
    for policy in section.get("policies", []):
        yield Node("answer", policy, (f"data/prompts/{section['split']}.jsonl", f"policy/{policy}"), (f"answer/{policy}",), {})
        both = dict.fromkeys((policy, section["against"]))
        opposed = (f"{folder}/{name}" for folder in ("answer", "policy") for name in both)
        held_out = (f"data/{role}/validation.jsonl" for role in ("preferences", "sft", "pretrain"))
        reads = (*opposed, f"figures/answer/{policy}.json", f"reward/{section['reward']}", *held_out)
        yield Node("evaluate", policy, reads, (f"evaluate/{policy}",), {})


def _made(path: str, made_by: Mapping[str, str]) -> str | None:
    """The output that a path is, or lies in."""
    parts = path.split("/")
    return next((prefix for end in range(len(parts), 0, -1) if (prefix := "/".join(parts[:end])) in made_by), None)
