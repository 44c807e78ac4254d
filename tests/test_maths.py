"""Worked solutions are scored by their final answer: which one it is, and what it equals as mathematics."""

import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest

from plumbline.checking.algebra import Algebra
from plumbline.checking.maths import MathReward
from plumbline.checking.references import References
from plumbline.checking.solutions import final_answer
from plumbline.rewards.reward import WeightedSum, outcomes

QUESTION = [{"role": "user", "content": "How many?"}]


ANSWERS = {
    text: Fraction(number)
    for text, number in [
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
        ("정답 : 12개, 3번", "12"),
        ("#### Step 3: add\n5 + 7 = 12", "12"),  # a heading
    ]
}


def test_the_final_answer_is_the_number_after_the_last_mark_or_the_last_number() -> None:
    assert {text: final_answer(text) for text in ANSWERS} == ANSWERS


def test_a_mark_without_a_number_after_it_is_not_an_answer_whatever_comes_before() -> None:
    texts = ["", "I do not know.", "#### many", "#### ", "3 apples\n#### none", "#### 1/0", f"#### {'9' * 100}"]
    assert [text for text in texts if final_answer(text) is not None] == []


def maths(answer: str, algebra: Algebra | None = None) -> MathReward:
    return MathReward(References([{"prompt": QUESTION, "answer": answer}], "answer"), algebra)


def test_numbers_are_compared_as_numbers_and_outcomes_counted() -> None:
    reward = maths("1234.5")
    assert reward([QUESTION] * 4, ["#### 1,234.50", "#### 2469/2", "#### 1234", "none"]) == [1.0, 1.0, 0.0, 0.0]
    assert outcomes(WeightedSum([(1.0, reward)])) == {"verifier_missing": 1, "verifier_right": 2, "verifier_wrong": 1}


def test_listing_every_number_does_not_help() -> None:
    assert maths("7")([QUESTION], [" ".join(map(str, range(20)))]) == [0.0]


def test_a_prompt_without_a_reference_is_an_error_and_never_a_score() -> None:
    with pytest.raises(ValueError, match=r"expected a reference .*'Another\?'"):
        maths("7")([[{"role": "user", "content": "Another?"}]], ["7"])
    with pytest.raises(ValueError, match=r"kind: math: .*found 'seven'"):
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
    ("10^{-7}", "#### 0.0"),  # the same
    (r"\sqrt{2}", "#### 1.41421356"),
    (r"\sqrt{2}", r"\boxed{\sqrt{2}+10^{-20}}"),
    ("2+3t", "#### 5"),  # Math-Verify alone takes a trailing t for a unit
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
    algebra = Algebra(seconds=60.0)  # none of these may time out on a slow machine
    right = [(answer, text) for answer, text in EQUAL + DIFFERENT if maths(answer, algebra)([QUESTION], [text]) == [1.0]]
    assert right == EQUAL


def test_a_number_followed_by_prose_is_that_number() -> None:
    assert maths("12")([QUESTION] * 2, ["A: 12 (that is, 3 + 9)", r"\boxed{12 (that is, 3 + 9)}"]) == [1.0, 0.0]


HOSTILE = [
    "9^{9^{9^{9}}}", "(x+1)^{100000}", r"\sum_{n=1}^{10^{9}} \frac{1}{n^3}", "(" * 300 + "x" + ")" * 300, "(" * 20 + "x" + ")" * 20, "(" * 20,
    "x" * 5000, "1+" * 180 + "1", "\\", "\x00", r"\frac{", r"\text{__import__('os').system('x')}", "__import__('os').system('x')",
]  # fmt: skip


def test_hostile_answers_are_failures_in_bounded_time_in_any_thread() -> None:
    """Three of them would take SymPy for ever; none may take the parent with it, or the right answer at the end."""
    reward = maths("x+1")
    reward.algebra.seconds = 0.2
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda text: reward([QUESTION], [rf"\boxed{{{text}}}"])[0], [*HOSTILE, "1+x"]))
    assert scores == [0.0] * len(HOSTILE) + [1.0]
    assert time.monotonic() - started < 300
    counts = outcomes(reward)
    assert counts["verifier_timeout"] >= 2
    assert counts["verifier_unreadable"] >= 5
    assert counts["verifier_right"] == 1


def test_a_child_that_something_else_kills_is_replaced() -> None:
    algebra = Algebra(seconds=60.0)
    assert algebra.outcome("x+1", "1+x") == "right"
    assert algebra.child
    algebra.child.kill()
    algebra.child.wait()
    assert algebra.outcome("x+1", "1+x") == "right"
