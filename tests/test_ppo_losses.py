"""The mathematics of PPO, compared with tables by hand, brute force, exact enumeration and formulae in float64."""

import math

import pytest
import torch

from plumbline.methods.online.ppo.guard import diagnose, require_finite
from plumbline.methods.online.ppo.losses import (
    clipped_surrogate,
    clipped_value_loss,
    entropies,
    explained_variance,
    generalised_advantages,
    kl_k1,
    kl_k3,
    learning_rate_factor,
    token_rewards,
    whiten,
)
from plumbline.methods.online.ppo.shaping import KlController, RunningMoments, shape_scores
from plumbline.models.logps import per_token_logps

MASK = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
REWARDS = torch.tensor([[0.1, -0.2, 1.0], [0.3, 0.7, 0.0], [2.0, 0.0, 0.0]], dtype=torch.float64)
VALUES = torch.tensor([[0.5, 0.4, 0.2], [-0.1, 0.6, 0.0], [0.9, 0.0, 0.0]], dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------- rewards and advantages


def brute_force_advantages(gamma: float, lam: float) -> list[list[float]]:
    """A_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ V_{t+1} − V_t, V = 0 after the last token (Eq. 16, arXiv:1506.02438)."""
    rows = []
    for rewards, values, mask in zip(REWARDS.tolist(), VALUES.tolist(), MASK.tolist(), strict=True):
        length = sum(mask)
        values = [*values[:length], 0.0]
        delta = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(length)]
        row = [sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, length)) for t in range(length)]
        rows.append(row + [0.0] * (3 - length))
    return rows


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_gae_is_the_brute_force_sum(gamma: float, lam: float) -> None:
    targets = generalised_advantages(REWARDS, VALUES, MASK, gamma, lam)
    expected = torch.tensor(brute_force_advantages(gamma, lam), dtype=torch.float64)
    torch.testing.assert_close(targets.advantages, expected)
    torch.testing.assert_close(targets.returns, torch.where(MASK, expected + VALUES, 0.0))


def test_gae_of_two_tokens_by_hand() -> None:
    # δ = [0.3 + 0.9·0.6 − (−0.1), 0.7 − 0.6] = [0.94, 0.1];  A = [0.94 + 0.9·0.5·0.1, 0.1]
    advantages = generalised_advantages(REWARDS, VALUES, MASK, 0.9, 0.5).advantages
    assert advantages[1].tolist() == pytest.approx([0.985, 0.1, 0.0])


def test_at_lambda_1_the_return_is_the_sum_of_rewards_to_come() -> None:
    returns = generalised_advantages(REWARDS, VALUES, MASK, 1.0, 1.0).returns
    assert returns[0].tolist() == pytest.approx([0.9, 0.8, 1.0])


def test_nothing_after_the_end_of_turn_contributes() -> None:
    garbage = torch.where(MASK, 0.0, 1e6)
    clean = generalised_advantages(REWARDS, VALUES, MASK, 1.0, 0.95)
    dirty = generalised_advantages(REWARDS + garbage, VALUES + garbage, MASK, 1.0, 0.95)
    assert torch.equal(clean.advantages, dirty.advantages)
    assert torch.equal(clean.returns, dirty.returns)
    assert torch.equal(whiten(VALUES, MASK), whiten(VALUES + garbage, MASK))
    scores = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert torch.equal(token_rewards(VALUES, scores, MASK, 0.1), token_rewards(VALUES + garbage, scores, MASK, 0.1))


def test_token_rewards_by_hand() -> None:
    log_ratio = torch.tensor([[0.5, -1.0, 2.0], [1.0, 3.0, 0.0], [-2.0, 0.0, 0.0]])
    rewards = token_rewards(log_ratio, torch.tensor([10.0, 20.0, 30.0]), MASK, beta=0.1)
    expected = torch.tensor([[-0.05, 0.1, 9.8], [-0.1, 19.7, 0.0], [30.2, 0.0, 0.0]])  # the score on the last token only
    torch.testing.assert_close(rewards, expected)


def test_whitened_advantages_have_mean_0_and_variance_1_over_unmasked_tokens() -> None:
    whitened = whiten(VALUES, MASK)
    assert float(whitened[MASK].mean()) == pytest.approx(0, abs=1e-9)
    assert float(whitened[MASK].var(correction=0)) == pytest.approx(1, abs=1e-6)
    assert whitened[~MASK].tolist() == [0, 0, 0]
    assert (whitened[MASK].argsort() == VALUES[MASK].argsort()).all()


# ------------------------------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize(
    ("advantage", "log_ratio", "clipped"),
    [
        (2.0, 0.1, False),
        (2.0, 0.5, True),  # ratio above 1 + ε, and it would rise further: no gradient
        (2.0, -0.5, False),  # below 1 − ε, but it should rise: gradient
        (-3.0, 0.5, False),
        (-3.0, -0.5, True),
        (-3.0, -0.1, False),
    ],
)
def test_surrogate_and_its_gradient_are_the_formula(advantage: float, log_ratio: float, clipped: bool) -> None:
    old = torch.tensor([-1.3], dtype=torch.float64)
    logps = (old + log_ratio).requires_grad_()
    surrogate = clipped_surrogate(logps, old, torch.tensor([advantage], dtype=torch.float64), 0.2)
    surrogate.loss.sum().backward()
    ratio = math.exp(log_ratio)
    limit = 1.2 if advantage > 0 else 0.8
    assert surrogate.loss.item() == pytest.approx(-advantage * (limit if clipped else ratio))
    assert float(logps.grad) == pytest.approx(0.0 if clipped else -advantage * ratio)  # d(−A e^x)/dx
    assert bool(surrogate.clipped) == clipped
    assert float(surrogate.ratio) == pytest.approx(ratio)


def test_surrogate_gradient_agrees_with_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    logps, old, advantages = (torch.randn(20, generator=generator, dtype=torch.float64) * 0.3 for _ in range(3))
    logps.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: clipped_surrogate(x, old, advantages, 0.2).loss, (logps,))


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "gradient"),
    [
        (1.0, 0.9, 2.0, 0.5, -1.0),  # within the range: v − R
        (1.5, 1.0, 2.0, 0.32, 0.0),  # towards R, beyond the range: clipped to 1.2, (1.2 − 2)²/2, no gradient
        (0.5, 1.0, 2.0, 1.125, -1.5),  # away from R: the plain loss is the larger
        (3.0, 1.0, 2.0, 0.5, 1.0),  # past R: the error at 1.2 would be 0.32, the plain one is larger
    ],
)
def test_value_loss_and_its_gradient_are_the_formula(
    value: float, old: float, target: float, loss: float, gradient: float
) -> None:
    values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    result = clipped_value_loss(values, torch.tensor([old]).double(), torch.tensor([target]).double(), 0.2)
    result.loss.sum().backward()
    assert result.loss.item() == pytest.approx(loss)
    assert float(values.grad) == pytest.approx(gradient)
    assert bool(result.clipped) == (gradient == 0.0)


def test_per_token_logps_and_entropy_against_the_definition() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    probabilities = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in logits.tolist()]
    logps = per_token_logps(logits, torch.tensor([2, 0]))
    assert logps.tolist() == pytest.approx([math.log(probabilities[0][2]), math.log(1 / 3)], abs=1e-6)
    expected = [-sum(p * math.log(p) for p in row) for row in probabilities]
    assert entropies(logits).tolist() == pytest.approx(expected, abs=1e-6)


# -------------------------------------------------------------------------------------------------------------------- KL


def test_kl_estimators_are_unbiased_for_the_kl_from_policy_to_reference() -> None:
    policy = torch.tensor([0.7, 0.2, 0.05, 0.05], dtype=torch.float64)
    reference = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    log_ratio = policy.log() - reference.log()
    exact = sum(p * math.log(p / q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True))
    reverse = sum(q * math.log(q / p) for p, q in zip(policy.tolist(), reference.tolist(), strict=True))
    assert exact > 0
    assert abs(exact - reverse) > 0.02
    assert float((policy * kl_k1(log_ratio)).sum()) == pytest.approx(exact)  # expectation by enumeration
    assert float((policy * kl_k3(log_ratio)).sum()) == pytest.approx(exact)
    assert bool((kl_k3(log_ratio) >= 0).all())
    assert bool((kl_k1(log_ratio) < 0).any())


def test_adaptive_controller_follows_the_papers_path() -> None:
    controller = KlController(beta=0.2, target=6.0, gain=0.1)
    path = []
    for kl in (12.0, 6.6, 6.0, 3.0, 0.0):
        controller.update(kl)
        path.append(controller.beta)
    # errors clipped to ±0.2: +0.2, +0.1, 0, −0.2, −0.2
    assert path == pytest.approx([0.204, 0.20604, 0.20604, 0.2019192, 0.197880816])


def test_fixed_controller_stays() -> None:
    controller = KlController(beta=0.2)
    controller.update(100.0)
    assert controller.beta == 0.2


# -------------------------------------------------------------------------------------------------------------------- scores


def test_the_missing_eos_penalty_applies_to_unfinished_completions_only() -> None:
    scores = shape_scores([1.0, 1.0], [True, False], moments=None, clip=None, missing_eos_penalty=2.5)
    assert scores == [1.0, -1.5]


def test_the_missing_eos_penalty_survives_clipping() -> None:
    assert shape_scores([9.0, 9.0], [True, False], moments=None, clip=1.0, missing_eos_penalty=2.5) == [1.0, -1.5]


def test_clipping_is_symmetric() -> None:
    assert shape_scores([9.0, -9.0, 0.5], [True] * 3, moments=None, clip=1.0, missing_eos_penalty=0) == [1.0, -1.0, 0.5]


def test_running_moments_are_those_of_all_values_so_far() -> None:
    batches = [[1.0, 5.0, -2.0], [100.0], [3.5, 3.5, 0.0, 7.0]]
    moments = RunningMoments()
    for batch in batches:
        moments.update(batch)
    values = torch.tensor([value for batch in batches for value in batch], dtype=torch.float64)
    assert moments.count == 8
    assert moments.mean == pytest.approx(float(values.mean()))
    assert moments.std == pytest.approx(float(values.std(correction=0)))
    assert shape_scores([moments.mean + moments.std], [True], moments=moments, clip=None, missing_eos_penalty=0) == pytest.approx(
        [1.0]
    )


def test_a_constant_reward_is_normalised_to_0() -> None:
    moments = RunningMoments()
    moments.update([2.0, 2.0])
    assert shape_scores([2.0], [True], moments=moments, clip=None, missing_eos_penalty=0) == [0.0]


# ------------------------------------------------------------------------------------------------- schedules, figures, guard


def test_learning_rate_warms_up_and_decays() -> None:
    linear = [learning_rate_factor(step, 10, "linear", 0.2) for step in range(10)]
    assert linear == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    cosine = [learning_rate_factor(step, 4, "cosine", 0.0) for step in range(4)]
    assert cosine == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)])
    assert [learning_rate_factor(step, 4, "constant", 0.0) for step in range(4)] == [1.0] * 4


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="linaer"):
        learning_rate_factor(5, 10, "linaer", 0.0)


def test_explained_variance_is_1_for_the_returns_and_0_for_a_constant() -> None:
    returns = torch.tensor([1.0, 2.0, 4.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((3,), 7.0), returns) == pytest.approx(0.0)
    assert explained_variance(-returns, returns) < 0


def history(entropy: float, kl: float, reward: float) -> list[dict[str, float]]:
    start = {"reward": 0.0, "entropy": 2.0, "kl_k1": 0.5}
    return [start] * 5 + [{"reward": reward, "entropy": entropy, "kl_k1": kl}] * 5


@pytest.mark.parametrize(
    ("entropy", "kl", "reward", "kinds"),
    [
        (2.0, 0.5, 1.0, set()),
        (0.1, 0.5, 1.0, {"entropy"}),
        (2.0, 50.0, 1.0, {"kl"}),
        (0.1, 50.0, 1.0, {"entropy", "kl"}),
        (0.1, 50.0, -1.0, set()),  # the reward does not rise, so nobody is misled
    ],
)
def test_the_guard_warns_if_the_reward_rises_while_entropy_collapses_or_kl_explodes(
    entropy: float, kl: float, reward: float, kinds: set[str]
) -> None:
    warnings = diagnose(history(entropy, kl, reward), entropy_fraction=0.25, kl_limit=20)
    assert set(warnings) == kinds
    assert all("Raise beta" in message for message in warnings.values())


def test_the_guard_waits_for_enough_steps() -> None:
    assert diagnose(history(0.1, 50.0, 1.0)[:9], entropy_fraction=0.25, kl_limit=20) == {}


def test_a_number_that_is_not_finite_is_named_with_its_place() -> None:
    require_finite({"value_loss": 1.0}, "step 3")
    with pytest.raises(FloatingPointError, match=r"step 3, epoch 1: expected a finite value_loss, found nan"):
        require_finite({"policy_loss": 1.0, "value_loss": math.nan}, "step 3, epoch 1")
