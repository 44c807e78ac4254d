"""Claims about agreement: by final numbers if both texts have one, else by words, and only with finished completions."""

import pytest

from plumbline.labelling.agreement import agreement, agreement_scores, read

ALL = [True] * 4


def agree(first: str, second: str) -> float:
    return agreement(read(first), read(second))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("2 + 3 = 5", "The answer is 5.", 1.0),  # other words, the same number
        ("2 + 3 = 5", "2 + 3 = 6", 0.0),  # nearly the same words, another number
        ("It costs $1,234.50", "\\boxed{2469/2}", 1.0),
        ("5, not 7. Answer: 5", "It is 5", 1.0),  # the number after the mark
        ("정답: 12개", "그래서 12입니다", 1.0),
        ("정답: 12개", "그래서 13입니다", 0.0),
        ("The cat sat.", "the cat, sat!", 1.0),
        ("The cat sat", "The dog sat", 2 / 3),  # P = R = 2/3
        ("Paris", "It is Paris", 1 / 2),  # P = 1, R = 1/3
        ("yes yes yes", "yes", 1 / 2),  # a word counts as often as it is used: P = 1/3, R = 1
        ("Paris", "London", 0.0),
        ("It is 5", "It is five", 2 / 3),  # only one has a number, so words decide
        ("서울은 한국의 수도입니다.", "한국의 수도는 서울입니다.", 1 / 3),  # one word of three: particles are part of words
        ("서울입니다", "서울입니다.", 1.0),
        ("\u1109\u1165\u110b\u116e\u11af", "서울", 1.0),  # in jamo and in syllables
        ("", "", 1.0),
        ("", "Paris", 0.0),
        ("...", "", 1.0),  # punctuation is not a word
    ],
)
def test_agreement_by_hand(first: str, second: str, expected: float) -> None:
    assert agree(first, second) == pytest.approx(expected)
    assert agree(second, first) == agree(first, second)


def test_a_score_is_the_mean_agreement_with_the_others_not_with_itself() -> None:
    """`It is 5` and `5` agree with one of three others each, `7` and `eight` with none."""
    assert agreement_scores(["It is 5", "5", "7", "eight"], ALL) == [1 / 3, 1 / 3, 0.0, 0.0]
    assert agreement_scores(["a b", "a b", "a c"], ALL[:3]) == [0.75, 0.75, 0.5]


def test_equal_texts_score_alike_in_whatever_order_they_come() -> None:
    texts = ["a b c", "b c d e", "c d", "a", "e f g b"]
    scores = dict(zip(texts, agreement_scores(texts, [True] * 5), strict=True))
    for shift in range(5):
        moved = texts[shift:] + texts[:shift]
        assert dict(zip(moved, agreement_scores(moved, [True] * 5), strict=True)) == scores


def test_a_completion_that_was_cut_off_is_scored_but_scores_no_other() -> None:
    texts = ["5", "7", "7", "7"]
    assert agreement_scores(texts, ALL) == [0.0, 2 / 3, 2 / 3, 2 / 3]
    assert agreement_scores(texts, [True, True, False, False]) == [0.0, 0.0, 1 / 2, 1 / 2]
    assert agreement_scores(texts, [True, False, False, False]) == [None, 0.0, 0.0, 0.0]


def test_a_single_completion_has_no_score() -> None:
    assert agreement_scores(["5"], [True]) == [None]
    assert agreement_scores([], []) == []
