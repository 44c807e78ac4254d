"""What lines of feedback say, as rows to learn from: preferences, labels of single answers, or demonstrations.

| said | preferences | unpaired | demonstrations |
|---|---|---|---|
| a vote for A or B | the one over the other | good, bad | |
| a tie | | | |
| both are bad | | bad, bad | |
| thumb up, thumb down | | good, bad | |
| a better answer | it over the answer | good, bad | it |

A vote says which of two answers is better and not whether it is good. So where a thumb or a correction says that of an answer as well, the vote
does not label it.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from plumbline.data.faults import Fault
from plumbline.feedback.folder import Entry
from plumbline.feedback.lines import BOTH_BAD, CORRECTION, THUMB, TIE, UP, VOTE, A, Answer, Line
from plumbline.rows import Row, assistant, prompt_key

ROLES = {"preferences": "preferences", "unpaired": "unpaired", "demonstrations": "sft"}
"""The kinds of rows that feedback can become, as plumbline/graph.py names them → the role of data whose checks they pass."""


class Judgement(NamedTuple):
    """A row that somebody's feedback states, with the place of its line; a Fault for a line that cannot be used."""

    file: str
    row: int
    content: Row | Fault


def judgements(entries: Iterable[Entry], kind: str) -> list[Judgement]:
    """What the entries state as rows of `kind`, in their order; an entry may state none, one or two."""
    known = [*entries]
    labelled = {
        (prompt_key(line.messages), line.answers[line.about].text)
        for _, _, line in known
        if isinstance(line, Line) and line.kind != VOTE
    }
    return [
        Judgement(file, number, row)
        for file, number, line in known
        for row in ([line] if isinstance(line, Fault) else _rows(line, kind, labelled))
    ]


def _rows(line: Line, kind: str, labelled: set[tuple[str, str]]) -> Iterator[Row | Fault]:
    """The rows of one line; a Fault for one whose better answer was cut off, which would teach not to stop.

    labelled: (prompt, answer) of what thumbs and corrections label.
    """
    if line.kind == VOTE:
        better, worse = line.answers if line.verdict == A else line.answers[::-1]
        is_split = line.verdict not in (TIE, BOTH_BAD)
        if kind == "preferences" and is_split:
            yield _pair(line, better, worse)
        if kind == "unpaired" and line.verdict != TIE:
            for answer in (better, worse):
                if (prompt_key(line.messages), answer.text) not in labelled:
                    yield _label(line, answer, is_split and answer is better)
        return
    answer = line.answers[line.about]
    correction = Answer(line.verdict) if line.kind == CORRECTION else None
    if kind == "preferences" and correction:
        yield _pair(line, correction, answer)
    if kind == "unpaired" and correction:
        yield _label(line, correction, True)
    if kind == "unpaired":
        yield _label(line, answer, line.kind == THUMB and line.verdict == UP)
    if kind == "demonstrations" and correction:
        yield {"prompt": line.messages, "completion": assistant(correction.text), **_origin(line)}


def _pair(line: Line, better: Answer, worse: Answer) -> Row | Fault:
    if not better.finished:
        return _cut_off(better)
    return {
        "prompt": line.messages,
        "chosen": assistant(better.text),
        "rejected": assistant(worse.text),
        "policy_chosen": better.policy,
        "policy_rejected": worse.policy,
        **_origin(line),
    }


def _label(line: Line, answer: Answer, is_good: bool) -> Row | Fault:
    if is_good and not answer.finished:
        return _cut_off(answer)
    return {
        "prompt": line.messages,
        "completion": assistant(answer.text),
        "label": is_good,
        "policy": answer.policy,
        **_origin(line),
    }


def _cut_off(answer: Answer) -> Fault:
    return Fault("unfinished", f"…{answer.text[-40:]}")


def _origin(line: Line) -> Row:
    return {"feedback": line.kind, "time": line.time}
