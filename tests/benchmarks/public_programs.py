"""Runs MBPP's and HumanEval's reference programs, and corrupted ones, through the code reward and prints the outcomes as a Markdown table.

`python tests/benchmarks/public_programs.py ../shared/data/code` takes the reference of every problem, as a chat model would write it (words
around a fenced block), and three kinds of corruption:

- `unlike`: the tested functions return something else, of the opposite truth value. Any assert notices this, so none may pass;
- `near miss`: what they return is off by one, negated, or longer by one (`corrupted` of tests/test_verifiers.py). Weak tests may let it pass;
- mutants of the program's text: a comparison, an operator, a constant or a `return` is changed, drawn with a fixed seed. Many mutants change
  nothing that the tests look at.

The sandbox is not to blame for what a data set's tests let pass. So there is a second opinion: each program and its tests are executed in one
plain Python process, as these data sets' own harnesses do. `caught` is the fraction that fails there. Every disagreement is listed with both
verdicts, and so is every reference that does not pass. The last line counts them; the exit status is 1 if there are any.
"""

import argparse
import ast
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

if TYPE_CHECKING:
    from plumbline.checking.sandbox import Verdict

SEED = 17
MUTANTS = ("comparison", "operator", "constant", "return")


class Problem(NamedTuple):
    """A problem as `prepare` makes it."""

    name: str
    prompt: list[Any]
    program: str
    tests: list[str]


def read_problems(path: Path) -> list[Problem]:
    """The problems in a file of MBPP or HumanEval, zipped or not."""
    from plumbline.data.formats import FORMATS
    from plumbline.data.schema import Source
    from tests.test_verifiers import read_lines

    problems = []
    for row in read_lines(path):
        kind = next(name for name in ("mbpp", "humaneval") if FORMATS[name].fits(row))
        record = FORMATS[kind].convert(row, Source())
        program = record.columns["completion"][0]["content"]
        problems.append(Problem(str(row["task_id"]), record.columns["prompt"], program, record.extra["tests"]))
    return problems


# ---- corruptions ----------------------------------------------------------------------------------------------------


def unlike(problem: Problem) -> str:
    """The program, with what its tested functions return replaced by something of the opposite truth value."""
    called = {node.id for test in problem.tests for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)}
    nodes = ast.parse(problem.program).body
    named = [node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in called]
    named += [
        target.id
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in called
    ]
    wrap = """

def _unlike(function):
    depth = [0]
    def wrapped(*args, **kwargs):
        depth[0] += 1
        try:
            value = function(*args, **kwargs)
        finally:
            depth[0] -= 1
        if depth[0]:
            return value
        return (not value) if isinstance(value, bool) else "" if value else "unlike"
    return wrapped
"""
    return problem.program + wrap + "".join(f"{name} = _unlike({name})\n" for name in named)


def near_miss(problem: Problem) -> str:
    """The program, with what its tested functions return changed slightly."""
    from tests.test_verifiers import corrupted

    return corrupted(problem.program, problem.tests)


COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}  # fmt: skip


def changes(node: ast.AST) -> Iterator[tuple[str, Callable[[], None]]]:
    """The changes that a node of a program allows, by kind."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield "comparison", lambda: node.ops.__setitem__(0, COMPARISONS[type(node.ops[0])]())
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OPERATORS:
        yield "operator", lambda: setattr(node, "op", OPERATORS[type(node.op)]())
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield "constant", lambda: setattr(node, "value", node.value + 1)  # type: ignore[operator]
    if isinstance(node, ast.Return) and node.value is not None:
        yield "return", lambda: setattr(node, "value", ast.Constant(None))


def mutants(problem: Problem) -> Iterator[tuple[str, str]]:
    """One mutant of each kind that the program allows, with its kind."""
    count = sum(1 for _ in ast.walk(ast.parse(problem.program)))
    order = random.Random(f"{SEED} {problem.name} {len(problem.program)}").sample(range(count), count)
    for kind in MUTANTS:
        for position in order:
            tree = ast.parse(problem.program)
            node = next(node for number, node in enumerate(ast.walk(tree)) if number == position)
            change = dict(changes(node)).get(kind)
            if change is not None:
                change()
                yield kind, ast.unparse(tree)
                break


def as_answer(program: str) -> str:
    """A program as a chat model would write it."""
    return f"Here is a function that does it:\n\n```python\n{program.rstrip()}\n```\n\nIt passes the tests above."


# ---- the second opinion ---------------------------------------------------------------------------------------------


def plain_verdicts(programs: Sequence[tuple[str, str]], seconds: float) -> list[bool]:
    """Whether programs pass their tests in one process, in a sandbox that can read everything and write nothing."""
    inside = [sys.executable, "-I", "-S", __file__, "--plain", str(seconds)]
    command = [str(shutil.which("bwrap")), "--die-with-parent", "--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--tmpfs", "/tmp",
               "--chdir", "/tmp", "--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--", *inside]  # fmt: skip
    lines = "".join(json.dumps(one) + "\n" for one in programs)
    run = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    return [line == "passed" for line in run.stdout.splitlines()]


def run_plainly(seconds: int) -> None:
    """Reads [program, tests] line by line and executes each in a child process."""
    import resource

    for line in sys.stdin:
        program, tests = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.alarm(seconds)
            resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
            os.dup2(os.open("/dev/null", os.O_RDWR), 1)
            os.dup2(1, 2)
            try:
                namespace = {"__name__": "solution"}
                exec(compile(program, "solution.py", "exec"), namespace)
                exec(compile(tests, "tests.py", "exec"), namespace)
            except BaseException:  # noqa: BLE001  a program that raises anything has not passed
                os._exit(1)
            os._exit(0)
        print("passed" if os.waitpid(child, 0)[1] == 0 else "failed", flush=True)


# ---- the table ------------------------------------------------------------------------------------------------------


class Trial(NamedTuple):
    """A program for a problem, and whether it must pass; None if the second opinion decides."""

    problem: Problem
    kind: str
    program: str
    passes: bool | None


def trials_of(problem: Problem) -> list[Trial]:
    """The reference and its corruptions."""
    return [
        Trial(problem, "reference", problem.program, True),
        Trial(problem, "unlike", unlike(problem), False),
        Trial(problem, "near miss", near_miss(problem), None),
        *(Trial(problem, f"mutant: {kind}", program, None) for kind, program in mutants(problem)),
    ]


def row(name: str, kind: str, plain: list[bool], verdicts: "list[Verdict]") -> str:
    """A line of the table."""
    from plumbline.checking.sandbox import OUTCOMES

    outcomes = Counter(verdict.outcome for verdict in verdicts)
    seconds = [verdict.seconds for verdict in verdicts]
    caught = f"{1 - sum(plain) / len(plain):.1%}" if kind != "reference" else ""
    counts = " | ".join(str(outcomes[outcome]) for outcome in OUTCOMES)
    return f"| {name} | {kind} | {len(plain)} | {counts} | {caught} | {statistics.median(seconds):.3f} | {max(seconds):.2f} |"


def disagreement(trial: Trial, plain: bool, verdict: "Verdict") -> str:
    """What is wrong with a verdict; empty if nothing is."""
    passed = verdict.outcome == "passed"
    if passed == plain and trial.passes in (None, passed):
        return ""
    ours = f"{verdict.outcome} in {verdict.seconds:.2f} s ({' '.join(verdict.detail.split())[:160]})"
    return f"{trial.problem.name}, {trial.kind}: here {ours}; in plain Python {'passed' if plain else 'failed'}"


def main() -> int:
    from plumbline.checking.code import CodeReward
    from plumbline.checking.references import References
    from plumbline.checking.sandbox import OUTCOMES, Limits

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with mbpp*.jsonl and HumanEval*.jsonl, zipped (.gz) or not")
    parser.add_argument("--every", type=int, default=1, help="only every n-th problem")
    parser.add_argument("--kinds", nargs="*", help="only these kinds, such as: reference unlike")
    parser.add_argument("--seconds", type=float, default=Limits().seconds, help="time limit of each program")
    options = parser.parse_args()
    files = sorted(path for path in options.folder.iterdir() if path.name.lower().startswith(("mbpp", "humaneval")))
    disagreements: list[str] = []
    limits = Limits(seconds=options.seconds)
    print(f"limits: {limits.seconds:g} s, {limits.memory_mib} MiB")
    print(f"\n| file | program | n | {' | '.join(OUTCOMES)} | caught | median s | longest s |")
    print(f"|---|---|---|{'---|' * len(OUTCOMES)}---|---|---|", flush=True)
    for path in files:
        problems = read_problems(path)[:: options.every]
        references = References([{"prompt": problem.prompt, "tests": problem.tests} for problem in problems], "tests")
        reward = CodeReward(references, limits, "bubblewrap")
        trials = [trial for problem in problems for trial in trials_of(problem)]
        for kind in options.kinds or dict.fromkeys(trial.kind for trial in trials):
            chosen = [trial for trial in trials if trial.kind == kind]
            plain = plain_verdicts([(one.program, "\n".join(one.problem.tests)) for one in chosen], limits.seconds)
            verdicts = reward.verdicts([one.problem.prompt for one in chosen], [as_answer(one.program) for one in chosen])
            print(row(path.name, kind, plain, verdicts), flush=True)
            disagreements += filter(None, map(disagreement, chosen, plain, verdicts))
    print("\n".join(["", *(f"- {line}" for line in disagreements), f"disagreements: {len(disagreements)}"]))
    return 1 if disagreements else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plain"]:
        run_plainly(round(float(sys.argv[2])))
    else:
        sys.exit(main())
