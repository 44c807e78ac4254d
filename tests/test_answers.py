"""Maths: which answers are right, by kind; each kind is one that was once scored wrongly without a word."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from plumbline.checking.algebra import Algebra
from plumbline.checking.maths import MathReward
from plumbline.checking.references import References
from tests.mathematical import cases
from tests.shared import CASES


def table() -> Iterator[tuple[str, str, str, str]]:
    """The kind, verdict, reference and completion of each line in answers.tsv."""
    kind = ""
    for line in (Path(__file__).parent / "answers.tsv").read_text(encoding="utf-8").split("\n"):
        if line.startswith("## "):
            kind = line[3:]
        elif line and not line.startswith("#"):
            verdict, reference, completion = line.split("\t")
            yield kind, verdict, reference, completion.replace("⏎", "\n")


@pytest.fixture(scope="module")
def reward() -> MathReward:
    return MathReward(References([], "answer"), Algebra(seconds=60.0))


def verdict_on(reward: MathReward, reference: str, completion: str) -> str:
    try:
        return str(int(reward.outcome(reference, completion) == "right"))
    except ValueError:
        return "R"


def test_every_kind_of_answer_is_scored_as_a_reader_would(reward: MathReward) -> None:
    wrong = [row for row in table() if verdict_on(reward, row[2], row[3]) != row[1]]
    assert wrong == []


def test_answers_in_the_style_of_math_are_never_confused(reward: MathReward) -> None:
    made = cases(540, seed=17)
    assert {case.kind for case in made if case.right} == {case.kind for case in made if not case.right}
    assert [case for case in made if (verdict_on(reward, case.reference, case.completion) == "1") != case.right] == []


def test_marks_that_are_not_chosen_do_not_hide_an_answer() -> None:
    text = "<think>The answer is 72.</think> It is 71."
    chosen = MathReward(References([], "answer"), reasoning="bracketed seed")
    assert chosen.outcome("72", text) == "right"
    assert MathReward(References([], "answer"), reasoning="think").outcome("72", text) == "wrong"
    assert MathReward(References([], "answer"), reasoning="none").outcome("72", text) == "right"


def test_a_refusal_names_the_reference_and_says_how_to_write_it(reward: MathReward) -> None:
    with pytest.raises(ValueError, match=r"one way only, found '20 25' for 'How many.*write `20, 25` or `2025`"):
        reward.outcome("20 25", "#### 20", "How many?")


def test_recorded_cases_are_scored_as_they_should_be(reward: MathReward) -> None:
    path = CASES / "maths.jsonl"
    if not path.is_file():
        pytest.skip("no recorded cases at hand")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row for row in rows if verdict_on(reward, row["reference"], row["completion"]) != str(int(row["right"]))] == []
