"""The figures of one policy, from the scores of its answers: the flat object of `artifacts/evaluate/<policy>/figures.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from plumbline.evaluation.attempts import pass_at_k
from plumbline.evaluation.calibration import agreements
from plumbline.evaluation.length_control import length_controlled
from plumbline.evaluation.statistics import (
    Interval,
    Values,
    bootstrap_gain,
    bootstrap_mean,
    flat,
    fraction_interval,
    rounded,
    standard_error,
)
from plumbline.parts_of_gold import WEIGHTS


@dataclass(frozen=True)
class Score:
    """The scores of one answer; None if a figure does not apply to it."""

    id: str
    index: int
    family: str | None
    language: str | None
    finished: bool
    tokens: int
    characters: int = 0  # of what the answer says, without its reasoning
    repeated: float | None = None  # the share of its spans of four words that it has said before
    gold: float | None = None  # the verifier's score, in [0, 1]; the next five are its parts
    correct: float | None = None
    harmless: float | None = None
    honest: float | None = None
    courteous: float | None = None
    concise: float | None = None
    refused: float | None = None
    harmful: float | None = None  # for answers to harmful prompts, or to those that call for a refusal
    over_refused: float | None = None  # for answers to harmless look-alikes, or to prompts that call for compliance
    verifiable: float | None = None  # `correct`, for tasks that have a right answer
    followed: float | None = None  # for answers to prompts with instructions: 1 if all are followed, else 0
    followed_each: Sequence[float] | None = None  # the same of each instruction
    win: float | None = None  # 1, 0.5 or 0 against the opponent's answer of the same index
    reward: float | None = None
    kl_k1: float | None = None  # estimates of KL(π ‖ π_against) in nats, for answers at temperature 1 (divergence.py)
    kl_k3: float | None = None

    def row(self) -> dict[str, Any]:
        """The score as a row of answers.jsonl."""
        return {key: rounded(value) for key, value in vars(self).items()}


class Figure(NamedTuple):
    """A figure that is the mean of a column of Score."""

    key: str
    column: str
    is_fraction: bool


FIGURES = (
    Figure("gold", "gold", True),  # the verifier's score of an answer
    Figure("win_rate", "win", True),  # how often the judge prefers it to the opponent's answer
    Figure("reward", "reward", False),
    Figure("harmful_fraction", "harmful", True),  # harmful requests complied with
    Figure("over_refusal_fraction", "over_refused", True),  # harmless look-alikes refused
    Figure("accuracy", "verifiable", True),  # right answers to tasks that have one
    Figure("instructions_followed", "followed", True),  # answers that follow all instructions of their prompt
    Figure("correct", "correct", True),  # a part of gold, over all families; so are the next four
    Figure("harmless", "harmless", True),
    Figure("honest", "honest", True),
    Figure("courteous", "courteous", True),
    Figure("concise", "concise", True),
    Figure("refused_fraction", "refused", True),  # answers that decline, whatever was asked
    Figure("length_tokens", "tokens", False),  # end-of-turn included
    Figure("finished_fraction", "finished", True),  # answers that reached the end of turn before the token limit
    Figure("repeated_fraction", "repeated", True),  # how much answers repeat themselves: plumbline/evaluation/repetition.py
)
PARTS = tuple(WEIGHTS)
"""The parts of gold; each also has its paired gain."""

KL = (Figure("kl", "kl_k1", False), Figure("kl_k3", "kl_k3", False))
"""Distance from the opponent in nats per answer, by two estimators; each also has its standard error (`<figure>_se`)."""

QUALITY = ("gold", "win_rate", "accuracy", "harmful_fraction", "over_refusal_fraction", "instructions_followed")
"""The figures that say whether answers are good; without any of them nothing here measures it."""

COUNTED = ("harmful_fraction", "over_refusal_fraction", "accuracy", "instructions_followed")
"""The figures of prompts that state something; each also has the number of these prompts."""

COMPARED = tuple(figure for figure in FIGURES if figure.key in ("gold", *COUNTED))
"""The figures that are also given at temperature 1 and, if the data has several languages, for each language."""

HEADLINE = (
    "gold", "gold_gain", "gold_gain_low", "gold_at_1", "win_rate", "harmful_fraction", "over_refusal_fraction", "accuracy", "reward", "kl",
    "length_tokens",
)  # fmt: skip
"""The figures that people compare: those of `metrics/<policy>.json`, which DVC shows."""

HEADLINE_IF_MEASURED = ("instructions_followed", "perplexity", "preference_accuracy")
"""Figures that stand beside them where they were measured: those of instructions, and of held-out rows (plumbline/evaluation/held_out.py)."""

WITHOUT_GOLD = ("distinct_2", "perplexity")
"""Figures that are left out of tables if there is gold: repetition and lost knowledge lower gold already."""


def headline_figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What `metrics/<policy>.json` holds."""
    left_out = () if figures["gold"] is None else WITHOUT_GOLD
    measured = [key for key in HEADLINE_IF_MEASURED if figures.get(key) is not None and key not in left_out]
    return {key: figures[key] for key in (*HEADLINE, *measured)}


def policy_figures(
    scores: Sequence[Score], against: Sequence[Score], seed: int, at_1: Sequence[Score] = (), against_at_1: Sequence[Score] = ()
) -> dict[str, float | int | None]:
    """All figures of one policy, each with its bounds `<figure>_low` and `<figure>_high`.

    A figure that applies to no answer is None, and so are its bounds. `against` holds the opponent's scores on the same prompts, for the paired
    gains: `scores` itself for the opponent, whose gains and ties are certain. `at_1` and `against_at_1` are scores of answers of the whole
    distribution at temperature 1: `scores` and `against` themselves if that is their decoding, empty if none were drawn.
    """
    figures: dict[str, float | int | None] = {}
    for figure in FIGURES:
        interval = _mean(scores, figure, seed)
        if figure.key == "win_rate" and scores is against:
            interval = _certain(interval)
        figures |= flat(figure.key, interval)
        if figure.key == "gold":
            figures |= flat("gold_gain", _gain(scores, against, "gold", seed))
        if figure.key == "win_rate":
            figures |= _verdict_fractions([score.win for score in scores])
            figures |= flat("win_rate_length_controlled", _length_controlled(scores, against, seed))
        if figure.key in COUNTED:
            figures[f"{figure.key.removesuffix('_fraction')}_n"] = interval.n if interval else 0
    for k, interval in pass_at_k(_column(scores, "verifiable"), [score.id for score in scores]).items():
        figures |= flat(f"pass_at_{k}", interval)
    for figure in COMPARED:
        if figure.key != "gold":
            figures |= flat(f"{figure.key}_gain", _gain(scores, against, figure.column, seed))
    figures |= flat("each_instruction_followed", _followed_each(scores))
    for part in PARTS:
        figures |= flat(f"{part}_gain", _gain(scores, against, part, seed))
    for key, (interval, pairs) in agreements(scores, against).items():
        figures |= flat(key, interval) | {f"{key}_n": pairs}
    figures |= _figures_at_1(at_1, against_at_1, seed)
    for family in sorted({score.family for score in scores if score.family}):
        ours = _of_family(scores, family)
        theirs = ours if scores is against else _of_family(against, family)
        if any(score.correct is not None for score in ours):
            accuracy = Figure(f"accuracy_{family}", "correct", True)
            figures |= flat(accuracy.key, _mean(ours, accuracy, seed))
            figures |= flat(f"accuracy_gain_{family}", _gain(ours, theirs, "correct", seed))
    return figures | _figures_by_language(scores, seed) | {"n": len({score.id for score in scores}), "answers": len(scores)}


def _figures_at_1(scores: Sequence[Score], against: Sequence[Score], seed: int) -> dict[str, float | int | None]:
    """KL, and what is compared across temperatures as `<figure>_at_1`."""
    figures = flat("gold_gain_at_1", _gain(scores, against, "gold", seed))
    for figure in KL:
        figures |= flat(figure.key, _mean(scores, figure, seed))
        figures[f"{figure.key}_se"] = rounded(standard_error(_column(scores, figure.column), [score.id for score in scores]))
    for figure in COMPARED:
        figures |= flat(f"{figure.key}_at_1", _mean(scores, figure, seed))
    return figures


def _figures_by_language(scores: Sequence[Score], seed: int) -> dict[str, float | int | None]:
    """What is compared across languages as `<figure>_<language>`, and each one's prompts as `n_<language>`.

    Empty for fewer than two languages in which any of it was measured.
    """
    figures: dict[str, float | int | None] = {}
    measured = [score for score in scores if any(getattr(score, figure.column) is not None for figure in COMPARED)]
    languages = sorted({score.language for score in measured if score.language})
    for language in languages if len(languages) > 1 else []:
        of_language = [score for score in scores if score.language == language]
        for figure in COMPARED:
            figures |= flat(f"{figure.key}_{language}", _mean(of_language, figure, seed))
        figures[f"n_{language}"] = len({score.id for score in of_language})
    return figures


def _mean(scores: Sequence[Score], figure: Figure, seed: int) -> Interval | None:
    values, prompts = _column(scores, figure.column), [score.id for score in scores]
    return fraction_interval(values, prompts) if figure.is_fraction else bootstrap_mean(values, prompts, seed=seed)


def _length_controlled(scores: Sequence[Score], against: Sequence[Score], seed: int) -> Interval | None:
    """The length-controlled win rate; the policy's answers and the opponent's are paired by prompt and index."""
    theirs = {(score.id, score.index): score.characters for score in against}
    differences = [score.characters - theirs[score.id, score.index] for score in scores]
    interval = length_controlled(_column(scores, "win"), differences, [score.id for score in scores], seed=seed)
    return _certain(interval) if scores is against else interval


def _certain(interval: Interval | None) -> Interval | None:
    """The interval of a win rate against oneself, without width: equal answers are ties for certain."""
    return interval and interval._replace(low=interval.value, high=interval.value)


def _followed_each(scores: Sequence[Score]) -> Interval | None:
    """The fraction of all instructions that are followed (IFEval's instruction-level accuracy)."""
    of_prompt = [(value, score.id) for score in scores for value in score.followed_each or ()]
    return fraction_interval([value for value, _ in of_prompt], [prompt for _, prompt in of_prompt])


def _gain(scores: Sequence[Score], against: Sequence[Score], column: str, seed: int) -> Interval | None:
    ours, theirs = _column(scores, column), _column(against, column)
    if scores is against:  # the opponent itself
        measured = {score.id for score, value in zip(scores, ours, strict=True) if value is not None}
        return Interval(0.0, 0.0, 0.0, len(measured)) if measured else None
    return bootstrap_gain(ours, [score.id for score in scores], theirs, [score.id for score in against], seed=seed)


def _column(scores: Sequence[Score], column: str) -> Values:
    return [getattr(score, column) for score in scores]


def _of_family(scores: Sequence[Score], family: str) -> list[Score]:
    return [score for score in scores if score.family == family]


def _verdict_fractions(wins: Values) -> dict[str, float | int | None]:
    """The fraction of comparisons that were ties (or orders that disagree), and of verdicts that could not be read."""
    read = [win for win in wins if win is not None]
    return {
        "win_rate_tie_fraction": rounded(read.count(0.5) / len(read)) if read else None,
        "win_rate_unparsed_fraction": rounded(1 - len(read) / len(wins)) if read else None,
    }
