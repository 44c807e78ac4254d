"""Loads any kind of reward: from a folder below artifacts/reward to a function from texts to numbers.

The folder's reward.json names the kind of reward and holds the digest of the code that computes it. A stage that uses a reward therefore
depends on that folder alone: an edit of the code makes the reward again, and then everything that learns from it.
"""

import importlib
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from plumbline.pipeline.records import read_json, write_json
from plumbline.pipeline.sources import code_digest
from plumbline.rows import Message, Row, text_of

DESCRIPTION = "reward.json"

KINDS = {
    "model": "plumbline.rewards.model",
    "rules": "plumbline.rewards.rules",
    "judge": "plumbline.rewards.judged",
    "closed_world": "plumbline.rewards.verified",
    "math": "plumbline.checking.maths",
    "code": "plumbline.checking.code",
    "refusals": "plumbline.checking.refusals",
    "instructions": "plumbline.checking.following",
}
"""A kind of reward → the module whose `load(folder, description, run)` loads it. A `sum` is put together in this module."""


class Reward(Protocol):
    """Scores completions: one number for each (prompt, completion text)."""

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]: ...


class Checked(Reward, Protocol):
    """A reward that checks completions against references."""

    references: Container[Sequence[Message]]
    """The prompts that have one."""


class WhereStated:
    """A checked reward of the prompts that have a reference, and a fixed reward of all others."""

    def __init__(self, reward: Checked, otherwise: float) -> None:
        self.reward, self.otherwise = reward, otherwise

    @property
    def outcomes(self) -> Mapping[str, int]:
        """The outcomes of the completions that were checked."""
        counts: Mapping[str, int] = getattr(self.reward, "outcomes", {})
        return counts

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        stated = [number for number, prompt in enumerate(prompts) if prompt in self.reward.references]
        rewards = [self.otherwise] * len(prompts)
        checked = self.reward([prompts[number] for number in stated], [completions[number] for number in stated])
        for number, value in zip(stated, checked, strict=True):
            rewards[number] = value
        return rewards


class WeightedSum:
    """A sum of rewards, each times its weight (negative for a cost)."""

    def __init__(self, parts: Sequence[tuple[float, Reward]]) -> None:
        self.parts = parts

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        columns = [[weight * value for value in reward(prompts, completions)] for weight, reward in self.parts]
        return [sum(values) for values in zip(*columns, strict=True)]


def describe(folder: Path, kind: str, **values: Any) -> None:
    """Writes a reward's description: its kind, the values that its module needs to load it, and the digest of its code."""
    code = {"code": code_digest(KINDS[kind])} if kind in KINDS else {}
    write_json(folder / DESCRIPTION, {"kind": kind, **values, **code})


def load_reward(folder: Path, run: str = "") -> Reward:
    """Loads the reward in a folder below artifacts/reward.

    run: the run that a judge's budget (`max_cost`) is counted for.

    Raises:
        ValueError: the folder does not hold a reward, or holds one of an unknown kind.
    """
    description = read_description(folder)
    kind = description["kind"]
    if kind == "sum":
        return WeightedSum([(part["weight"], load_reward(folder.parent / part["reward"], run)) for part in description["parts"]])
    if kind not in KINDS:
        raise ValueError(f"{folder / DESCRIPTION}: expected a kind among {', '.join([*KINDS, 'sum'])}, found {kind!r}")
    reward: Any = importlib.import_module(KINDS[kind]).load(folder, description, run)
    otherwise = description.get("otherwise")
    loaded: Reward = reward if otherwise is None else WhereStated(reward, otherwise)
    return loaded


def modules_of(*folders: Path) -> Iterator[str]:
    """The modules that load the rewards in these folders, which no import statement names; raises as `read_description`."""
    for folder in folders:
        description = read_description(folder)
        if description["kind"] == "sum":
            yield from modules_of(*(folder.parent / part["reward"] for part in description["parts"]))
        elif description["kind"] in KINDS:
            yield KINDS[description["kind"]]


def read_description(folder: Path) -> Mapping[str, Any]:
    """The contents of a reward's reward.json.

    Raises:
        ValueError: the folder does not hold a reward.
    """
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(
            f"expected a reward at {folder}, found no {DESCRIPTION} there: name an entry of reward_model, reward_rules, reward_verifier, "
            "reward_judge or reward_sum (params.yaml), and let `dvc repro` make it"
        )
    description: Mapping[str, Any] = read_json(folder / DESCRIPTION)
    return description


def asks_judge(folder: Path) -> bool:
    """Whether the reward in a folder, or a part of a sum, is a judge's rating; raises as `read_description`.

    A judge is asked by one process: its limits (concurrency, max_cost, the gate) count for all questions together.
    """
    description = read_description(folder)
    if description["kind"] == "sum":
        return any(asks_judge(folder.parent / part["reward"]) for part in description["parts"])
    return bool(description["kind"] == "judge")


def outcomes(reward: Reward) -> dict[str, int]:
    """Counts of the outcomes of all checks and questions so far (`verifier_timeout`, `judge_unparsed`, …).

    Empty for a reward that neither checks answers nor asks a judge.
    """
    prefix = getattr(reward, "outcome_prefix", "verifier")
    counts = Counter({f"{prefix}_{name}": count for name, count in getattr(reward, "outcomes", {}).items()})
    for _, part in reward.parts if isinstance(reward, WeightedSum) else []:
        counts.update(outcomes(part))
    return dict(sorted(counts.items()))


def score(reward: Reward, rows: Sequence[Row]) -> tuple[list[float], dict[str, int]]:
    """The reward of each completion of a shard, and the outcomes (`outcomes`) of these alone."""
    before = outcomes(reward)
    rewards = reward([row["prompt"] for row in rows], [text_of(row["completion"]) for row in rows])
    return rewards, {name: count - before.get(name, 0) for name, count in outcomes(reward).items()}


def finish(reward: Reward) -> dict[str, float]:
    """Tells a reward that nothing more will be scored, and returns what its judges' replies took (`judge_calls`, `judge_cost`, …).

    The figures depend on what was cached, so they belong in logs and never in outputs. Empty for a reward without a judge.
    """
    if end := getattr(reward, "finish", None):
        end()
    for _, part in reward.parts if isinstance(reward, WeightedSum) else []:
        finish(part)
    return _ledger(reward)


@contextmanager
def finishing(reward: Reward) -> Iterator[None]:
    """Finishes a reward when the block ends, also by an error."""
    try:
        yield
    finally:
        finish(reward)


def _ledger(reward: Reward) -> dict[str, float]:
    """What the replies of a reward's judges took so far; empty for a reward without a judge."""
    parts = reward.parts if isinstance(reward, WeightedSum) else []
    return _added_up([getattr(reward, "ledger", {}), *(_ledger(part) for _, part in parts)])


def _added_up(ledgers: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in ledgers:
        for name, value in one.items():
            total[name] = total.get(name, 0) + value
    return total


SPENT = "spent.json"
"""A shard's file: what the replies of the reward's judges took for it. It depends on what was cached, so it is not part of an output."""


@contextmanager
def spending(reward: Reward, shard: Path) -> Iterator[None]:
    """Writes what the replies of the reward's judges take in this block to a shard's folder."""
    before = _ledger(reward)
    yield
    write_json(shard / SPENT, {name: value - before[name] for name, value in _ledger(reward).items()})


def spent(shards: Iterable[Path]) -> dict[str, float]:
    """What they took for all shards, in however many attempts at the stage; empty for a reward without a judge.

    What a shard that was interrupted had bought is missing: its replies come from the cache when it is scored again.
    """
    return _added_up(read_json(shard / SPENT) for shard in shards)


def held_out_accuracy(folder: Path) -> float | None:
    """The lowest accuracy on held-out preferences among the models behind a reward; None if there is no model behind it."""
    description = read_description(folder)
    if description["kind"] == "sum":
        accuracies = [held_out_accuracy(folder.parent / part["reward"]) for part in description["parts"]]
        return min((accuracy for accuracy in accuracies if accuracy is not None), default=None)
    return description.get("accuracy")


def require_accuracy(accuracy: float | None, limit: float, folder: Path, method: str) -> None:
    """The gate: refuses a reward model that orders held-out preferences too poorly to be optimised against.

    accuracy: None for a reward without a model behind it, such as a verifier; it passes.

    Raises:
        ValueError: the accuracy is below the limit.
    """
    if accuracy is not None and accuracy < limit:
        raise ValueError(
            f"{method}: expected a reward model with a held-out accuracy of at least {limit:.3f} (min_reward_accuracy), found "
            f"{accuracy:.3f} at {folder}. A policy would learn its errors: give the reward model more preferences, or check their quality"
        )
