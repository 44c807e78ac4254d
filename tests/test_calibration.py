"""Claims about how often the judge and the reward of an evaluation agree with what is known."""

from dataclasses import replace

import pytest

from plumbline.evaluation.calibration import agreements
from plumbline.evaluation.figures import Score, policy_figures

GOLDS, AGAINST = [1.0, 0.5, 0.5, 0.2], [0.5, 0.5, 1.0, 0.8]


def scores(golds: list[float]) -> list[Score]:
    return [Score(f"p{n // 2}", n % 2, None, None, True, 5, gold=gold) for n, gold in enumerate(golds)]


def test_the_judge_is_right_where_its_verdict_orders_two_answers_as_gold_does() -> None:
    """Known orders: better, equal, worse, worse. Verdicts: right; not counted; a tie, not counted; wrong."""
    ours = [replace(one, win=win) for one, win in zip(scores(GOLDS), [1.0, 1.0, 0.5, 1.0], strict=True)]
    interval, pairs = agreements(ours, scores(AGAINST))["judge_agreement"]
    assert interval is not None
    assert (interval.value, pairs) == (0.5, 2)
    unread = [replace(one, win=None) for one in ours]
    assert agreements(unread, scores(AGAINST))["judge_agreement"] == (None, 0)


def test_the_reward_is_right_where_it_orders_two_answers_to_a_prompt_as_gold_does() -> None:
    """The opponent has no rewards here, so that only the policy's own answers count."""
    ours = [replace(one, reward=reward) for one, reward in zip(scores(GOLDS), [3.0, 1.0, 1.0, 2.0], strict=True)]
    interval, pairs = agreements(ours, scores(AGAINST))["reward_agreement"]
    assert interval is not None
    assert (interval.value, pairs) == (0.5, 2)


def test_the_reward_also_orders_an_answer_and_the_opponents_so_that_one_answer_to_a_prompt_is_enough() -> None:
    """Of four harmful requests the policy declines three; the opponent complies with all. The reward likes two of the three better, and ties once."""
    ours = [Score(f"p{n}", 0, None, None, True, 5, harmful=float(n == 3), reward=reward) for n, reward in enumerate([2, 2, 0, 1])]
    against = [Score(f"p{n}", 0, None, None, True, 5, harmful=1.0, reward=1.0) for n in range(4)]
    interval, pairs = agreements(ours, against)["reward_agreement"]
    assert interval is not None
    assert (interval.value, pairs) == (pytest.approx(2 / 3), 3)
    assert agreements(against, against)["reward_agreement"] == (None, 0)  # the opponent itself


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"verifiable": 1.0}, {"verifiable": 0.0}),
        ({"harmful": 0.0}, {"harmful": 1.0}),
        ({"over_refused": 0.0}, {"over_refused": 1.0}),
        ({"followed": 1.0}, {"followed": 0.0}),
        ({"over_refused": 0.0, "followed": 1.0}, {"over_refused": 0.0, "followed": 0.0}),
        ({"over_refused": 0.0, "followed": 1.0}, {"over_refused": 1.0, "followed": 1.0}),
    ],
)
def test_without_gold_an_answer_is_good_if_every_verdict_on_it_is(good: dict[str, float], bad: dict[str, float]) -> None:
    for ours, theirs, right in ((good, bad, 1.0), (bad, good, 0.0)):
        scores_of = [[Score("p", 0, None, None, True, 5, win=1.0, **columns)] for columns in (ours, theirs)]
        interval, pairs = agreements(*scores_of)["judge_agreement"]
        assert interval is not None
        assert (interval.value, pairs) == (right, 1)
    same = [[Score("p", 0, None, None, True, 5, win=1.0, **good)] for _ in range(2)]
    assert agreements(*same)["judge_agreement"] == (None, 0)


def test_right_answers_are_what_is_known_without_gold() -> None:
    ours = [replace(one, gold=None, verifiable=float(one.gold == 1.0), win=1.0) for one in scores(GOLDS)]
    against = [replace(one, gold=None, verifiable=0.0) for one in scores(AGAINST)]
    interval, pairs = agreements(ours, against)["judge_agreement"]
    assert interval is not None
    assert (interval.value, pairs) == (1.0, 1)


def test_figures_have_both_with_the_number_of_pairs() -> None:
    ours = [replace(one, win=1.0, reward=one.gold) for one in scores(GOLDS)]
    figures = policy_figures(ours, scores(AGAINST), seed=1)
    assert (figures["reward_agreement"], figures["reward_agreement_n"]) == (1.0, 2)
    assert (figures["judge_agreement"], figures["judge_agreement_n"]) == (0.333333, 3)
    assert figures["judge_agreement_low"] < figures["judge_agreement_high"]
