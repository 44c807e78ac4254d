"""Scores a program by its tests: 1 if it passes all of them, else 0 (MBPP, arXiv:2108.07732; HumanEval, arXiv:2107.03374).

The program is the last fenced code block of a completion, or all of the completion if there is no such block. It runs in a sandbox;
plumbline/checking/sandbox.py lists what that does not protect against. Everything that is not a pass scores 0 and is counted by its outcome: a
hang or a crash is a failure and never gets a default reward. A sandbox that does not work stops the run.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from plumbline.checking.references import References, load_references
from plumbline.checking.sandbox import Limits, Verdict, require_isolation, run_tests
from plumbline.rows import Message

_FENCE = re.compile(r"[ \t]*```+[ \t]*(\w*)[^`]*")
_PYTHON = ("python", "py", "python3")


def program_of(completion: str) -> str:
    """The program in a completion: its last block of Python, else its last block without a language, else all of it."""
    blocks: list[tuple[str, list[str]]] = []
    inside = False
    for line in completion.splitlines():
        fence = _FENCE.fullmatch(line)
        if fence and not (inside and fence[1]):
            inside = not inside
            if inside:
                blocks.append((fence[1].lower(), []))
        elif inside:
            blocks[-1][1].append(line)
    programs = [lines for name, lines in blocks if name in _PYTHON] or [lines for name, lines in blocks if not name]
    return "\n".join(programs[-1]) if programs else completion


class CodeReward:
    """1 for a program that passes all tests of its prompt, else 0; `outcomes` counts the programs by outcome.

    Raises:
        SandboxUnavailable: programs cannot be run here with this isolation.
        ValueError: (when called) a prompt has no tests.
    """

    def __init__(self, references: References, limits: Limits, isolation: str) -> None:
        require_isolation(isolation)
        self.references, self.limits, self.isolation = references, limits, isolation
        self.outcomes: Counter[str] = Counter()

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        verdicts = self.verdicts(prompts, completions)
        self.outcomes.update(verdict.outcome for verdict in verdicts)
        return [float(verdict.outcome == "passed") for verdict in verdicts]

    def verdicts(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[Verdict]:
        """The verdict on each program, in order. As many programs run at once as there are cores; equal programs run once."""
        tasks = [
            (program_of(text), "\n".join(self.references.of(prompt))) for prompt, text in zip(prompts, completions, strict=True)
        ]
        distinct = list(dict.fromkeys(tasks))
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            verdicts = list(pool.map(lambda task: run_tests(task[0], task[1], self.limits, self.isolation), distinct))
        by_task = dict(zip(distinct, verdicts, strict=True))
        return [by_task[task] for task in tasks]


def load(folder: Path, description: Mapping[str, Any], run: str) -> CodeReward:
    """Loads the reward that runs the tests in a reward's folder."""
    return CodeReward(load_references(folder, "tests"), Limits(**description["limits"]), description["isolation"])
