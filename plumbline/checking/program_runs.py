"""Programs in answers to prompts whose rows have `tests` (MBPP, arXiv:2108.07732; HumanEval, arXiv:2107.03374): each is run against them.

A program that passes all tests is a right answer, and any other is a wrong one: accuracy and pass@k count them. They run in the sandbox of
`kind: code` (plumbline/checking/sandbox.py lists what it does not protect against), and their outcomes are counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from plumbline.checking.code import verdicts_on
from plumbline.checking.sandbox import ISOLATIONS, OUTCOMES, Limits, require_isolation
from plumbline.reasoning import NONE
from plumbline.rows import Row

COLUMN = "tests"
"""The column of prompts that has the tests of a program."""
NOT_RUN = "none"


@dataclass
class Programs:
    """How programs are run; values and their meaning: conf/evaluate.yaml."""

    isolation: str = NOT_RUN
    limits: Limits = field(default_factory=Limits)

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        known = (NOT_RUN, *ISOLATIONS)
        return [] if self.isolation in known else [f"isolation: expected one of {', '.join(known)}, found {self.isolation!r}"]


def outcomes(rows: Sequence[Row], shown: Sequence[str], programs: Programs) -> list[str | None]:
    """How the program in each answer ended, one of sandbox.OUTCOMES; None for a prompt without tests, and for all if programs are not run.

    shown: the answers without their reasoning.

    Raises:
        SandboxUnavailable: there are tests, and programs cannot be run here with this isolation.
    """
    with_tests = [number for number, row in enumerate(rows) if row.get(COLUMN)]
    ended: list[str | None] = [None] * len(rows)
    if programs.isolation == NOT_RUN or not with_tests:
        return ended
    _require_once(programs.isolation)
    answers, tests = [shown[number] for number in with_tests], [rows[number][COLUMN] for number in with_tests]
    for number, verdict in zip(with_tests, verdicts_on(answers, tests, programs.limits, programs.isolation, NONE), strict=True):
        ended[number] = verdict.outcome
    return ended


_require_once = cache(require_isolation)  # which runs two programs; a stage asks it for every shard


def outcome_figures(ended: Sequence[str | None]) -> dict[str, int]:
    """The number of programs of each outcome, as `programs_<outcome>`; empty if none ran."""
    return {f"programs_{outcome}": ended.count(outcome) for outcome in OUTCOMES} if any(ended) else {}
