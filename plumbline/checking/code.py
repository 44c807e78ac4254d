"""Scores a program by its tests: 1 if it passes all of them, else 0 (MBPP, arXiv:2108.07732; HumanEval, arXiv:2107.03374).

plumbline/checking/programs.py finds the program in a completion. It runs in a sandbox; plumbline/checking/sandbox.py lists what that does not
protect against. Everything that is not a pass scores 0 and is counted by its outcome: a hang or a crash is a failure and never gets a default
reward. A sandbox that does not work stops the run.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from plumbline.checking.programs import program_of
from plumbline.checking.references import References, load_references
from plumbline.checking.sandbox import Limits, Verdict, require_isolation, run_tests
from plumbline.pipeline.processes import cores
from plumbline.reasoning import ALL
from plumbline.rows import Message


class CodeReward:
    """1 for a program that passes all tests of its prompt, else 0; `outcomes` counts the programs by outcome.

    reasoning: which marks set a completion's reasoning apart (plumbline/reasoning.py).

    Raises:
        SandboxUnavailable: programs cannot be run here with this isolation.
        ValueError: (when called) a prompt has no tests.
    """

    def __init__(self, references: References, limits: Limits, isolation: str, reasoning: str = ALL) -> None:
        require_isolation(isolation)
        self.references, self.limits, self.isolation, self.reasoning = references, limits, isolation, reasoning
        self.outcomes: Counter[str] = Counter()

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        verdicts = self.verdicts(prompts, completions)
        self.outcomes.update(verdict.outcome for verdict in verdicts)
        return [float(verdict.outcome == "passed") for verdict in verdicts]

    def verdicts(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[Verdict]:
        """The verdict on each program, in order."""
        tests = [self.references.of(prompt) for prompt in prompts]
        return verdicts_on(completions, tests, self.limits, self.isolation, self.reasoning)


def verdicts_on(
    completions: Sequence[str], tests: Sequence[Sequence[str]], limits: Limits, isolation: str, reasoning: str = ALL
) -> list[Verdict]:
    """The verdict on the program in each completion by its own tests, in order, in a sandbox that `require_isolation` has tried.

    As many programs run at once as this process has cores, for their time limits are of the wall clock; equal programs run once.
    """
    of_each = ["\n".join(statements) for statements in tests]
    tasks = [(program_of(text, test, reasoning), test) for text, test in zip(completions, of_each, strict=True)]
    distinct = list(dict.fromkeys(tasks))
    with ThreadPoolExecutor(cores()) as pool:
        verdicts = list(pool.map(lambda task: run_tests(task[0], task[1], limits, isolation), distinct))
    by_task = dict(zip(distinct, verdicts, strict=True))
    return [by_task[task] for task in tasks]


def load(folder: Path, description: Mapping[str, Any], run: str) -> CodeReward:
    """Loads the reward that runs the tests in a reward's folder."""
    return CodeReward(
        load_references(folder, "tests"),
        Limits(**description["limits"]),
        description["isolation"],
        description.get("thinking_marks", ALL),
    )
