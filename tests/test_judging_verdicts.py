"""Claims about reading a judge's reply: the final line gives the verdict, or there is none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.judging import verdicts
from plumbline.judging.verdicts import (
    PASS_FAIL,
    TIE,
    A,
    B,
    parse_choice,
    parse_ranking,
    parse_rating,
    ranks_of,
    scores_from_ranks,
    win_probability,
)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Verdict: A", A),
        ("A is long, B is right.\nVerdict: B", B),
        ("**Verdict: A**", A),
        ("Final verdict: [[B]].", B),
        ("[[A]]", A),
        ("verdict: Tie\n\n", TIE),
        ("판정: 무승부", TIE),
        ("A", A),
        ('{"reasoning": "Verdict: B", "verdict": "A"}', A),
        ('```json\n{"verdict": "B"}\n```', B),
        ("Preferred: A", A),
    ],
)
def test_a_final_verdict_is_read(reply: str, verdict: str) -> None:
    assert parse_choice(reply) == verdict


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "A is better.",
        "I choose A",
        "Verdict: A\nOn second thoughts I cannot say.",
        "Verdict: A or B",
        "Verdict: C",
        "Verdict:",
        "A B",
        '{"verdict": "A"',
        '{"verdict": "A", "rating": 3}',
        "As an AI I must not judge. Verdict: A would be unfair.",
        '{"verdict": ' + "1" * 5000 + "}",
        '{"verdict": ' + "[" * 100_000,
    ],
)
def test_a_reply_without_a_final_verdict_is_not_guessed(reply: str) -> None:
    assert parse_choice(reply) is None


@pytest.mark.parametrize(
    ("reply", "rating"),
    [("Rating: 10", 10.0), ("so-so\nRating: 7/10", 7.0), ("Rating: 6.5", 6.5), ("Rating: [[3]]", 3.0), ("평점: 4", 4.0),
     ("Rating: 0", None), ("Rating: 11", None), ("Rating: 3/5", None), ("Rating: 8 or 9", None), ("Rating: ten", None),
     ("I give it 7 points", None), ("Rating: -3", None)],
)  # fmt: skip
def test_ratings_are_numbers_on_the_scale_or_nothing(reply: str, rating: float | None) -> None:
    assert parse_rating(reply) == rating


@pytest.mark.parametrize(
    ("reply", "ranks"),
    [("Ranking: 2 > 1 > 3", (2, 1, 3)), ("Ranking: 3>1=2", (2.5, 2.5, 1)), ("Ranking: 1 = 2 = 3", (2, 2, 2)),
     ("Ranking: 2 > 1", None), ("Ranking: 1 > 2 > 2", None), ("Ranking: 1, 2, 3", None), ("Ranking: 1 > 2 > 4", None),
     ("Ranking: 1 2 > 3", None), ("Ranking: 1 > 2 > " + "3" * 5000, None)],
)  # fmt: skip
def test_rankings_name_every_answer_once(reply: str, ranks: tuple[float, ...] | None) -> None:
    assert parse_ranking(reply, 3) == ranks


@settings(deadline=None)
@given(st.permutations(range(1, 6)))
def test_a_strict_ranking_is_read_back(order: list[int]) -> None:
    ranks = parse_ranking("Ranking: " + " > ".join(map(str, order)), 5)
    assert ranks is not None
    assert [ranks[name - 1] for name in order] == [1, 2, 3, 4, 5]
    assert sum(scores_from_ranks(ranks)) == pytest.approx(2.5)


def test_a_line_that_would_take_long_to_match_is_not_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def fullmatch(self, line: str) -> None:
            raise AssertionError(f"a line of {len(line)} characters was matched, which takes the square of that")

    monkeypatch.setattr(verdicts, "FINAL", Slow())
    assert parse_choice("Verdict: " + ") " * verdicts.LONGEST_LINE + "x") is None


@settings(deadline=None)
@given(st.text())
def test_a_parser_reads_any_text_without_an_error(text: str) -> None:
    assert parse_choice(text) in (None, A, B, TIE)
    rating = parse_rating(text)
    assert rating is None or 1 <= rating <= 10
    parse_ranking(text, 3)
    parse_choice(text, PASS_FAIL)


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert ranks_of([0.5, 0.1, 0.5, 0.9]) == (2.5, 1.0, 2.5, 4.0)
    assert scores_from_ranks(ranks_of([0.5, 0.1, 0.5, 0.9])) == [0.5, 1.0, 0.5, 0.0]


def test_a_tie_counts_one_half_to_each_answer_in_a_probability() -> None:
    logprobs = {"A": -1.0, " A": -1.0, "tie": -1.0, "a": 0.0}  # of P(A) : P(tie) = 2 : 1
    assert win_probability(logprobs) == pytest.approx(5 / 6)
    assert win_probability({"A": -1.0}, "B", "A") == 0.0
    assert win_probability({"x": 0.0}) is None
