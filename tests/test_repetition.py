"""Claims about repetition, and about several attempts at a prompt."""

from itertools import combinations

import numpy as np
import pytest

from plumbline.evaluation.attempts import pass_at_k
from plumbline.evaluation.repetition import distinct, repeated_fraction


def value(texts: list[str], n: int = 2) -> float | None:
    interval = distinct(texts, [str(number) for number in range(len(texts))], n)
    return interval.value if interval else None


def test_distinct_n_is_the_share_of_different_spans_among_all_words() -> None:
    assert value(["a b c", "a b"]) == 0.4  # (a, b) and (b, c), of five words
    assert value(["a a a a"]) == 0.25
    assert value(["a b", "c d"]) == 0.5  # no pair reaches into another answer
    assert value(["a b c", "a b"], 1) == 0.6
    assert value(["a b c", "a b"], 3) == 0.2
    assert value(["", " "]) is None


def test_the_interval_of_distinct_n_leaves_out_one_prompt_with_all_its_answers_at_a_time() -> None:
    generator = np.random.default_rng(1)
    texts = [" ".join(generator.choice([*"abcdefgh"], 6)) for _ in range(40)]
    prompts = [f"p{number // 2}" for number in range(40)]
    interval = distinct(texts, prompts, 2)
    without = [
        value([text for text, prompt in zip(texts, prompts, strict=True) if prompt != left_out])
        for left_out in dict.fromkeys(prompts)
    ]
    error = np.sqrt(19 / 20 * ((np.array(without) - np.mean(without)) ** 2).sum())
    assert interval is not None
    assert interval.n == 20
    assert interval.high - interval.value == pytest.approx(2.093 * error, rel=1e-3)  # t at 19 degrees of freedom


def test_an_answer_repeats_itself_by_spans_of_four_words() -> None:
    assert repeated_fraction("a b c d e") == 0.0
    assert repeated_fraction("a b c d a b c d") == pytest.approx(1 / 5)  # of five spans the last was there before
    assert repeated_fraction("a " * 10) == pytest.approx(6 / 7)
    assert repeated_fraction("a b c") is None


def test_pass_at_k_is_the_mean_over_all_ways_to_draw_k_answers() -> None:
    outcomes = {"a": [1.0, 0.0, 0.0, 0.0], "b": [1.0, 1.0, 0.0, 0.0], "c": [0.0] * 4}
    right = [value for of_prompt in outcomes.values() for value in of_prompt]
    figures = pass_at_k(right, [prompt for prompt in outcomes for _ in range(4)])
    for k in (2, 4):
        expected = np.mean([np.mean([max(drawn) for drawn in combinations(of_prompt, k)]) for of_prompt in outcomes.values()])
        assert figures[k].value == pytest.approx(expected)
    assert [*figures] == [2, 4]
    assert figures[2].value == pytest.approx((1 / 2 + 5 / 6 + 0) / 3)


def test_prompts_with_fewer_answers_and_answers_that_nothing_can_check_are_left_out() -> None:
    assert pass_at_k([1.0, None], ["a", "a"]) == {}
    assert pass_at_k([None, None], ["a", "a"]) == {}
    assert pass_at_k([1.0, 0.0, 0.0], ["a", "a", "b"])[2].n == 1
