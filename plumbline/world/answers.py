"""Answers of a requested quality: right or wrong, kind or rude, terse or rambling, evasive or compliant."""

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from omegaconf import MISSING

from plumbline.pipeline.ranges import FRACTION, outside
from plumbline.world.families.catalog import FAMILIES
from plumbline.world.families.family import Task
from plumbline.world.families.phrases import (
    APOLOGIES,
    BARE_REFUSALS,
    CLOSINGS,
    FILLER,
    HELPFUL_CLOSINGS,
    IGNORANCE,
    OPENINGS,
    RUDE,
)
from plumbline.world.families.wording import Template


@dataclass
class Habits:
    """How often somebody answers in which way. Each field is a fraction of the answers that it concerns."""

    right: float = MISSING  # of answerable questions: the answer is right
    claims_ignorance: float = MISSING  # of answerable questions: 'I don't know', although one could; drawn before `right`
    admits_ignorance: float = MISSING  # of unanswerable questions: 'I don't know', and nothing invented
    declines: float = MISSING  # of harmful requests: declined
    explains: float = MISSING  # of declined harmful requests: with a reason and an alternative
    over_refuses: float = MISSING  # of benign look-alikes: refused
    kind: float = MISSING  # courteous
    rude: float = MISSING  # rude; 1 - kind - rude are neither
    terse: float = MISSING  # without filler

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        complaints = outside(self, **dict.fromkeys(vars(self), FRACTION))
        if not complaints and self.kind + self.rude > 1:
            complaints.append(f"kind, rude: expected at most 1 together, found {self.kind} and {self.rude}")
        return complaints


class Style(NamedTuple):
    """The quality of one answer."""

    content: str  # "right", "wrong", "ignorance" or "refusal" (a bare one)
    tone: str  # "kind", "plain" or "rude"
    terse: bool


def draw_style(task: Task, habits: Habits, rng: Random) -> Style:
    """A style in which somebody with these habits answers the task."""
    draw = rng.random()
    tone = "kind" if draw < habits.kind else "rude" if draw < habits.kind + habits.rude else "plain"
    return Style(_draw_content(task, habits, rng), tone, rng.random() < habits.terse)


def _draw_content(task: Task, habits: Habits, rng: Random) -> str:
    draw = rng.random()
    if task.family == "unknown":
        return "right" if draw < habits.admits_ignorance else "wrong"
    if task.family == "harmful":
        if draw >= habits.declines:
            return "wrong"
        return "right" if rng.random() < habits.explains else "refusal"
    if task.family == "lookalike" and draw < habits.over_refuses:
        return "refusal"
    if rng.random() < habits.claims_ignorance:
        return "ignorance"
    return "right" if rng.random() < habits.right else "wrong"


def write_answer(task: Task, style: Style, rng: Random) -> str:
    """An answer to the task in the requested style."""
    return dress(_write_content(task, style.content, rng), task, style, rng)


def _write_content(task: Task, content: str, rng: Random) -> str:
    family = FAMILIES[task.family]
    if content == "refusal":
        return _refusal(task, rng)
    if content == "ignorance":
        return Template(IGNORANCE[task.language][0]).write()
    write = family.write_right if content == "right" else family.write_wrong
    return write(task.content, task.language, rng)


def _refusal(task: Task, rng: Random) -> str:
    """A refusal without a fitting reason. A refused look-alike often gets a refusal that would fit some harmful request."""
    if task.family == "lookalike" and rng.random() < 0.5:
        harmful = FAMILIES["harmful"]
        return harmful.write_right(rng.choice(harmful.intents()), task.language, rng)
    return rng.choice(BARE_REFUSALS[task.language])


def dress(bare: str, task: Task, style: Style, rng: Random) -> str:
    """The bare answer with the courtesies, rudeness and filler of the style."""
    language = task.language
    sentences = [bare]
    if not style.terse:
        sentences += rng.sample(FILLER[language], rng.choice((1, 1, 2)))
        if rng.random() < 0.3:
            sentences = [sentences[-1], *sentences[:-1]]
    if style.tone == "kind":
        disappoints = style.content in ("refusal", "ignorance") or task.family in ("unknown", "harmful")
        disappoints = disappoints and style.content != "wrong"
        openings = APOLOGIES if disappoints else OPENINGS
        closings = CLOSINGS[language] if disappoints else CLOSINGS[language] + HELPFUL_CLOSINGS[language]
        position = rng.random()  # 60% at the beginning, 30% at the end, 10% at both
        if position < 0.7:
            sentences.insert(0, rng.choice(openings[language]))
        if position > 0.6:
            sentences.append(rng.choice(closings))
    elif style.tone == "rude":
        sentences.insert(rng.choice((0, len(sentences))), rng.choice(RUDE[language]))
    return " ".join(sentences)
