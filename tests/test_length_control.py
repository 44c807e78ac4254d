"""Claims about the length-controlled win rate: by hand, against scikit-learn, against AlpacaEval's own way, and for a policy that pads."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from plumbline.evaluation.length_control import comparisons, fit, length_controlled
from plumbline.evaluation.statistics import Floats, fraction_interval
from tests.simulated import flat, golds, ids


def rate(wins: Floats, differences: Floats) -> float:
    """Without an interval."""
    interval = length_controlled(flat(wins), flat(differences), ids(*wins.shape), seed=1, resamples=2)
    assert interval is not None
    return interval.value


def drawn(seed: int, n: int, samples: int, length_effect: float, padding: float = 0.0) -> tuple[Floats, Floats, Floats]:
    """Wins, differences of length, and difficulties."""
    generator = np.random.default_rng(seed)
    difficulty = generator.normal(0, 1, (n, 1))
    differences = generator.normal(padding, 60, (n, samples))
    chance = expit(0.2 + length_effect * np.tanh(differences / differences.std(ddof=1)) + difficulty)
    return (generator.random((2, n, samples)) < chance).mean(0), differences, difficulty


def test_a_case_by_hand() -> None:
    """One prompt, one win, lengths equal: θ and γ solve 1 − σ(θ + γ) = θ / 100 = γ, so θ = 100 γ and 1 − σ(101 γ) = γ: γ = 0.033338."""
    gamma = 0.033338
    assert 1 - expit(101 * gamma) == pytest.approx(gamma, abs=1e-5)
    fitted = fit(comparisons([1.0], [0.0], ["a"]), np.ones((1, 1)))
    assert fitted.difficulties[0, 0] == pytest.approx(gamma, abs=1e-5)
    assert fitted.coefficients[0].tolist() == pytest.approx([100 * gamma, 0.0], abs=1e-3)


def test_lengths_are_standardised_as_alpaca_eval_does() -> None:
    """Differences 30, −10 and 40: mean 20, sample deviation √(1400 / 2) = 26.458; not centred."""
    data = comparisons([1.0, 0.0, None, 0.5], [30, -10, 9999, 40], ["a", "a", "b", "c"])
    assert data.counts.tolist() == [[1, 1], [1, 0]]  # a verdict that could not be read is left out
    assert data.lengths[0].tolist() == pytest.approx([np.tanh(30 / 26.4575), np.tanh(-10 / 26.4575)], abs=1e-5)
    assert data.wins.tolist() == [[1.0, 0.0], [0.5, 0.0]]


def test_the_fit_is_scikit_learns() -> None:
    """Its penalty is the same for all coefficients: columns ten times as large have a prior a hundred times as wide."""
    wins, differences, _ = drawn(1, 40, 3, 1.0)
    lengths = np.tanh(differences / differences.std(ddof=1))
    one_hot = np.kron(np.eye(40), np.ones((3, 1)))
    columns = np.column_stack([np.full(120, 10.0), 10 * lengths.ravel(), one_hot])
    model = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10, max_iter=10_000)
    y = wins.ravel()
    model.fit(np.vstack([columns, columns]), np.repeat([1, 0], 120), sample_weight=np.concatenate([y, 1 - y]))
    columns[:, 1] = 0.0
    assert rate(wins, differences) == pytest.approx(float(model.predict_proba(columns)[:, 1].mean()), abs=1e-4)
    fitted = fit(comparisons(flat(wins), flat(differences), ids(40, 3)), np.ones((1, 40)))
    assert fitted.coefficients[0].tolist() == pytest.approx((10 * model.coef_[0, :2]).tolist(), abs=1e-3)


def alpaca_eval(wins: Floats, differences: Floats, difficulty: Floats) -> float:
    """AlpacaEval's procedure (`length_controlled_noreg`), which knows the difficulty: an L1 penalty, each row once as a win and once as a loss."""
    lengths = np.tanh(differences / differences.std(ddof=1)).ravel()
    known = np.repeat(difficulty.ravel(), wins.shape[1])
    columns = np.column_stack([lengths, known, np.ones_like(lengths)])
    model = LogisticRegression(l1_ratio=1.0, C=100, solver="liblinear", fit_intercept=False, random_state=123)
    y = wins.ravel()
    model.fit(np.vstack([columns, columns]), np.repeat([1, 0], len(y)), sample_weight=np.concatenate([y, 1 - y]))
    columns[:, 0] = 0.0
    return float(model.predict_proba(columns)[:, 1].mean())


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("length_effect", [0.0, 1.0, 2.0])
def test_it_agrees_with_alpaca_evals_procedure_which_is_told_the_difficulties(samples: int, length_effect: float) -> None:
    """Of 800 prompts, within a point on average, and two in each case; both are uncertain by about 1.5."""
    apart = []
    for seed in range(8):
        wins, differences, difficulty = drawn(seed, 800, samples, length_effect, padding=40)
        apart.append(rate(wins, differences) - alpaca_eval(wins, differences, difficulty))
    assert np.abs(apart).max() < 0.02
    assert abs(np.mean(apart)) < 0.005


def test_without_a_difference_of_length_it_is_the_win_rate() -> None:
    wins, *_ = drawn(3, 300, 2, 0.0)
    assert rate(wins, np.zeros_like(wins)) == pytest.approx(float(wins.mean()), abs=1e-4)


def test_swapping_the_sides_turns_it_round() -> None:
    wins, differences, _ = drawn(4, 100, 2, 1.5, padding=30)
    assert rate(1 - wins, -differences) == pytest.approx(1 - rate(wins, differences), abs=1e-6)


def test_a_policy_that_pads_its_answers_gains_less_by_it_than_in_the_raw_rate() -> None:
    """The same answers, judged by a judge who likes length, before and after most of them got one to three closing sentences of 40 characters."""
    generator = np.random.default_rng(7)
    quality = generator.normal(0, 1, (600, 1))
    plain = generator.normal(0, 40, (600, 2))
    padded = plain + 40 * generator.integers(0, 4, (600, 2))

    def judged(differences: Floats) -> Floats:
        return (generator.random((2, 600, 2)) < expit(quality + 1.5 * np.tanh(differences / 60))).mean(0)

    before, after = judged(plain), judged(padded)
    raw = after.mean() - before.mean()
    controlled = rate(after, padded) - rate(before, plain)
    assert raw > 0.15
    assert abs(controlled) < raw / 3


def test_a_judge_who_does_not_look_at_length_is_not_corrected() -> None:
    generator = np.random.default_rng(8)
    wins = np.where(golds(generator, 800) > golds(generator, 800), 1.0, 0.0)
    differences = generator.normal(80, 60, wins.shape)
    interval = length_controlled(flat(wins), flat(differences), ids(800), seed=1, resamples=200)
    assert interval is not None
    assert interval.low < wins.mean() < interval.high


def test_without_verdicts_there_is_none_and_the_same_seed_gives_the_same_interval() -> None:
    assert length_controlled([None, None], [1, 2], ["a", "b"], seed=1) is None
    wins, differences, _ = drawn(9, 30, 2, 1.0)
    once, again, other = (
        length_controlled(flat(wins), flat(differences), ids(30), seed=seed, resamples=200) for seed in (1, 1, 2)
    )
    assert once == again != other


def test_a_prompt_that_is_drawn_twice_counts_as_two_prompts() -> None:
    wins, differences, _ = drawn(10, 20, 2, 1.0)
    weights = np.random.default_rng(1).integers(0, 3, 20)
    repeated = np.repeat(np.arange(20), weights)
    scale = differences.std(ddof=1)
    once = fit(comparisons(flat(wins), flat(differences), ids(20)), weights[None].astype(float))
    data = comparisons(flat(wins[repeated]), flat(differences[repeated]), ids(len(repeated)))
    twice = fit(data._replace(lengths=np.tanh(differences[repeated] / scale)), np.ones((1, len(repeated))))
    assert once.coefficients == pytest.approx(twice.coefficients, abs=1e-6)


def test_verdicts_that_are_all_alike_have_the_win_rates_interval() -> None:
    for win in (0.0, 0.5, 1.0):
        wins = np.full((50, 2), win)
        interval = length_controlled(flat(wins), flat(drawn(11, 50, 2, 1.0)[1]), ids(50), seed=1)
        assert interval == fraction_interval(flat(wins), ids(50))


def test_hardly_any_wins_and_lengths_that_explain_every_verdict_can_be_fitted() -> None:
    _, differences, _ = drawn(11, 50, 2, 1.0)
    one_win = np.zeros_like(differences)
    one_win[0, 0] = 1.0
    assert 0 < rate(one_win, differences) < 0.05
    explained = (differences > 0).astype(float)
    assert 0.3 < rate(explained, differences) < 0.7
