"""Which prompts are the same question: the recorded cases, where they are, and our own. Symbols count, and the way of writing does not."""

import json
import unicodedata
from pathlib import Path

import pytest

from plumbline.data.decontamination import index_prompts, overlapping
from plumbline.data.duplicates import first_of_near, signatures
from plumbline.data.faults import DataError
from plumbline.data.schema import Policy
from plumbline.data.tokens import tokens
from tests.preparing import SHARED, prepare, source, write_rows

CASES = SHARED.parent / "cases/rows/arithmetic_prompts.jsonl"

DIFFERENT = [
    ("12 - 7", "12 * 7"), ("12 - 7", "12 7"), ("-5 + 3", "5 + 3"), ("x - 1", "x + 1"), ("12.7", "12 7"), ("0.5", "5"), (".5", "5"),
    ("(1 + 2) * 3", "1 + 2 * 3"), ("(1 + 2 * 3)", "(1 + 2) * 3"), ("((1+2)*3+4)*5", "(1+2)*3+4*5"), ("2^3", "2*3"), ("2**3", "2*3"),
    ("x²", "x2"), ("2½", "212"), ("x_1", "x1"), ("√9", "9"), ("3 ± 4", "3 + 4"), ("x < y", "x > y"), ("x < y", "x <= y"), ("a = b", "a == b"),
    ("a != b", "a = b"), ("5!", "5"), ("n!", "n"), ("f'(x)", "f(x)"), ("50%", "50"), ("A ∪ B", "A ∩ B"), ("a → b", "a ← b"), ("2:3", "2.3"),
    ("C", "C++"), ("C", "C#"), ("i++", "i--"), ("x && y", "x || y"), ("x & y", "x | y"), ("price * tax", "price / tax"), ("~x", "x"),
    ("£5 + £3", "$5 + $3"), ("5 $ in €", "5 € in $"), ("What does ♠ mean?", "What does ♥ mean?"), ("😀", "😢"), ("5 - 3은?", "5 + 3은?"),
]  # fmt: skip
"""Different questions."""

SAME = [
    ("What's 3+4 ?", "what's 3 + 4"), ("“3 + 4”", "3+4."), ("３＋４", "3+4"), ("12 − 7", "12-7"), ("12 – 7", "12 - 7"), ("3 × 4", "3*4"),
    ("6 ÷ 2", "6/2"), ("x ≤ y", "x <= y"), ("f(x)", "f x"), ("**What** is 3+4?", "What is 3 + 4"), ("- item one", "item one"),
    ("# Title", "title"), ("> quoted", "quoted"), ("What is $3+4$?", r"what is \(3 + 4\)"), ("a well-known fact", "a well known fact"),
    ("Is COVID-19 bad?", "is covid 19 bad"), ("hello (see below)", "hello see below"), ("A) Paris B) Rome", "A. Paris B. Rome"),
    ("don’t", "don't"), ("`foo` bar", "'foo' bar"), ("It is — really — 5", "it is really 5"), ("Acme™ phones", "acme phones"),
    ("안녕하세요?", unicodedata.normalize("NFD", "안녕하세요")), ("café", unicodedata.normalize("NFD", "CAFÉ")), ("한글", "ﾾￂﾤﾡￚﾩ"),
]  # fmt: skip
"""The same question, typeset otherwise."""


def counts_as(prompt: str, other: str) -> bool:
    """Whether a training row that asks `other` overlaps the evaluation prompt `prompt`."""
    return bool(overlapping(index_prompts([prompt], words=8, fraction=0.5), [other], [other])[0])


@pytest.mark.skipif(not CASES.exists(), reason=f"no recorded cases at {CASES.parent}")
def test_no_recorded_question_is_an_overlap_of_another() -> None:
    questions = [json.loads(line)["question"] for line in CASES.read_text(encoding="utf-8").splitlines()]
    assert len(questions) == 12
    assert [(one, two) for one in questions for two in questions if counts_as(one, two) != (one == two)] == []


@pytest.mark.parametrize(("one", "two"), DIFFERENT)
def test_symbols_that_carry_the_meaning_tell_questions_apart(one: str, two: str) -> None:
    assert not counts_as(one, two)
    assert not counts_as(f"Tell me: {one}", f"Tell me: {two}")


@pytest.mark.parametrize(("one", "two"), SAME)
def test_the_way_of_writing_does_not_let_an_evaluation_prompt_slip_through(one: str, two: str) -> None:
    assert tokens(one) == tokens(two)
    assert counts_as(one, two)


def test_a_long_prompt_is_found_in_a_row_that_writes_it_otherwise() -> None:
    prompt = "If a shirt costs $12.50 and a well-known shop takes 20% off, how much are (3 - 1) * 2 shirts “today”?"
    copied = "**If** a shirt costs $12.50, and a well known shop takes 20 % off - how much are (3−1)×2 shirts 'today'?"
    assert counts_as(prompt, f"I was asked this:\n\n> {copied}\n\nWhat now?")


def test_decomposed_rows_are_duplicates_and_overlaps(tmp_path: Path) -> None:
    question = "대한민국의 수도는 어디인가요?"
    decomposed = unicodedata.normalize("NFD", question)
    assert decomposed != question
    rows = [{"prompt": text, "completion": "서울입니다."} for text in (question, decomposed)]
    write_rows(tmp_path / "in/rows.jsonl", rows)
    prepared = prepare(tmp_path, {"sft": [source("rows.jsonl")]})
    assert prepared.dropped("sft") == {"duplicate": 1}
    write_rows(tmp_path / "in/test.jsonl", [{"prompt": question}])
    (tmp_path / "spool/sft").unlink()
    policy = Policy(limits={"default": 1.0, "evaluation_overlap": 1.0})
    roles = {"sft": [source("rows.jsonl")], "prompts": [source("test.jsonl", into="test")]}
    assert prepare(tmp_path, roles, policy).dropped("sft") == {"evaluation_overlap": 2}
    assert [*first_of_near(signatures([question * 3, decomposed * 3]), 0.99)] == [0, 0]


def test_overlaps_beyond_their_share_stop_the_stage_and_name_the_key_that_raises_it(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/test.jsonl", [{"prompt": f"What is {n} + {n}?"} for n in range(20)])
    write_rows(tmp_path / "in/rows.jsonl", [{"prompt": f"What is {n} + {n}?", "completion": str(2 * n)} for n in range(15, 115)])
    roles = {"sft": [source("rows.jsonl")], "prompts": [source("test.jsonl", into="test")]}
    assert prepare(tmp_path, roles, Policy()).dropped("sft") == {"evaluation_overlap": 5}
    write_rows(tmp_path / "in/rows.jsonl", [{"prompt": f"What is {n} + {n}?", "completion": str(2 * n)} for n in range(5, 105)])
    with pytest.raises(
        DataError, match=r"(?s)15 of 100 rows of 'rows.jsonl' dropped as evaluation_overlap.*limit 0\.1 of.*policy\.limits\.eval"
    ):
        prepare(tmp_path, roles, Policy())
    assert prepare(tmp_path, roles, Policy(limits={"evaluation_overlap": 0.2})).dropped("sft") == {"evaluation_overlap": 15}


def test_the_prompts_that_the_data_conf_holds_out_do_not_count_towards_that_share(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {n} + {n}?", "completion": str(2 * n)} for n in range(400)]
    write_rows(tmp_path / "in/rows.jsonl", rows)
    roles = {"sft": [source("rows.jsonl")], "prompts": [source("rows.jsonl")]}
    assert prepare(tmp_path, roles, Policy(), test=0.3).dropped("sft")["evaluation_overlap"] > 0.2 * len(rows)
