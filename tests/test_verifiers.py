"""Rewards that check: the right number, the tests that pass; and on public problems what is recorded of them, where those are at hand."""

import ast
import gzip
import json
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from stages.datasets.config import Source
from stages.datasets.formats import FORMATS
from stages.models.rewards import WeightedSum, load_reward, outcomes
from stages.pipeline.records import read_json, write_jsonl
from stages.reward import RewardEntry, RewardStage, run
from stages.rewards.algebra import Algebra
from stages.rewards.code import CodeReward, program_of
from stages.rewards.maths import MathReward, final_answer
from stages.rewards.references import References, collect
from stages.rewards.sandbox import Limits, Verdict
from tests.test_datasets_shared import SHARED
from tests.test_sandbox import needs_bubblewrap

QUESTION = [{"role": "user", "content": "How many?"}]


# ---- maths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### -3.50", "-7/2"),
        ("A: 18", "18"),
        ("He has 5. A: 18 eggs and not 20", "18"),
        ("The answer is $1,050.", "1050"),
        (r"so \boxed{42}.", "42"),
        (r"so \boxed{\frac{3}{4}} of 8", "3/4"),
        ("Answer: 3/4", "3/4"),
        ("정답은 12예요. 3개는 남아요", "12"),
        ("It is 5.", "5"),  # no mark: the last number
        ("first 3, then 5", "5"),
        ("#### 50%", "50"),
        ("#### −4", "-4"),
        ("#### .5", "1/2"),
        ("#### 3\n\nwait\n\n#### 4", "4"),  # the last mark
        ("**Answer**: 12 apples in 3 boxes", "12"),
        ("**정답**: 12 (3번)", "12"),
        ("정답 : 12, 3번", "12"),
        ("#### Step 3: add\n5 + 7 = 12", "12"),  # a heading
    ],
)
def test_the_final_answer_is_found(text: str, expected: str) -> None:
    assert final_answer(text) == Fraction(expected)


@pytest.mark.parametrize(
    "text", ["", "I do not know.", "#### many", "#### ", "3 apples\n#### none", "#### 1/0", f"#### {'9' * 100}"]
)
def test_without_an_answer_there_is_none(text: str) -> None:
    """A mark with nothing behind it is no answer, whatever numbers stand before it."""
    assert final_answer(text) is None


def maths(answer: str, algebra: Algebra | None = None) -> MathReward:
    return MathReward(References([{"prompt": QUESTION, "answer": answer}], "answer"), algebra)


def test_numbers_are_compared_as_numbers_and_outcomes_counted() -> None:
    reward = maths("1234.5")
    assert reward([QUESTION] * 4, ["#### 1,234.50", "#### 2469/2", "#### 1234", "none"]) == [1.0, 1.0, 0.0, 0.0]
    assert outcomes(WeightedSum([(1.0, reward)])) == {"verifier_missing": 1, "verifier_right": 2, "verifier_wrong": 1}


def test_listing_every_number_does_not_help() -> None:
    assert maths("7")([QUESTION], [" ".join(map(str, range(20)))]) == [0.0]


def test_a_prompt_without_a_reference_is_an_error_and_never_a_score() -> None:
    with pytest.raises(ValueError, match=r"no reference for the prompt 'Another\?'"):
        maths("7")([[{"role": "user", "content": "Another?"}]], ["7"])
    with pytest.raises(ValueError, match=r"expected a number or a formula .*, found 'seven'"):
        maths("seven")([QUESTION], ["7"])


EQUAL = [
    ("1/2", r"\boxed{0.5}"),
    ("0.5", r"so $\frac12$."),
    (r"\frac{1}{2}", "#### 0.50"),
    (r"\frac{1}{2}", r"\boxed{\dfrac{2}{4}}"),
    ("3/2", r"\boxed{1 1/2}"),
    ("3/2", r"The answer is $1\frac{1}{2}$."),
    (r"2\sqrt{3}", r"The answer is $\sqrt{12}$, as it should be."),
    (r"2\sqrt{3}", "Answer: 2*sqrt(3)"),
    (r"2\pi", "It is 2π"),
    (r"x^2+2x+1", r"\boxed{(x+1)^2}"),
    ("(x+1)^2", "x**2 + 2*x + 1"),
    (r"\{1,2\}", r"\boxed{\{2, 1\}}"),
    (r"\{1,2\}", "The answer is $1$ and $2$."),
    (r"\pm 2", r"\boxed{2, -2}"),
    ("[1,2)", r"\boxed{x \in [1, 2)}"),
    ("[1,2)", "#### 1 <= x < 2"),
    (r"(-\infty,3]", "#### x ≤ 3"),
    (r"(1,2)\cup(3,4]", r"\[(1,2)∪(3,4]\]"),
    ("x=3", "#### 3"),
    ("3", r"\boxed{x = 3}"),
    ("4", r"\boxed{2\sqrt{4}}"),
    ("2", r"\boxed{\log_2 4}"),
    ("5", r"\boxed{5\text{ cm}^2}"),
    ("1234", r"\boxed{1{,}234}"),
    (r"\text{east}", r"\boxed{\text{east}}"),
    ("314_8", r"\boxed{314_8}"),
    ("y=2x+1", "#### y - 2x = 1"),
    ("3+4i", "#### 4i+3"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"),
]
DIFFERENT = [
    ("1/2", "#### 0.49"),
    (r"\frac{1}{3}", r"\boxed{0.333333}"),  # Math-Verify alone says right: it rounds to six places
    ("10^{-7}", "#### 0.0"),  # and here
    (r"\sqrt{2}", "#### 1.41421356"),
    (r"\sqrt{2}", r"\boxed{\sqrt{2}+10^{-20}}"),
    ("2+3t", "#### 5"),  # it takes a trailing t for a unit
    ("2", r"\boxed{2\sqrt{3}}"),
    ("2", r"\boxed{2x}"),
    ("5", r"\boxed{5, 6}"),
    ("5", r"\boxed{5 \text{ or } 6}"),
    ("5", "The answer is $5$ or $6$."),
    ("1", r"\boxed{1 1/2}"),
    (r"\{1,2\}", "#### 1"),
    ("[1,2)", r"\boxed{[1,2]}"),
    ("(1,2)", r"\boxed{(2,1)}"),
    ("x>3", "#### x ≥ 3"),
    ("x=3", "#### 4"),
    ("x", "#### y"),
    ("x+1", r"\boxed{x+2}"),
    ("314_8", r"\boxed{314_9}"),
    ("3:4", "#### 3"),
    (r"\text{east}", r"\boxed{\text{west}}"),
    ("2", r"\boxed{\infty}"),
    ("0", r"\boxed{\frac{1}{0}}"),
    ("x+1", r"\boxed{}"),
    ("x+1", "I do not know."),
]


def test_equal_forms_are_right_and_others_wrong() -> None:
    algebra = Algebra()
    found = [(answer, text, maths(answer, algebra)([QUESTION], [text])[0]) for answer, text in EQUAL + DIFFERENT]
    assert [one[:2] for one in found if one[2]] == EQUAL


def test_a_number_with_prose_behind_it_is_that_number() -> None:
    assert maths("12")([QUESTION] * 2, ["A: 12 (that is, 3 + 9)", r"\boxed{12 (that is, 3 + 9)}"]) == [1.0, 0.0]


HOSTILE = [
    "9^{9^{9^{9}}}", "(x+1)^{100000}", r"\sum_{n=1}^{10^{9}} \frac{1}{n^3}", "(" * 300 + "x" + ")" * 300, "(" * 20 + "x" + ")" * 20, "(" * 20,
    "x" * 5000, "1+" * 180 + "1", "\\", "\x00", r"\frac{", r"\text{__import__('os').system('x')}", "__import__('os').system('x')",
]  # fmt: skip


def test_hostile_answers_are_failures_in_bounded_time_in_any_thread() -> None:
    reward = maths("x+1")
    reward.algebra.seconds = 0.2
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda text: reward([QUESTION], [rf"\boxed{{{text}}}"])[0], [*HOSTILE, "1+x"]))
    assert scores == [0.0] * len(HOSTILE) + [1.0]
    assert time.monotonic() - began < 40
    counted = outcomes(reward)
    assert counted["verifier_timeout"] >= 2
    assert counted["verifier_unreadable"] >= 5
    assert counted["verifier_right"] == 1


def test_a_child_that_is_killed_is_replaced() -> None:
    algebra = Algebra()
    assert algebra.outcome("x+1", "1+x") == "right"
    assert algebra.child
    algebra.child.kill()
    algebra.child.wait()
    assert algebra.outcome("x+1", "1+x") == "right"


# ---- code -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("def f(): pass", "def f(): pass"),
        ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1"),
        ("```\nx = 1\n```\nBetter:\n```py\nx = 2\n```", "x = 2"),
        ("```python\nx = 1", "x = 1"),  # cut off
        ("1. So:\n   ```python\n   x = 1\n   ```", "   x = 1"),
        ("```python\nx = 1\n```\nRun it:\n```bash\npython x.py\n```\nDone.", "x = 1"),
        ("```python\nx = 1\n```\nOutput:\n```\n5\n```\nDone.", "x = 1"),
        ("```text\nplan\n```\n```\nx = 1\n```", "x = 1"),
        ("```python title=a.py\nx = '```'\n```", "x = '```'"),
    ],
)
def test_the_program_is_the_last_code_block(completion: str, program: str) -> None:
    assert program_of(completion) == program


CODE = References([{"prompt": QUESTION, "tests": ["import math", "assert f(4) == math.sqrt(16)"]}], "tests")


@needs_bubblewrap
def test_only_a_pass_is_worth_anything_and_outcomes_are_counted() -> None:
    reward = CodeReward(CODE, Limits(seconds=1.0), "bubblewrap")
    programs = [
        "def f(x):\n    return x",
        "```python\ndef f(x):\n    return 4.0\n```",
        "def f(x):\n    return 0",
        "while True: pass",
        "?",
    ]
    assert reward([QUESTION] * 5, programs) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert outcomes(reward) == {"verifier_error": 1, "verifier_passed": 2, "verifier_timeout": 1, "verifier_wrong": 1}


def test_equal_programs_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr("stages.rewards.code.require_isolation", lambda isolation: None)
    monkeypatch.setattr("stages.rewards.code.run_tests", lambda *task: ran.append(task) or Verdict("passed", "", 0.1))
    assert CodeReward(CODE, Limits(), "bubblewrap")([QUESTION] * 3, ["a", "b", "a"]) == [1.0, 1.0, 1.0]
    assert [task[0] for task in ran] == ["a", "b"]


# ---- the stage ------------------------------------------------------------------------------------------------------


def stage(**changes: Any) -> RewardStage:
    settings: dict[str, Any] = {
        "init": "none",
        "signal": "data/prompts",
        "second": "none",
        "judge": "none",
        "isolation": "bubblewrap",
        "limits": Limits(),
    }
    return RewardStage(seed=1, threads=1, reward=RewardEntry(**(settings | changes)))


@pytest.fixture
def prompts(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_STAGE", "reward@checked")
    for place in ("policy", "reward"):
        (project / "artifacts" / place / "none").mkdir(parents=True)
    other = [{"role": "user", "content": "What now?"}]
    write_jsonl("artifacts/data/prompts/train.jsonl", [
        {"id": "1", "prompt": QUESTION, "answer": "7", "tests": ["assert f(1) == 2"]}, {"id": "2", "prompt": other},
    ])  # fmt: skip
    write_jsonl("artifacts/data/prompts/validation.jsonl", [])
    write_jsonl(
        "artifacts/data/prompts/test.jsonl",
        [{"id": "3", "prompt": [*QUESTION, *other], "answer": "8", "tests": ["assert f(1) == 3"]}],
    )
    return project


def test_a_maths_reward_is_a_folder_that_knows_the_answers_of_every_split(prompts: Path) -> None:
    run(stage(kind="math"), "checked")
    reward = load_reward(prompts / "artifacts/reward/checked")
    long = [*QUESTION, {"role": "user", "content": "What now?"}]
    assert reward([QUESTION, long], ["#### 7", "#### 7"]) == [1.0, 0.0]
    metrics = read_json("metrics/reward/checked.json")
    assert (metrics["references"], metrics["prompts_without"]) == (2, 1)


@needs_bubblewrap
def test_a_code_reward_is_a_folder_that_names_its_isolation(prompts: Path) -> None:
    run(stage(kind="code", limits=Limits(seconds=2.0)), "checked")
    description = read_json("artifacts/reward/checked/reward.json")
    assert (description["isolation"], description["limits"]["seconds"]) == ("bubblewrap", 2.0)
    assert load_reward(prompts / "artifacts/reward/checked")([QUESTION], ["def f(x):\n    return 2"]) == [1.0]


def test_code_is_not_described_where_it_could_not_be_run(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.rewards.sandbox.shutil.which", lambda name: None)
    with pytest.raises(ValueError, match="isolation: rlimits"):
        run(stage(kind="code"), "checked")
    assert not (prompts / "artifacts/reward/checked").exists()


def test_a_reference_that_cannot_be_compared_with_stops_the_stage(prompts: Path) -> None:
    write_jsonl("artifacts/data/prompts/validation.jsonl", [{"prompt": [{"role": "user", "content": "x"}], "answer": r"\frac{"}])
    with pytest.raises(ValueError, match=r"expected a number or a formula .*frac"):
        run(stage(kind="math"), "checked")
    assert not (prompts / "artifacts/reward/checked/reward.json").exists()


def test_prompts_without_references_and_contradictory_ones_are_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": QUESTION}])
    with pytest.raises(ValueError, match="expected prompts with `answer`"):
        collect(tmp_path, "answer")
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": QUESTION, "answer": "7"}, {"prompt": QUESTION, "answer": "8"}])
    with pytest.raises(ValueError, match="expected one `answer` for each prompt, found '7' and '8'"):
        collect(tmp_path, "answer")


# ---- public problems ------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[Any]:
    """JSON lines, zipped or not."""
    content = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(content) if path.suffix == ".gz" else content).decode().splitlines()]


def problems(name: str) -> list[dict[str, Any]]:
    """Prompt, reference program and tests of every problem of a public file, as `prepare` reads them."""
    found = []
    for row in read_lines(SHARED / "code" / name):
        record = FORMATS["humaneval" if "HumanEval" in name else "mbpp"].convert(row, Source())
        prompt = [{"role": "user", "content": str(row["task_id"])}]
        program = record.columns["completion"][0]["content"]
        found.append({"id": row["task_id"], "prompt": prompt, "program": program, "tests": record.extra["tests"]})
    return found


def corrupted(program: str, tests: list[str]) -> str:
    """The program with the results of the functions that the tests call changed into near misses."""
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
    return CodeReward(references, Limits(seconds=20.0), "bubblewrap").verdicts([row["prompt"] for row in rows], programs)


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
    """The recorded solutions that are scored otherwise than `is_correct` says."""
    found = []
    for row in read_lines(path):
        reference = row["ground_truth"].rpartition("A:")[2].strip()
        reward = maths(reference.replace(",", "").replace("$", ""))
        for model, solution in row.items():
            if isinstance(solution, dict):
                score = reward([QUESTION], [solution["solution"]])[0]
                if score != solution["is_correct"]:
                    found.append({"model": model, "score": score, "reference": reference, "end": solution["solution"][-60:]})
    return found
