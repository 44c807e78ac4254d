"""Known answers to compare a judge with: the closed world's verifier, recorded preferences, or annotators' sheets."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from plumbline.judging.human import AnnotatorsJudge
from plumbline.judging.sheets import read_sheet
from plumbline.pipeline.records import read_jsonl
from plumbline.reasoning import ALL, without_reasoning
from plumbline.rows import Preference, text_of

Advantages = Mapping[tuple[int, int], float]
"""Positions of two completions → by how much the first is known to be better (negative: worse, 0: neither)."""

Group = Sequence[Mapping[str, Any]]


def known_advantages(source: str, marks: str = ALL) -> Callable[[Group], Advantages]:
    """A function that returns what is known of the completions of one prompt, without their reasoning, which `marks` set apart.

    source: `none`, `gold`, or a file or folder of annotators' sheets, or a file of preferences.
    """
    if source == "none":
        return lambda group: {}
    if source == "gold":
        return partial(gold_advantages, marks=marks)
    if source.endswith(".csv") or Path(source).is_dir() or "annotator" in (read_jsonl(source) or [{}])[0]:
        return _annotated(AnnotatorsJudge(read_sheet(Path(source)), thinking_marks=marks))
    return _recorded([Preference.of(row) for row in read_jsonl(source)], marks)


def gold_advantages(group: Group, marks: str = ALL) -> Advantages:
    """The differences of gold scores; only for prompts of the closed world."""
    from plumbline.world.verify import verify

    gold = [verify(row["prompt"], without_reasoning(text_of(row["completion"]), marks)).gold for row in group]
    return {(i, j): gold[i] - gold[j] for i in range(len(gold)) for j in range(len(gold)) if i != j}


def _annotated(people: AnnotatorsJudge) -> Callable[[Group], Advantages]:
    """By the majority of annotators, for the pairs that they judged."""

    def advantages(group: Group) -> Advantages:
        texts = [text_of(row["completion"]) for row in group]
        pairs = [(i, j) for i in range(len(texts)) for j in range(len(texts)) if texts[i] != texts[j]]
        prompts = [group[0]["prompt"]] * len(pairs)
        comparisons = people.compare(prompts, [texts[i] for i, _ in pairs], [texts[j] for _, j in pairs])
        return {
            pair: comparison.win - 0.5 for pair, comparison in zip(pairs, comparisons, strict=True) if comparison.win is not None
        }

    return advantages


def _recorded(preferences: Sequence[Preference], marks: str) -> Callable[[Group], Advantages]:
    """By recorded preferences, for the pairs among them."""
    preferred = {(_texts(pair.prompt, marks), _texts(pair.chosen, marks), _texts(pair.rejected, marks)) for pair in preferences}

    def advantages(group: Group) -> Advantages:
        prompt = _texts(group[0]["prompt"], marks)
        completions = [_texts(row["completion"], marks) for row in group]
        known = {}
        for i, first in enumerate(completions):
            for j, second in enumerate(completions):
                if (prompt, first, second) in preferred:
                    known[i, j], known[j, i] = 1.0, -1.0
        return known

    return advantages


def _texts(messages: Sequence[Mapping[str, str]], marks: str) -> tuple[str, ...]:
    return tuple(without_reasoning(message["content"], marks).strip() for message in messages)
