"""Claims about programs in answers: one that passes the tests of its prompt is a right answer, in accuracy and in pass@k."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_answer import section
from test_evaluate import NO_JUDGE, answer_rows, answer_with, answered, figures_of  # noqa: F401

from plumbline import consistency
from plumbline.checking import program_runs
from plumbline.checking.code import verdicts_on
from plumbline.checking.program_runs import NOT_RUN, Programs, outcome_figures, outcomes
from plumbline.checking.sandbox import Limits, SandboxUnavailable, Verdict
from plumbline.data.schema import FilesData, Role, Source
from plumbline.evaluation.scoring import RightAnswers, stated_values
from plumbline.pipeline.composing import CONF, conf_values, problems
from stages.evaluate import EvaluateStage, run
from tests.test_sandbox import needs_bubblewrap

RIGHT = "Here it is:\n```python\ndef double(x):\n    return 2 * x\n```"
WRONG, BROKEN = RIGHT.replace("2 * x", "x"), RIGHT.replace("return", "retrun")
TESTS = ["assert double(1) == 2", "assert double(4) == 8"]
TRUSTED = Programs("bubblewrap", Limits(seconds=60.0))


@pytest.fixture
def unboxed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Runs the programs of these tests in this process, for machines without a sandbox; the pairs of program and tests that ran."""
    ran: list[tuple[str, str]] = []

    def run_here(source: str, tests: str, limits: Limits, isolation: str) -> Verdict:
        assert (limits, isolation) == (TRUSTED.limits, TRUSTED.isolation)
        ran.append((source, tests))
        names: dict[str, Any] = {}
        try:
            exec(source, names)
            exec(tests, names)
        except AssertionError:
            return Verdict("wrong", "", 0.0)
        except SyntaxError:
            return Verdict("error", "", 0.0)
        return Verdict("passed", "", 0.0)

    monkeypatch.setattr("plumbline.checking.code.run_tests", run_here)
    monkeypatch.setattr(program_runs, "_require_once", lambda isolation: None)
    return ran


@pytest.mark.parametrize("share", [1, 3])
def test_a_worker_runs_as_many_programs_at_once_as_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch, share: int) -> None:
    running, peaks = [], []

    def run_slowly(source: str, tests: str, limits: Limits, isolation: str) -> Verdict:
        running.append(source)
        time.sleep(0.1)
        peaks.append(len(running))
        running.remove(source)
        return Verdict("passed", "", 0.1)

    monkeypatch.setattr("plumbline.checking.code.run_tests", run_slowly)
    monkeypatch.setenv("PLUMBLINE_WORKER_CORES", str(share))
    verdicts_on([f"```python\n{number}\n```" for number in range(9)], [TESTS] * 9, TRUSTED.limits, TRUSTED.isolation)
    assert max(peaks) == share


def test_only_answers_to_prompts_with_tests_run_and_equal_programs_run_once(unboxed: list[tuple[str, str]]) -> None:
    rows: list[dict[str, Any]] = [{"tests": TESTS}, {}, {"tests": TESTS}, {"tests": TESTS}, {"tests": []}, {"tests": TESTS}]
    ended = outcomes(rows, [RIGHT, RIGHT, WRONG, BROKEN, RIGHT, RIGHT], TRUSTED)
    assert ended == ["passed", None, "wrong", "error", None, "passed"]
    assert len(unboxed) == 3
    assert {tests for _, tests in unboxed} == {"\n".join(TESTS)}
    figures = outcome_figures(ended)
    assert figures == {
        "programs_passed": 2,
        "programs_wrong": 1,
        "programs_error": 1,
        "programs_crashed": 0,
        "programs_timeout": 0,
    }
    assert outcome_figures([None, None]) == {}


def test_no_program_runs_if_none_is_to_or_if_no_prompt_has_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("no program may run")

    monkeypatch.setattr("plumbline.checking.code.run_tests", refuse)
    monkeypatch.setattr(program_runs, "_require_once", refuse)
    assert outcomes([{"tests": TESTS}], [RIGHT], Programs(NOT_RUN)) == [None]
    assert outcomes([{"answer": "7"}], [RIGHT], TRUSTED) == [None]


def test_tests_say_more_than_an_answer_beside_them() -> None:
    row = {"answer": "7", "tests": TESTS}
    assert stated_values(row, "It is 7.", RightAnswers(), "wrong")["verifiable"] == 0.0
    assert stated_values(row, "It is 8.", RightAnswers(), "passed")["correct"] == 1.0
    assert stated_values(row, "It is 7.", RightAnswers(), None)["verifiable"] == 1.0


def evaluating(programs: Programs) -> EvaluateStage:
    return EvaluateStage(seed=3, threads=1, policy="dpo", programs=programs, evaluate=section(), judge=NO_JUDGE)


def with_programs(said: Callable[[str, int, int], str]) -> None:
    """Both policies' answers: `said` of the policy, the number of the prompt, and the index of the answer."""
    for policy in ("sft", "dpo"):
        rows = [
            row
            | {"tests": TESTS, "completion": [{"role": "assistant", "content": said(policy, int(row["id"][1]), row["index"])}]}
            for row in answer_rows(policy)
        ]
        answer_with(policy, rows)


def said(policy: str, prompt: int, index: int) -> str:
    """Of 3 prompts with 2 answers each, `dpo` is right twice, once and never, and `sft` once on the first prompt alone."""
    right = (2, 1, 0)[prompt] if policy == "dpo" else (1, 0, 0)[prompt]
    return RIGHT if index < right else WRONG


def test_programs_give_accuracy_its_gain_and_pass_at_k(answered: Path, unboxed: list[tuple[str, str]]) -> None:  # noqa: F811
    with_programs(said)
    run(evaluating(TRUSTED))
    figures = figures_of(answered, "dpo")
    assert [figures[key] for key in ("accuracy", "accuracy_n", "accuracy_gain")] == [0.5, 3, pytest.approx(1 / 3, abs=1e-6)]
    assert figures["pass_at_2"] == pytest.approx(2 / 3, abs=1e-6)  # Chen et al., Eq. 1: the mean of 1, 1 and 0
    for key in ("accuracy", "accuracy_gain", "pass_at_2"):
        assert figures[f"{key}_low"] < figures[key] < figures[f"{key}_high"]
    assert (figures["programs_passed"], figures["programs_wrong"]) == (3, 3)


def test_programs_that_are_not_run_say_nothing(answered: Path) -> None:  # noqa: F811
    with_programs(said)
    run(evaluating(Programs(NOT_RUN)))
    figures = figures_of(answered, "dpo")
    assert (figures["accuracy"], figures["accuracy_n"]) == (None, 0)
    assert not [key for key in figures if key.startswith(("pass_at_", "programs_"))]


@needs_bubblewrap
def test_programs_run_in_the_sandbox(tmp_path: Path) -> None:
    theft = RIGHT.replace("return 2 * x", f"open({str(tmp_path / 'stolen')!r}, 'w'); return 2 * x")
    ended = outcomes([{"tests": TESTS}] * 3, [RIGHT, WRONG, theft], TRUSTED)
    assert ended[:2] == ["passed", "wrong"]
    assert ended[2] != "passed"
    assert not (tmp_path / "stolen").exists()


def test_a_sandbox_that_does_not_work_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    program_runs._require_once.cache_clear()
    with pytest.raises(SandboxUnavailable, match="expected the command `bwrap`, found none"):
        outcomes([{"tests": TESTS}], [RIGHT], Programs("bubblewrap"))


def test_values_that_do_not_fit_are_named() -> None:
    config = evaluating(Programs("docker", Limits(seconds=0.0)))
    found = problems(config)
    assert any("isolation: expected one of none, bubblewrap, rlimits, found 'docker'" in one for one in found)
    assert any("limits.seconds: expected above 0, found 0.0" in one for one in found)
    assert conf_values(CONF / "evaluate.yaml")["programs"]["isolation"] == "bubblewrap"


@pytest.mark.parametrize(
    "settings", [{"format": "mbpp"}, {"format": "humaneval"}, {"fields": {"prompt": "question", "tests": "checks"}}]
)
def test_check_says_that_this_machine_has_no_sandbox_for_answers(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def errors(isolation: str, into: str = "test", **changes: Any) -> list[str]:
        data = FilesData(prompts=Role([Source(name="code", files=["code.jsonl"], licence="MIT", into=into, **changes)]))
        configs = {
            ("prepare", None): SimpleNamespace(data=data),
            ("evaluate", "dpo"): SimpleNamespace(programs=Programs(isolation)),
        }
        return [*consistency.without_sandbox_for_answers(configs, {"evaluate": {"split": "test"}})]

    monkeypatch.setenv("PATH", "")
    (error,) = errors("bubblewrap", **settings)
    assert error.startswith("conf/evaluate.yaml: programs.isolation: bubblewrap: expected the command `bwrap`, found none.")
    assert "`isolation: none`" in error
    assert "code" in error
    assert errors("none", **settings) == errors("bubblewrap", into="train", **settings) == errors("bubblewrap") == []
