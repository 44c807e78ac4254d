"""Whether a program passes its tests: 1 if all do, else 0 (RLVR on code, MBPP arXiv:2108.07732, HumanEval arXiv:2107.03374).

The program is the last fenced code block of a completion, or the whole of it where there is none. It runs in a sandbox, which states what
it does not protect against: stages/rewards/sandbox.py. Whatever is not a pass is 0 and counted by its outcome: a hang or a crash is a failure,
never a default reward; a sandbox that does not work stops the run.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from stages.pipeline.records import Message
from stages.rewards.references import References
from stages.rewards.sandbox import Limits, Verdict, require_isolation, run_tests

_FENCE = re.compile(r"[ \t]*```+[ \t]*(\w*)[^`]*")
_PYTHON = ("python", "py", "python3")


def program_of(completion: str) -> str:
    """The program in a completion: its last block of Python, else its last block of no named language, else all of it."""
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
    """1 for a program that passes all tests of its prompt, else 0; `outcomes` counts what became of each.

    Raises:
        SandboxUnavailable: programs cannot be run here in the isolation that is named.
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
        """What became of each program, in the order given; as many run side by side as there are cores."""
        tasks = [
            (program_of(text), "\n".join(self.references.of(prompt))) for prompt, text in zip(prompts, completions, strict=True)
        ]
        distinct = list(dict.fromkeys(tasks))
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            found = list(pool.map(lambda task: run_tests(task[0], task[1], self.limits, self.isolation), distinct))
        by_task = dict(zip(distinct, found, strict=True))
        return [by_task[task] for task in tasks]
