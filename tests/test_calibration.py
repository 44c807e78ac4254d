"""Claims about how often the judge and the reward of an evaluation agree with what is known."""

from dataclasses import replace

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
    ours = [replace(one, reward=reward) for one, reward in zip(scores(GOLDS), [3.0, 1.0, 1.0, 2.0], strict=True)]
    interval, pairs = agreements(ours, scores(AGAINST))["reward_agreement"]
    assert interval is not None
    assert (interval.value, pairs) == (0.5, 2)


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
