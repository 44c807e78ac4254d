"""Single mistakes in params.yaml, made systematically from every key of several recipes, and what `check` says of each.

    python -m tests.fuzz_params            # how many mistakes of each kind there are, and those that reach a stage
    python -m tests.fuzz_params 30         # 30 of the messages besides, spread over all mistakes

A mistake is one edit: a key misspelt or left out, a value of another type, a number out of range, a name that names nothing, an entry with a
name that it cannot have. Which numbers are out of range is written down here by key, and not asked of the code that is tested.
"""

import copy
import functools
import json
import sys
import typing
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from plumbline.models.decoding_values import Decoding
from plumbline.pipeline.misfits import hints
from plumbline.pipeline.recipe_files import schema_of
from stages import check
from tests.dag import load_recipe

RECIPES = ("default", "r1", "constitutional_ai", "rlaif", "zephyr", "preference_losses", "feedback")
"""Recipes that have every stage but `filter` and `overoptimisation`, which are added to the first, and all methods."""

SIGNED = {
    "boundary", "clip_score", "cost_limit", "fraction", "f_alpha", "least", "most", "second_weight", "threshold", "weight", "target_kl",
    "length_alpha", "label_smoothing",
}  # fmt: skip
"""Numbers that may be below 0, or that are read with certain other values only; of these, NaN and infinity alone are out of range."""

ZERO = {
    "adam_beta2", "beta", "centring", "desirable_weight", "undesirable_weight", "entropy_coefficient", "gamma", "kl_gain", "lam", "lora_rank",
    "margin_scale", "max_grad_norm", "min_margin", "min_reward_accuracy", "missing_eos_penalty", "opponents", "pairs_per_prompt", "prompts",
    "seed", "sft_weight", "unread_fraction", "validation_fraction", "warmup_fraction", "warn_entropy_fraction", "weight_decay",
    "keep", "epochs", "top_k", "samples_at_1", "temperature", "min_p",
}  # fmt: skip
"""Numbers that may be 0 somewhere, so that 0 is not tried."""

FRACTIONS = {
    "adam_beta2", "gamma", "lam", "min_reward_accuracy", "unread_fraction", "validation_fraction", "warmup_fraction", "warn_entropy_fraction",
    "min_p", "top_p",
}  # fmt: skip
"""Numbers above 1 are out of range."""


WRONG_TYPES: dict[Any, tuple[Any, ...]] = {
    int: ("many", [8], {"a": 8}, 2.5, True, None),
    float: ("strong", [0.1], {"a": 0.1}, True, None),
    bool: ("maybe", 8, [True], None),
    str: (["a"], {"a": "b"}, None),
    list: (5, "a", {"a": 1}, None),
    dict: (5, "a", [1], None),
}
BAD_NAMES = ("a.b", "a b", "a@b", "a:b", "a/b", "-a", "", "123", "1e5", "true", "null", "nan", "é", "a,b", "a$b", "a" * 200)


class Mistake(NamedTuple):
    """A recipe with one mistake."""

    recipe: str
    kind: str
    key: str
    """Where the mistake stands, dotted."""
    edit: str
    params: dict[str, Any]


def mistakes() -> Iterator[Mistake]:
    """All mistakes: those in keys that a recipe has, for each recipe; those in keys that it leaves to conf/, once for each schema."""
    seen: set[tuple[str, str]] = set()
    for name in RECIPES:
        recipe = with_more(load_recipe(name)) if name == "default" else load_recipe(name)
        for kind, path, edit, value in edits(recipe, seen):
            params = copy.deepcopy(recipe)
            holder: Any = functools.reduce(lambda values, key: values.setdefault(key, {}), path[:-1], params)
            if kind == "misspelt key":
                holder[value] = holder.pop(path[-1], 1)
            elif kind == "missing key":
                del holder[path[-1]]
            elif kind == "impossible name":
                holder[value] = holder.pop(path[-1])
            else:
                holder[path[-1]] = value
            yield Mistake(name, kind, ".".join(map(str, path)), edit, params)


def with_more(recipe: dict[str, Any]) -> dict[str, Any]:
    best_of_n = {"init": "sft", "steps": "none", "proxy": "rm", "gold": "rm", "answers": 4}
    return recipe | {
        "filter": {"safe": {"sample": "round1", "reward": "rm", "least": 0.5}},
        "overoptimisation": {"best": best_of_n},
    }


def edits(recipe: dict[str, Any], seen: set[tuple[str, str]]) -> Iterator[tuple[str, tuple[Any, ...], str, Any]]:
    """(kind, path, description, value) of every mistake in one recipe."""
    for key in recipe:
        yield "misspelt key", (key,), f"{key} → {misspelt(key)}", misspelt(key)
        if key in check.REQUIRED:
            yield "missing key", (key,), f"without {key}", None
    for key in ("seed", "threads", "inputs", "model", "data"):
        hint = {"seed": int, "threads": int}.get(key, str)
        yield from of_value((key,), hint, recipe[key])
    for stage in ("prepare", "pretrain", "sft", "evaluate"):
        yield from of_section((stage,), hints(check.stage_schema(stage))[stage], recipe[stage], stage, seen)
    for key in recipe["evaluate"]:
        if key not in Decoding._fields:  # which a recipe may leave out
            yield "missing key", ("evaluate", key), f"without evaluate.{key}", None
    for index, policy in enumerate(recipe["evaluate"]["policies"]):
        yield (
            "unknown reference",
            ("evaluate", "policies"),
            f"policy {policy}x",
            [f"{policy}x" if index == other else known for other, known in enumerate(recipe["evaluate"]["policies"])],
        )
    for stage in check.REPEATED:
        for name, entry in recipe.get(stage, {}).items():
            kind = entry.get("method", stage)
            schema = schema_of("method", kind) if "method" in entry else hints(check.stage_schema(stage))[stage]
            assert schema is not None
            yield from of_section((stage, name), schema, entry, kind, seen)
            for slot in check.REPEATED[stage].slots:
                yield "missing key", (stage, name, slot), f"without {slot}", None
        if stage in recipe:
            first = next(iter(recipe[stage]))
            yield from (("impossible name", (stage, first), f"{first} → {bad!r:.40}", bad) for bad in BAD_NAMES)
            yield from (("wrong type", (stage, first), f"{first}: {value!r}", value) for value in (5, "a", [1], None))
            yield from (("wrong type", (stage,), f"{stage}: {value!r}", value) for value in (5, "a", [1], None))


def of_section(
    path: tuple[str, ...], schema: type, values: dict[str, Any], name: str, seen: set[tuple[str, str]]
) -> Iterator[tuple[str, tuple[Any, ...], str, Any]]:
    """Mistakes in the values of an entry or section, and in those of its schema that it leaves to conf/."""
    for key, hint in hints(schema).items():
        if key in values or (name, key) not in seen:
            seen.add((name, key))
            yield "misspelt key", (*path, key), f"{key} → {misspelt(key)}", misspelt(key)
            yield from of_value((*path, key), hint, values.get(key))
    for key, value in values.items():  # nested: a rule's keys, a verifier's limits
        for inner, nested in value.items() if isinstance(value, dict) else ():
            item = typing.get_args(hints(schema)[key])[-1] if typing.get_args(hints(schema)[key]) else None
            if isinstance(nested, dict) and item is not None:
                yield from of_section((*path, key, inner), item, nested, f"{name}.{key}", seen)


def of_value(path: tuple[Any, ...], hint: Any, value: Any) -> Iterator[tuple[str, tuple[Any, ...], str, Any]]:
    """Mistakes in one value."""
    options = [option for option in typing.get_args(hint) if option is not type(None)] if is_optional(hint) else [hint]
    kind = typing.get_origin(options[0]) or options[0]
    for wrong in WRONG_TYPES.get(kind, (5, "a", [1], None)):
        if wrong is not None or not is_optional(hint):
            yield "wrong type", path, f"{path[-1]}: {wrong!r}", wrong
    if kind in (int, float):
        yield from (("out of range", path, f"{path[-1]}: {number}", number) for number in out_of_range(str(path[-1]), kind))
    elif kind is str and isinstance(value, str):
        yield "unknown reference", path, f"{path[-1]}: {misspelt(value)}", misspelt(value)
        yield "unknown reference", path, f"{path[-1]}: {value}x", f"{value}x"


def out_of_range(key: str, kind: type) -> list[float]:
    numbers: list[float] = [] if kind is int else [float("nan"), float("inf"), float("-inf")]
    if key not in SIGNED:
        numbers += [-3 if kind is int else -0.5] + ([] if key in ZERO else [0])
    if key in FRACTIONS:
        numbers.append(1.5)
    return numbers


def is_optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def misspelt(word: str) -> str:
    """The word with its last two different neighbours swapped, as fast typing does."""
    for end in range(len(word) - 1, 0, -1):
        if word[end] != word[end - 1]:
            return word[: end - 1] + word[end] + word[end - 1] + word[end + 1 :]
    return f"{word}x"


@functools.cache
def _read_by(stage: str) -> tuple[str, ...]:
    """The sections of params.yaml that decide what a stage's config says; the report shows the others as they are."""
    fields = hints(check.stage_schema(stage))
    shown = {key for key, hint in fields.items() if typing.get_origin(hint) is dict}
    return tuple(key for key in {*fields, *check.open_groups(stage)} - shown - set(check.REPEATED))


def with_memory(patch: pytest.MonkeyPatch) -> None:
    """Makes `check` compose a node once for the same values, for mistakes leave all nodes but one or two as they are."""
    compose, memory = check.composed, {}

    def composed(node: check.Node, params: dict[str, Any]) -> Any:
        stage, name = node
        values = {key: params.get(key) for key in _read_by(stage)}
        key = json.dumps([node, values, params[stage][name] if name else params.get(stage)], sort_keys=True, default=repr)
        if key not in memory:
            memory[key] = compose(node, params)
        return memory[key]

    patch.setattr(check, "composed", composed)


def messages(mistake: Mistake) -> list[str]:
    """What `check` says of a mistake; empty if it reaches a stage."""
    try:
        return check.recipe_errors(mistake.params)
    except ValueError as error:
        return [str(error)]


def main() -> None:
    """Tries all mistakes, which takes some minutes."""
    shown = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with pytest.MonkeyPatch.context() as patch:
        with_memory(patch)
        found = [(mistake, messages(mistake)) for mistake in mistakes()]
    for kind, count in sorted(Counter(mistake.kind for mistake, _ in found).items()):
        print(f"{count:6} {kind}")
    reached = [mistake for mistake, errors in found if not errors]
    print(f"{len(found):6} in all, of which {len(reached)} reach a stage")
    for mistake in reached:
        print(f"  {mistake.recipe}: {mistake.key}: {mistake.edit}")
    for mistake, errors in found[:: max(1, len(found) // shown)] if shown else []:
        print(f"\n{mistake.recipe}: {mistake.key}: {mistake.kind}: {mistake.edit}")
        print("\n".join(f"  - {error}" for error in errors))


if __name__ == "__main__":
    main()
