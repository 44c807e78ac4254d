"""Programs are scored by their tests; and public problems and recorded solutions, where they are at hand, as they were scored before."""

import ast
import gzip
import json
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

from plumbline.checking.code import CodeReward
from plumbline.checking.maths import MathReward
from plumbline.checking.programs import program_of
from plumbline.checking.references import References, collect
from plumbline.checking.sandbox import Limits, Verdict
from plumbline.data.formats import FORMATS
from plumbline.data.schema import Source
from plumbline.rewards.reward import outcomes
from tests.shared import CASES, SHARED
from tests.test_sandbox import needs_bubblewrap

QUESTION = [{"role": "user", "content": "How many?"}]


PROGRAMS = {
    "def f(): pass": "def f(): pass",
    "Sure:\n```python\nx = 1\n```\nDone.": "x = 1",
    "```\nx = 1\n```\nBetter:\n```py\nx = 2\n```": "x = 2",
    "```python\nx = 1\n```\nBetter:\n```python\nx = 2\n```": "x = 2",
    "```python\nx = 1": "x = 1",  # cut off
    "```python\nx = 1\n```\nRun it:\n```bash\npython x.py\n```\nDone.": "x = 1",
    "```python\nx = 1\n```\nOutput:\n```\n5\n```\nDone.": "x = 1",
    "```text\nplan\n```\n```\nx = 1\n```": "x = 1",
    "```python title=a.py\nx = '```'\n```": "x = '```'",
}


def test_without_tests_the_program_is_the_last_code_block() -> None:
    assert {completion: program_of(completion).rstrip("\n") for completion in PROGRAMS} == PROGRAMS


F = "def f(x):\n    return x + 1"
NEEDS_G = "def f(x):\n    return g(x) + 1"
G = "def g(x):\n    return x"
FOUND = {
    "a list item": (f"1. So:\n   ```python\n{indent(F, '   ')}\n   ```\n2. Done.", F),
    "a nested list item": (f"- a\n  - b\n\n    ```py\n{indent(F, '    ')}\n    ```\n", F),
    "deeper than Markdown allows": (f"So:\n\n        ```python\n{indent(F, '        ')}\n        ```", F),
    "a tab": (f"\t```python\n{indent(F, chr(9))}\n\t```", F),
    "a quotation": (f"> ```python\n{indent(F, '> ')}\n> ```\nThat is it.", F),
    "tildes": (f"~~~python\n{F}\n~~~", F),
    "a longer fence": (f"`````python\n{F}\n# ```\n`````", f"{F}\n# ```"),
    "a line separator in a string": (
        f"```python\ns = 'a\u2028b\u2029c\x85d\x0ce'\n{F}\n```",
        f"s = 'a\u2028b\u2029c\x85d\x0ce'\n{F}",
    ),
    "Windows' line ends": (f"```python\n{F}\n```".replace("\n", "\r\n"), F),
    "a usage example after it": (f"```python\n{F}\n```\nUse it:\n```python\nprint(f(1))\n```", F),
    "an example that keeps its result": (f"```python\n{F}\n```\n```python\nx = 3\nresult = f(x)\n```", F),
    "an example in a shell and its output": (f"```python\n{F}\n```\n```bash\npython f.py\n```\n```\n2\n```", F),
    "a second attempt": (f"```python\ndef f(x):\n    return 0\n```\nBetter:\n```python\n{F}\n```", F),
    "a helper before it": (f"```python\n{G}\n```\nThen\n```python\n{NEEDS_G}\n```", f"{G}\n{NEEDS_G}"),
    "a helper after it": (f"```python\n{NEEDS_G}\n```\nwith\n```python\n{G}\n```", f"{NEEDS_G}\n{G}"),
    "an import before it": (
        f"```python\nimport math\n```\n```python\n{F.replace('x + 1', 'math.floor(x)')}\n```",
        "import math\ndef f(x):\n    return math.floor(x)",
    ),
    "a class": ("```python\nclass f:\n    pass\n```\n```python\nprint(f())\n```", "class f:\n    pass"),
    "another way to write the language": (f"```Python3:main.py\n{F}\n```\n```python-repl\n>>> f(1)\n```", F),
    "attributes": (f"```{{.python .numberLines}}\n{F}\n```", F),
    "a list item with code less deep than its fence": (f"1. So:\n   ```python\n{F}\n   ```", F),
    "a fence behind text": (f"So: ```python\n{F}\n``` Done.", F),
    "a fence at the end of the code": (f"```python\n{F}```", F),
    "a fence in a docstring": (
        "```python\ndef f(x):\n    '''\n    ```\n    '''\n    return 2\n```",
        "def f(x):\n    '''\n    ```\n    '''\n    return 2",
    ),
    "a byte order mark": (f"\ufeff```python\n\ufeff{F}\n```", F),
    "a test that imports the program": (f"```python\n{F}\n```\n```python\nfrom f import f\nassert f(1) == 2\n```", F),
    "a global name": (
        "```python\nn = 1\n```\n```python\ndef f(x):\n    global n\n    n += x\n    return n\n```",
        "n = 1\ndef f(x):\n    global n\n    n += x\n    return n",
    ),
    "thinking": (f"<think>\n```python\ndef f(x):\n    return 9\n```\n</think>\n```python\n{F}\n```", F),
    "an answer block": (
        f"<think>hm</think><answer>\n```python\n{F}\n```\n</answer>\nE.g.\n```python\ndef f(x):\n    return 0\n```",
        F,
    ),
    "an answer block without a fence": (f"<answer>{F}</answer>", F),
    "only thinking": (f"<think>\n```python\n{F}\n```\n</think>\nI cannot.", "I cannot."),
    "thinking that does not end": (f"<think>\n```python\n{F}\n```", ""),
}


def test_the_program_is_what_the_tests_call_wherever_it_stands() -> None:
    found = {kind: program_of(completion, "assert f(1) == 2").rstrip("\n") for kind, (completion, _) in FOUND.items()}
    assert found == {kind: program for kind, (_, program) in FOUND.items()}


def test_an_example_that_reuses_a_builtin_name_is_not_part_of_the_program() -> None:
    completion = f"```python\n{F}\n```\n```python\nset = f(1)\n```"
    assert program_of(completion, "assert set([f(1)]) == {2}").rstrip("\n") == F
    assert (
        program_of("```python\ndef sum(a, b):\n    return a + b\n```\n```python\nx = 1\n```", "assert sum(1, 2) == 3")[:7]
        == "def sum"
    )


@needs_bubblewrap
def test_recorded_cases_are_scored_as_they_should_be() -> None:
    path = CASES / "code.jsonl"
    if not path.is_file():
        pytest.skip("no recorded cases at hand")
    wrong = []
    for case in read_lines(path):
        reward = CodeReward(
            References([{"prompt": QUESTION, "tests": case["tests"]}], "tests"), Limits(seconds=60.0), "bubblewrap"
        )
        if reward([QUESTION], [case["completion"]]) != [float(case["right"])]:
            wrong.append(case["case"])
    assert wrong == []


CODE = References([{"prompt": QUESTION, "tests": ["import math", "assert f(4) == math.sqrt(16)"]}], "tests")


@needs_bubblewrap
def test_only_a_pass_is_worth_anything_and_outcomes_are_counted() -> None:
    reward = CodeReward(CODE, Limits(seconds=60.0), "bubblewrap")
    programs = ["def f(x):\n    return x", "```python\ndef f(x):\n    return 4.0\n```", "def f(x):\n    return 0", "?"]
    assert reward([QUESTION] * 4, programs) == [1.0, 1.0, 0.0, 0.0]
    assert outcomes(reward) == {"verifier_error": 1, "verifier_passed": 2, "verifier_wrong": 1}
    hasty = CodeReward(CODE, Limits(seconds=0.5), "bubblewrap")
    assert hasty([QUESTION], ["import time\ntime.sleep(10_000)"]) == [0.0]
    assert outcomes(hasty) == {"verifier_timeout": 1}


def test_equal_programs_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr("plumbline.checking.code.require_isolation", lambda isolation: None)
    monkeypatch.setattr("plumbline.checking.code.run_tests", lambda *task: ran.append(task) or Verdict("passed", "", 0.1))
    assert CodeReward(CODE, Limits(), "bubblewrap")([QUESTION] * 3, ["a", "b", "a"]) == [1.0, 1.0, 1.0]
    assert sorted(task[0] for task in ran) == ["a", "b"]


def test_prompts_without_references_and_contradictory_ones_are_refused() -> None:
    with pytest.raises(ValueError, match="expected prompts with `answer`"):
        collect([{"prompt": QUESTION}], "answer")
    with pytest.raises(ValueError, match="expected one `answer` for each prompt, found '7' and '8'"):
        collect([{"prompt": QUESTION, "answer": "7"}, {"prompt": QUESTION, "answer": "8"}], "answer")


# ---- public problems ------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[Any]:
    """The rows of a JSON Lines file, zipped or not."""
    content = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(content) if path.suffix == ".gz" else content).split(b"\n") if line]


def problems(name: str) -> list[dict[str, Any]]:
    """Prompt, reference program and tests of every problem in a public file, as `prepare` reads them."""
    rows = []
    for row in read_lines(SHARED / "code" / name):
        record = FORMATS["humaneval" if "HumanEval" in name else "mbpp"].convert(row, Source())
        prompt = [{"role": "user", "content": str(row["task_id"])}]
        program = record.columns["completion"][0]["content"]
        rows.append({"id": row["task_id"], "prompt": prompt, "program": program, "tests": record.extra["tests"]})
    return rows


def corrupted(program: str, tests: list[str]) -> str:
    """The program, with what its tested functions return changed into near misses."""
    called = {node.id for node in ast.walk(ast.parse("\n".join(tests))) if isinstance(node, ast.Name)}
    named = [node.name for node in ast.parse(program).body if isinstance(node, ast.FunctionDef) and node.name in called]
    wrap = """
def _corrupt(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float, complex)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, (list, tuple)):
        return type(value)([*value, 0]) if not hasattr(value, "_fields") else None
    return 0 if value is None else None
def _wrapped(function):
    return lambda *args, **kwargs: _corrupt(function(*args, **kwargs))
"""
    return program + wrap + "".join(f"{name} = _wrapped({name})\n" for name in named)


def judge(rows: list[dict[str, Any]], programs: list[str]) -> list[Verdict]:
    references = References([{"prompt": row["prompt"], "tests": row["tests"]} for row in rows], "tests")
    return CodeReward(references, Limits(seconds=60.0), "bubblewrap").verdicts([row["prompt"] for row in rows], programs)


@needs_bubblewrap
@pytest.mark.parametrize(("name", "step"), [("mbpp_724.jsonl", 40), ("HumanEval_100.jsonl.gz", 8)])
def test_public_reference_programs_pass_and_corrupted_ones_fail(name: str, step: int) -> None:
    if not (SHARED / "code" / name).is_file():
        pytest.skip(f"no {name} at hand")
    rows = problems(name)[::step]
    right = judge(rows, [row["program"] for row in rows])
    assert [(row["id"], verdict) for row, verdict in zip(rows, right, strict=True) if verdict.outcome != "passed"] == []
    wrong = judge(rows, [corrupted(row["program"], row["tests"]) for row in rows])
    assert [row["id"] for row, verdict in zip(rows, wrong, strict=True) if verdict.outcome == "passed"] == []


def test_recorded_solutions_of_gsm8k_are_scored_as_they_were() -> None:
    path = SHARED / "math/gsm8k_model_solutions_400.jsonl.gz"
    if not path.is_file():
        pytest.skip("no recorded solutions at hand")
    assert recorded_disagreements(path) == []


def recorded_disagreements(path: Path) -> list[dict[str, Any]]:
    """The recorded solutions whose score is not the recorded `is_correct`."""
    disagreements = []
    for row in read_lines(path):
        reference = row["ground_truth"].rpartition("A:")[2].strip()
        answers = References([{"prompt": QUESTION, "answer": reference.replace(",", "").replace("$", "")}], "answer")
        reward = MathReward(answers)
        for model, solution in row.items():
            if isinstance(solution, dict):
                score = reward([QUESTION], [solution["solution"]])[0]
                if score != solution["is_correct"]:
                    disagreements.append(
                        {"model": model, "score": score, "reference": reference, "end": solution["solution"][-60:]}
                    )
    return disagreements
