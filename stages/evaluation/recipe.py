"""What params.yaml declares, for a reader of the report: which node is built on which, and who learnt from the verifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Params = Mapping[str, Any]

REPEATED = ("sample", "revise", "label", "reward", "reject", "align")
GOLD_SOURCES = ("verifier", "reward/verifier")
CHOICES = ("judge", "kind", "method")
"""Keys whose values name a file of conf/ or a kind, never a node, though there be a node of that name."""


class Node(NamedTuple):
    """A node of the DAG: what it builds on, and what else its entry says."""

    name: str  # such as align/dpo
    parents: tuple[str, ...]
    settings: dict[str, Any]


def recipe_nodes(params: Params) -> list[Node]:
    """Every node up to the policies, each after what it builds on."""
    pretrain = {"model": params.get("model"), **(params.get("pretrain") or {})}
    entries: dict[str, Any] = {"pretrain": pretrain, "sft": params.get("sft") or {}}
    entries |= {f"{stage}/{name}": entry or {} for stage in REPEATED for name, entry in (params.get(stage) or {}).items()}
    parents = {name: _parents(name, entry, entries) for name, entry in entries.items()}
    ordered: list[str] = []
    for name in entries:
        _visit(name, parents, ordered)
    return [Node(name, tuple(parents[name]), _settings(entries[name], parents[name])) for name in ordered]


def policy_node(policy: str) -> str:
    """The node that makes a policy."""
    return {"base": "pretrain", "sft": "sft"}.get(policy, f"align/{policy}")


def ancestors(nodes: list[Node], name: str) -> set[str]:
    """The node itself and all that it is built on."""
    parents = {node.name: node.parents for node in nodes}
    found: set[str] = set()
    open_nodes = [name]
    while open_nodes:
        node = open_nodes.pop()
        if node in parents and node not in found:
            found.add(node)
            open_nodes += parents[node]
    return found


def learns_from_gold(nodes: list[Node], policy: str) -> bool:
    """Whether anything that a policy was made from used the verifier: as a reward, or as the judge of preferences."""
    above = ancestors(nodes, policy_node(policy))
    return any(_is_gold(node) for node in nodes if node.name in above)


def _is_gold(node: Node) -> bool:
    leaves = list(_leaves(node.settings))
    return any(value in GOLD_SOURCES or (key == "judge" and value == "gold") for key, value in leaves)


def _parents(name: str, entry: Mapping[str, Any], entries: Mapping[str, Any]) -> list[str]:
    """The nodes that an entry names, in the order in which it does."""
    if name == "pretrain":
        return []
    if name == "sft":
        return ["pretrain"]
    stage = name.partition("/")[0]
    named: list[str] = []
    for key, value in _leaves(entry):
        if key in CHOICES:
            continue
        if not isinstance(value, str):
            value = key if f"{stage}/{key}" in entries else ""  # parts of a blend: {rm: 1.0, cost: -0.5}
        by_key = {"extends": "sample", "cost": "reward"}.get(key, key)
        named_policy = key in ("init", "policy", "reference") or value.startswith("policy/")
        policy = policy_node(value.removeprefix("policy/")) if named_policy else ""
        part = f"reward/{value}" if stage == "reward" else ""
        candidates = (policy, value if "/" in value else "", f"{by_key}/{value}", part)
        named += [node for node in candidates if node in entries and node != name][:1]
    return list(dict.fromkeys(named))


def _settings(entry: Mapping[str, Any], parents: list[str]) -> dict[str, Any]:
    """What an entry says besides the nodes it names; gold sources stay, for they matter to a reader."""
    names = {parent.rpartition("/")[2] for parent in parents} | set(parents) | {"base", "none"}
    return {key: value for key, value in entry.items() if not (isinstance(value, str) and value in names and key not in CHOICES)}


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _leaves(child, str(name))
    elif isinstance(value, list):
        for child in value:
            yield from _leaves(child, key)
    else:
        yield key, value


def _visit(name: str, parents: Mapping[str, list[str]], ordered: list[str], path: tuple[str, ...] = ()) -> None:
    if name in path:
        raise ValueError(f"params.yaml: {' -> '.join([*path, name])} is a cycle")
    if name not in ordered:
        for parent in parents[name]:
            _visit(parent, parents, ordered, (*path, name))
        ordered.append(name)
