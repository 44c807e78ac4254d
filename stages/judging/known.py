"""Known answers to hold a judge against: the closed world's verifier, preferences that people gave, or annotators' sheets."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.judging.human import AnnotatorsJudge, read_sheet
from stages.pipeline.records import read_jsonl

Advantages = Mapping[tuple[int, int], float]
"""Positions of two completions → by how much the first is known to be better (negative: worse, 0: neither)."""

Group = Sequence[Mapping[str, Any]]


def known_advantages(source: str) -> Callable[[Group], Advantages]:
    """What is known of a group of completions of one prompt: `none`, `gold`, or a file of preferences or annotators' sheets."""
    if source == "none":
        return lambda group: {}
    if source == "gold":
        return gold_advantages
    if source.endswith(".csv") or Path(source).is_dir() or "annotator" in (read_jsonl(source) or [{}])[0]:
        return _annotated(AnnotatorsJudge(read_sheet(Path(source))))
    return _recorded(read_jsonl(source))


def gold_advantages(group: Group) -> Advantages:
    """The difference of gold scores; only for prompts of the closed world."""
    from stages.world.verifier import verify

    gold = [verify(row["prompt"], row["completion"][0]["content"]).gold for row in group]
    return {(i, j): gold[i] - gold[j] for i in range(len(gold)) for j in range(len(gold)) if i != j}


def _annotated(people: AnnotatorsJudge) -> Callable[[Group], Advantages]:
    """The majority of annotators, for the pairs that they have judged."""

    def advantages(group: Group) -> Advantages:
        texts = [row["completion"][0]["content"] for row in group]
        pairs = [(i, j) for i in range(len(texts)) for j in range(len(texts)) if texts[i] != texts[j]]
        said = people.compare([group[0]["prompt"]] * len(pairs), [texts[i] for i, _ in pairs], [texts[j] for _, j in pairs])
        return {pair: comparison.win - 0.5 for pair, comparison in zip(pairs, said, strict=True) if comparison.win is not None}

    return advantages


def _recorded(rows: Sequence[Mapping[str, Any]]) -> Callable[[Group], Advantages]:
    preferred = {(_asked(row["prompt"]), _asked(row["chosen"]), _asked(row["rejected"])) for row in rows}

    def advantages(group: Group) -> Advantages:
        prompt = _asked(group[0]["prompt"])
        texts = [_asked(row["completion"]) for row in group]
        found = {}
        for i, first in enumerate(texts):
            for j, second in enumerate(texts):
                if (prompt, first, second) in preferred:
                    found[i, j], found[j, i] = 1.0, -1.0
        return found

    return advantages


def _asked(messages: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    return tuple(message["content"].strip() for message in messages)
