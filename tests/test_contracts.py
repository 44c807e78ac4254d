"""What we rely on of TRL, on batches of a few tokens whose losses are derived by hand. If an upgrade changes a number, a test here names it.

Under the policy P and the reference Q of tests/bigram.py, with log-ratio h = log P/Q:

    chosen    "a b <|end|>"    P = 1/2 · 1/2 · 1/2    Q = 1/4 · 1/2 · 1/2    h = ln 2     3 tokens
    rejected  "c <|end|>"      P = 1/8 · 1/4          Q = 1/4 · 1/4          h = −ln 2    2 tokens
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bigram import POLICY, REFERENCE, SIZE, TOKENIZER, WIDTH, Table, bigram, logp, save_bigram, weights
from datasets import Dataset
from test_methods import config_of, says
from test_reward_model import entry
from transformers import LlamaConfig, LlamaForSequenceClassification
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from stages.models.chat import END, completion_ids, encode_preferences, prompt_ids
from stages.models.groups import group_arguments
from stages.models.training import trainer_arguments

LN2 = math.log(2)
H_CHOSEN, H_REJECTED, CHOSEN_TOKENS, REJECTED_TOKENS = LN2, -LN2, 3, 2
DELTA = H_CHOSEN - H_REJECTED

PROMPT = [{"role": "user", "content": "q"}]
OTHER = [{"role": "user", "content": "r"}]
CHOSEN, REJECTED = says("a b"), says("c")
PAIR = {"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED}
TIE = {"prompt": OTHER, "chosen": REJECTED, "rejected": CHOSEN}  # the same pair the other way round


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def arguments(method: str, tmp_path: Path, rows: int) -> dict[str, Any]:
    return trainer_arguments(config_of(method, batch_size=rows, micro_batch_size=rows), tmp_path, seed=1)


def dpo_loss(tmp_path: Path, pairs: Sequence[Any] = (PAIR,), reference: Table = REFERENCE, **changes: Any) -> float:
    data = Dataset.from_list(list(pairs))
    trainer = DPOTrainer(
        model=bigram(POLICY),
        ref_model=bigram(reference),
        args=DPOConfig(
            **arguments("dpo", tmp_path, len(pairs)),
            **{"max_length": None, "beta": 0.5, "precompute_ref_log_probs": True} | changes,
        ),
        train_dataset=data,
        eval_dataset=data,
        processing_class=TOKENIZER,
    )
    return float(trainer.evaluate()["eval_loss"])


def test_the_bigram_model_is_its_table() -> None:
    model, ids = bigram(POLICY), torch.tensor([[3, 5, 6, 7]])
    found = model(ids).logits.log_softmax(-1)[0]
    expected = [[logp(POLICY, int(before), token) for token in range(SIZE)] for before in ids[0]]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)
    chosen = completion_ids(TOKENIZER, PROMPT, CHOSEN)
    start = prompt_ids(TOKENIZER, PROMPT)[-1]
    assert sequence_logp(POLICY, start, chosen) == pytest.approx(-3 * LN2)
    assert sequence_logp(POLICY, start, completion_ids(TOKENIZER, PROMPT, REJECTED)) == pytest.approx(-5 * LN2)
    assert sequence_logp(REFERENCE, start, chosen) == pytest.approx(-4 * LN2)


def sequence_logp(table: Table, start: int, tokens: Sequence[int]) -> float:
    return sum(logp(table, before, token) for before, token in zip([start, *tokens], tokens, strict=False))


def test_sft_is_the_mean_over_completion_tokens_of_a_batch(tmp_path: Path) -> None:
    data = Dataset.from_list([{"prompt": PROMPT, "completion": CHOSEN}, {"prompt": PROMPT, "completion": REJECTED}])
    args = SFTConfig(**arguments("sft", tmp_path, 2), max_length=None, completion_only_loss=True)
    trainer = SFTTrainer(model=bigram(POLICY), args=args, train_dataset=data, eval_dataset=data, processing_class=TOKENIZER)
    assert trainer.evaluate()["eval_loss"] == pytest.approx((3 + 5) * LN2 / 5, rel=1e-5)


# At β = ½, βΔ = ln 2, so σ(βΔ) = 2/3. EPSILON is the label smoothing.
BETA, EPSILON, TAU = 0.5, 0.1, 0.05
DPO_LOSSES = {
    "sigmoid": math.log(3 / 2),  # −ln σ(βΔ) = −ln 2/3; 0.405465
    "hinge": 1 - LN2,  # max(0, 1 − βΔ); 0.306853
    "ipo": (LN2 / 3 + LN2 / 2 - 1) ** 2,  # (h/3 − h/2 − 1/2β)², log-ratios as means over tokens; 0.178405
    "exo_pair": 2 / 3 * math.log((2 / 3) / 0.9) + 1 / 3 * math.log((1 / 3) / 0.1),  # KL((2/3, 1/3) ‖ (1 − ε, ε))
    "nca_pair": -log_sigmoid(BETA * H_CHOSEN) - log_sigmoid(-BETA * H_CHOSEN) / 2 - log_sigmoid(-BETA * H_REJECTED) / 2,
    "robust": (0.9 * math.log(3 / 2) - 0.1 * math.log(3)) / 0.8,  # of −ln σ(±βΔ) = ln 3/2, ln 3
    "bco_pair": -log_sigmoid(BETA * H_CHOSEN) - log_sigmoid(-BETA * H_REJECTED),
    "sppo_hard": 2 * (LN2 - 1) ** 2,  # (h − 1)² + (h + 1)² at 1/2β = 1
    "apo_zero": 2 * (1 - sigmoid(LN2 / 2)),  # 1 − σ(βh_w) + σ(βh_l)
    "apo_down": sigmoid(LN2 / 2) + 1 / 3,  # σ(βh_w) + 1 − σ(βΔ)
    "discopop": math.log(3 / 2) * (1 - sigmoid(LN2 / TAU)) + 1 / 2 * sigmoid(LN2 / TAU),  # exp(−βΔ) = 1/2
    "sigmoid_norm": -log_sigmoid(BETA * (LN2 / 3 + LN2 / 2)),  # log-ratios as means over tokens
    "sft": LN2,  # mean over the chosen tokens: each has probability 1/2
}  # fmt: skip


@pytest.mark.parametrize("loss", DPO_LOSSES)
def test_dpo_loss(tmp_path: Path, loss: str) -> None:
    smoothing = EPSILON if loss in ("exo_pair", "robust") else 0.0
    found = dpo_loss(tmp_path, loss_type=[loss], label_smoothing=smoothing, discopop_tau=TAU)
    assert found == pytest.approx(DPO_LOSSES[loss], rel=1e-5)


def test_dpo_ignores_label_smoothing_with_the_sigmoid_loss(tmp_path: Path) -> None:
    """Which is why our config refuses it there."""
    assert dpo_loss(tmp_path, loss_type=["sigmoid"], label_smoothing=0.1) == pytest.approx(DPO_LOSSES["sigmoid"], rel=1e-5)


def test_dpo_losses_are_added_with_their_weights(tmp_path: Path) -> None:
    weights = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}
    found = dpo_loss(tmp_path, loss_type=list(weights), loss_weights=list(weights.values()))
    assert found == pytest.approx(sum(weight * DPO_LOSSES[name] for name, weight in weights.items()), rel=1e-5)


def test_aot_sorts_the_log_ratios_of_policy_and_reference_apart(tmp_path: Path) -> None:
    """chosen − rejected: under P −3 ln 2 + 5 ln 2 = 2 ln 2 and, the other way round, −2 ln 2; under Q 0 and 0."""
    expected = sum(0.9 * -log_sigmoid(BETA * delta) + 0.1 * -log_sigmoid(-BETA * delta) for delta in (-2 * LN2, 2 * LN2)) / 2
    found = dpo_loss(tmp_path, (PAIR, TIE), loss_type=["aot"], label_smoothing=0.1)
    assert found == pytest.approx(expected, rel=1e-5)
    unpaired = dpo_loss(tmp_path, (PAIR, TIE), loss_type=["aot_unpaired"])  # h of both sides is −ln 2, ln 2: no difference
    assert unpaired == pytest.approx(LN2, rel=1e-5)


@pytest.mark.parametrize(
    ("divergence", "chosen", "rejected"),
    [  # f′(t) at t = P/Q = 2 and 1/2
        ("forward_kl", 1 - 1 / 2, 1 - 2),
        ("js_divergence", math.log(4 / 3), math.log(2 / 3)),
        ("alpha_divergence", 2 - math.sqrt(2), 2 - 2 * math.sqrt(2)),  # (1 − t^−½) / ½ at α = ½
    ],
)
def test_dpo_with_another_divergence(tmp_path: Path, divergence: str, chosen: float, rejected: float) -> None:
    found = dpo_loss(tmp_path, loss_type=["sigmoid"], f_divergence_type=divergence, f_alpha_divergence_coef=0.5)
    assert found == pytest.approx(-log_sigmoid(BETA * (chosen - rejected)), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_dpo_weighs_the_tokens_by_which_a_completion_is_longer(tmp_path: Path, alpha: float) -> None:
    """With Q(<|end|> | b) = 1/4 the chosen completion's third token, beyond the rejected one's length, has log-ratio ln 2 as well."""
    reference = REFERENCE | {"b": {END: 8, "a": 12, "b": 4}}
    found = dpo_loss(tmp_path, reference=reference, ld_alpha=alpha)
    assert found == pytest.approx(-log_sigmoid(BETA * (LN2 + alpha * LN2 + LN2)), rel=1e-5)


def test_dpo_weighting_is_by_the_policys_likelihood(tmp_path: Path) -> None:
    """WPO, Eq. 2: exp of the mean over tokens of log p − log Σ p², for both completions."""

    def weight(tokens: Sequence[int]) -> float:
        terms = []
        for before, token in zip([prompt_ids(TOKENIZER, PROMPT)[-1], *tokens], tokens, strict=False):
            row = weights(POLICY, before)
            terms.append(logp(POLICY, before, token) - math.log(sum((w / sum(row)) ** 2 for w in row)))
        return math.exp(sum(terms) / len(terms))

    both = weight(completion_ids(TOKENIZER, PROMPT, CHOSEN)) * weight(completion_ids(TOKENIZER, PROMPT, REJECTED))
    assert dpo_loss(tmp_path, use_weighting=True) == pytest.approx(both * DPO_LOSSES["sigmoid"], rel=1e-5)


def kto_trainer(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> KTOTrainer:
    data = Dataset.from_list(rows)
    return KTOTrainer(
        model=bigram(POLICY),
        ref_model=bigram(REFERENCE),
        args=KTOConfig(
            **arguments("kto", tmp_path, len(rows)),
            **{"max_length": None, "beta": 1.5, "precompute_ref_log_probs": True} | changes,
        ),
        train_dataset=data,
        eval_dataset=data,
        processing_class=TOKENIZER,
    )


GOOD, BAD = ({"prompt": PROMPT, "completion": CHOSEN, "label": True}, {"prompt": OTHER, "completion": REJECTED, "label": False})


def test_kto_loss(tmp_path: Path) -> None:
    """z = (ln 2 + ln 2 − ln 2) / 3. Good: 1 − σ(β·⅔ ln 2) = 1 − σ(ln 2) = 1/3. Bad: 1 − σ(β·4/3 ln 2) = 1 − σ(2 ln 2) = 1/5."""
    trainer = kto_trainer(tmp_path, [GOOD, GOOD, BAD], undesirable_weight=2.0)
    evaluation = trainer.evaluate()
    assert evaluation["eval_loss"] == pytest.approx((1 / 3 + 1 / 3 + 2 / 5) / 3, rel=1e-5)
    assert evaluation["eval_kl"] == pytest.approx(LN2 / 3, rel=1e-5)


def test_kto_takes_a_negative_kl_for_zero(tmp_path: Path) -> None:
    """z = max(0, (ln 2 − 2 ln 2) / 3) = 0. Good: 1 − σ(β ln 2); bad the same."""
    found = kto_trainer(tmp_path, [GOOD, BAD, BAD]).evaluate()["eval_loss"]
    assert found == pytest.approx(1 - sigmoid(1.5 * LN2), rel=1e-5)


def test_kto_estimates_kl_from_the_completion_of_the_row_before(tmp_path: Path) -> None:
    rows = kto_trainer(tmp_path, [GOOD, BAD, BAD | {"completion": says("b")}]).train_dataset
    assert rows["KL_completion_ids"][:] == [rows["completion_ids"][i - 1] for i in range(3)]


def test_kto_without_a_reference_point(tmp_path: Path) -> None:
    """apo_zero_unpaired: 1 − σ(βh) and σ(βh)."""
    found = kto_trainer(tmp_path, [GOOD, BAD, BAD], loss_type="apo_zero_unpaired").evaluate()["eval_loss"]
    assert found == pytest.approx((1 - sigmoid(1.5 * LN2) + 2 * sigmoid(-1.5 * LN2)) / 3, rel=1e-5)


def test_orpo_loss(tmp_path: Path) -> None:
    """Geometric means of P: 1/2 and 2^−5/2, of odds 1 and 1 / (2^5/2 − 1). SFT loss over prompt and completion: three tokens of 1/11 each
    (after <|user|>, q and <|end|>, whose rows are uniform), three of 1/2."""
    data = Dataset.from_list([PAIR])
    args = ORPOConfig(**arguments("orpo", tmp_path, 1), remove_unused_columns=False, max_length=1 << 30, beta=0.25)
    trainer = ORPOTrainer(model=bigram(POLICY), args=args, train_dataset=data, eval_dataset=data, processing_class=TOKENIZER)
    evaluation = trainer.evaluate()
    log_odds_ratio = math.log(2**2.5 - 1)
    assert evaluation["eval_log_odds_chosen"] == pytest.approx(log_odds_ratio, rel=1e-5)
    assert evaluation["eval_nll_loss"] == pytest.approx((3 * math.log(11) + 3 * LN2) / 6, rel=1e-5)
    expected = (3 * math.log(11) + 3 * LN2) / 6 - 0.25 * log_sigmoid(log_odds_ratio)
    assert evaluation["eval_loss"] == pytest.approx(expected, rel=1e-5)


# ---- rewards ---------------------------------------------------------------------------------------------------------------

SCORES = {"a": 2 * LN2, "b": LN2, "c": 0.0, "d": -LN2, "q": 7 * LN2, "r": -9 * LN2, END: 3 * LN2}


def scorer() -> LlamaForSequenceClassification:
    """A classifier that reads SCORES at the last token alone: what stands before it, and padding, is worth something else."""
    config = LlamaConfig.from_dict(bigram(POLICY).config.to_dict() | {"num_labels": 1})
    model = LlamaForSequenceClassification(config).eval()
    model.model.load_state_dict(bigram(POLICY).model.state_dict())
    values = [SCORES.get(token, 20.0) for token in TOKENIZER.convert_ids_to_tokens(list(range(SIZE)))]
    model.score.weight.data = torch.tensor([values + [0.0] * (WIDTH - SIZE)]) / math.sqrt(WIDTH)  # RMSNorm scales by √width
    return model


def reward_trainer(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> RewardTrainer:
    """With the arguments of stages/reward.py, on rows that are tokenised."""
    data = Dataset.from_list(rows)
    settings = entry(batch_size=len(rows), micro_batch_size=len(rows))
    args = RewardConfig(
        **trainer_arguments(settings, tmp_path, 1), **{"max_length": None, "center_rewards_coefficient": None} | changes
    )
    return RewardTrainer(model=scorer(), args=args, train_dataset=data, eval_dataset=data, processing_class=TOKENIZER)


def compared(chosen: str, rejected: str, **more: float) -> dict[str, Any]:
    chosen_ids, rejected_ids = (TOKENIZER.convert_tokens_to_ids(text.split()) for text in (chosen, rejected))
    return {"chosen_ids": chosen_ids, "rejected_ids": rejected_ids, **more}


# Of different lengths, the longer one chosen, then rejected. Scores at the last tokens: 2 ln 2 against ln 2, −ln 2 against 0.
LONGER, SHORTER = ("q b c d a", "q b"), ("q d", "q a b r c")


@pytest.mark.parametrize(
    ("margins", "centring", "expected"),
    [
        (None, None, (math.log(3 / 2) + math.log(3)) / 2),  # −ln σ(±ln 2) = ln 3/2, ln 3
        ((1.0, 1.0), None, (LN2 + math.log(5)) / 2),  # times ln 2: −ln σ(0) = ln 2, −ln σ(−2 ln 2) = ln 5
        (None, 0.1, (math.log(3 / 2) + math.log(3)) / 2 + 0.1 * (9 + 1) / 2 * LN2**2),  # sums of scores: 3 ln 2, −ln 2
        ((1.0, 0.0), 0.1, (LN2 + math.log(3)) / 2 + 0.1 * 5 * LN2**2),
    ],
)
def test_reward_loss(tmp_path: Path, margins: tuple[float, float] | None, centring: float | None, expected: float) -> None:
    rows = [
        compared(*pair, **({} if margins is None else {"margin": margins[place] * LN2}))
        for place, pair in enumerate((LONGER, SHORTER))
    ]
    evaluation = reward_trainer(tmp_path, rows, center_rewards_coefficient=centring).evaluate()
    assert evaluation["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert evaluation["eval_min_reward"] == pytest.approx(-LN2, rel=1e-5)  # read at the last real token, wherever padding begins
    assert evaluation["eval_max_reward"] == pytest.approx(2 * LN2, rel=1e-5)
    assert evaluation["eval_margin"] == pytest.approx(0.0, abs=1e-6)
    assert evaluation["eval_accuracy"] == 0.5


def test_a_reward_is_trained_on_our_own_tokens_and_read_at_the_end_of_turn(tmp_path: Path) -> None:
    """TRL takes rows that are tokenised as they are, margin included, and every one of ours ends in the token of 3 ln 2."""
    rows = encode_preferences(TOKENIZER, [PAIR | {"margin": LN2}, TIE | {"margin": 0.0}])
    trainer = reward_trainer(tmp_path, rows)
    assert [dict(row) for row in trainer.train_dataset] == rows
    evaluation = trainer.evaluate()
    assert evaluation["eval_min_reward"] == evaluation["eval_max_reward"] == pytest.approx(3 * LN2, rel=1e-5)
    assert evaluation["eval_loss"] == pytest.approx((math.log(3) + LN2) / 2, rel=1e-5)  # −ln σ(0 − ln 2), −ln σ(0)


def test_a_step_of_a_reward_model_weighs_a_pair_by_how_wrong_it_is(tmp_path: Path) -> None:
    """dL/dr = −(1 − σ(Δ)) / n for the chosen, the other way round for the rejected: 1/3 and 2/3 of one half, by plain gradient descent."""
    rows = [compared(*LONGER), compared(*SHORTER)]
    plain = {
        "optim": "sgd",
        "max_steps": 1,
        "learning_rate": 1.0,
        "max_grad_norm": 1e9,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    data = Dataset.from_list(rows)
    arguments_of = trainer_arguments(entry(batch_size=2, micro_batch_size=2), tmp_path, 1) | plain
    model = scorer()
    model.model.requires_grad_(False)
    before = model.score.weight.detach().double().clone()
    trainer = RewardTrainer(
        model=model, args=RewardConfig(**arguments_of, max_length=None), train_dataset=data, processing_class=TOKENIZER
    )
    trainer.train()
    change = (model.score.weight.detach().double() - before)[0] / math.sqrt(WIDTH)
    expected = dict.fromkeys(range(WIDTH), 0.0)
    for token, moved in {"a": 1 / 6, "b": -1 / 6, "d": 1 / 3, "c": -1 / 3}.items():
        expected[TOKENIZER.convert_tokens_to_ids(token)] = moved
    assert change.tolist() == pytest.approx([*expected.values()], abs=1e-5)


# ---- groups ---------------------------------------------------------------------------------------------------------------


def group_trainer(tmp_path: Path, method: str, reward: Any = None, **changes: Any) -> Any:
    """A trainer of P with Q as reference, by our own arguments."""
    cls, args = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[method]
    config = replace(config_of(method), num_generations=4, rollout_batch_size=8, batch_size=8, micro_batch_size=8, beta=0.1,
                     max_new_tokens=5, weight_decay=0.0, max_grad_norm=1e9, schedule="constant", warmup_fraction=0.0, learning_rate=1.0)  # fmt: skip
    model = bigram(POLICY)
    model.name_or_path = model.config._name_or_path = str(save_bigram(REFERENCE, tmp_path / "reference"))
    return cls(
        model=model,
        reward_funcs=[reward or (lambda completions, **_: [0.0] * len(completions))],
        args=args(**group_arguments(config, tmp_path / "checkpoints", 1, 1) | {"optim": "sgd"} | changes),
        train_dataset=Dataset.from_list([{"prompt": PROMPT}, {"prompt": OTHER}]),
        processing_class=TOKENIZER,
    )


def group_batch() -> dict[str, torch.Tensor]:
    """The chosen completion with advantage 1 and the rejected with −1, sampled by Q: ratios 2, 1, 1 and ½, 1."""
    start = prompt_ids(TOKENIZER, PROMPT)
    completions = [completion_ids(TOKENIZER, PROMPT, text) for text in (CHOSEN, REJECTED)]
    sampled = [[logp(REFERENCE, b, t) for b, t in zip([start[-1], *tokens], tokens, strict=False)] for tokens in completions]
    width = max(map(len, completions))
    return {
        "prompt_ids": torch.tensor([start] * 2),
        "prompt_mask": torch.ones(2, len(start), dtype=torch.long),
        "completion_ids": torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in completions]),
        "completion_mask": torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in completions]),
        "advantages": torch.tensor([1.0, -1.0]),
        "num_items_in_batch": torch.tensor(5),
        "old_per_token_logps": torch.tensor([logps + [0.0] * (width - len(logps)) for logps in sampled]),
        "ref_per_token_logps": torch.tensor([logps + [0.0] * (width - len(logps)) for logps in sampled]),
        "old_logps": torch.tensor([sum(logps) for logps in sampled]),
    }


# Clipped at ε = 0.2: −(1.2 + 1 + 1) for the chosen, 0.8 + 1 for the rejected. k3 = q/p − ln q/p − 1 of the first tokens, else 0.
POLICY_CHOSEN, POLICY_REJECTED = -3.2, 1.8
KL_CHOSEN, KL_REJECTED = LN2 - 1 / 2, 1 - LN2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss_type": "grpo"}, ((POLICY_CHOSEN + 0.1 * KL_CHOSEN) / 3 + (POLICY_REJECTED + 0.1 * KL_REJECTED) / 2) / 2),
        ({"loss_type": "dapo"}, (POLICY_CHOSEN + POLICY_REJECTED + 0.1 * (KL_CHOSEN + KL_REJECTED)) / 5),
        ({"loss_type": "bnpo"}, (POLICY_CHOSEN + POLICY_REJECTED + 0.1 * (KL_CHOSEN + KL_REJECTED)) / 5),
        ({"loss_type": "dr_grpo"}, (POLICY_CHOSEN + POLICY_REJECTED + 0.1 * (KL_CHOSEN + KL_REJECTED)) / (2 * 5)),
        # a ratio for each answer: 2^⅓ → 1.2 and 2^−½ → 0.8
        ({"loss_type": "grpo", "importance_sampling_level": "sequence"},
         (-1.2 + 0.1 * KL_CHOSEN / 3 + 0.8 + 0.1 * KL_REJECTED / 2) / 2),
        # the KL times the unclipped ratio
        ({"loss_type": "grpo", "use_bias_correction_kl": True},
         ((POLICY_CHOSEN + 0.1 * 2 * KL_CHOSEN) / 3 + (POLICY_REJECTED + 0.1 * KL_REJECTED / 2) / 2) / 2),
        # the upper bound alone
        ({"loss_type": "grpo", "epsilon_high": 0.5, "beta": 0.0}, (-3.5 / 3 + POLICY_REJECTED / 2) / 2),
    ],
)  # fmt: skip
def test_grpo_loss(tmp_path: Path, changes: dict[str, Any], expected: float) -> None:
    trainer = group_trainer(tmp_path, "grpo", **{"use_bias_correction_kl": False} | changes)
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, group_batch()).item() == pytest.approx(expected, rel=1e-5)


def test_rloo_loss(tmp_path: Path) -> None:
    """One ratio for each answer, 2 and ½, clipped: −(1.2 − 0.8) / 2."""
    trainer = group_trainer(tmp_path, "rloo")
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, group_batch()).item() == pytest.approx(-0.2, rel=1e-5)


class Recorder:
    """A reward of one point for each `a` and a tenth for each token; remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.texts: list[str] = []

    def __call__(self, prompts: Any, completions: Any, completion_ids: list[list[int]], **_: Any) -> list[float]:
        self.seen += completion_ids
        self.texts += [completion[0]["content"] for completion in completions]
        return [self.of(ids) for ids in completion_ids]

    def of(self, ids: list[int]) -> float:
        return ids.count(TOKENIZER.convert_tokens_to_ids("a")) + len(ids) / 10


def grpo_weights(rewards: list[float], ids: list[list[int]], start: int) -> list[list[float]]:
    """−dL/d log p of each token: A / (n·length) − β (1 − q/p) / (n·length), A the reward over its group's deviation (n − 1)."""
    rows = []
    for at, tokens in enumerate(ids):
        group = rewards[at // 4 * 4 : at // 4 * 4 + 4]
        mean = sum(group) / 4
        deviation = math.sqrt(sum((value - mean) ** 2 for value in group) / 3)
        advantage = (rewards[at] - mean) / (deviation + 1e-4)
        pairs = zip([start, *tokens], tokens, strict=False)
        slopes = [1 - math.exp(logp(REFERENCE, b, t) - logp(POLICY, b, t)) for b, t in pairs]
        rows.append([(advantage - 0.1 * slope) / (8 * len(tokens)) for slope in slopes])
    return rows


def rloo_weights(rewards: list[float], ids: list[list[int]], start: int) -> list[list[float]]:
    """−dL/d log p of each token: (R − mean of the other three R) / n, with R the reward less β times the answer's log-ratio."""
    ratios = [sequence_logp(POLICY, start, tokens) - sequence_logp(REFERENCE, start, tokens) for tokens in ids]
    totals = [reward - 0.1 * ratio for reward, ratio in zip(rewards, ratios, strict=True)]
    rows = []
    for at, tokens in enumerate(ids):
        group = totals[at // 4 * 4 : at // 4 * 4 + 4]
        rows.append([(totals[at] - (sum(group) - totals[at]) / 3) / 8] * len(tokens))
    return rows


@pytest.mark.parametrize(("method", "weights_of"), [("grpo", grpo_weights), ("rloo", rloo_weights)])
def test_a_step_moves_the_policy_as_its_formula_says(tmp_path: Path, method: str, weights_of: Any) -> None:
    """From sampling to update: groups, advantages, KL, and the gradient of a table of logits, which is one-hot − P."""
    reward = Recorder()
    changes = {"loss_type": "grpo", "use_bias_correction_kl": False} if method == "grpo" else {}
    trainer = group_trainer(tmp_path, method, reward, **changes)
    before = trainer.model.lm_head.weight.detach().double().clone()
    trainer.train()
    change = trainer.model.lm_head.weight.detach().double() - before

    start = prompt_ids(TOKENIZER, PROMPT)[-1]
    rewards = [reward.of(ids) for ids in reward.seen]
    assert len(set(rewards)) > 2
    expected = torch.zeros(SIZE, WIDTH, dtype=torch.float64)
    for ids, token_weights in zip(reward.seen, weights_of(rewards, reward.seen, start), strict=True):
        for prev, token, weight in zip([start, *ids], ids, token_weights, strict=False):
            row = torch.tensor(weights(POLICY, prev), dtype=torch.float64)
            expected[:, prev] += weight * math.sqrt(WIDTH) * (torch.eye(SIZE, dtype=torch.float64)[token] - row / row.sum())
    assert expected.abs().max() > 0.01
    assert torch.allclose(change, expected, atol=2e-6)
    ends = [TOKENIZER.decode(ids, skip_special_tokens=True) for ids in reward.seen]
    assert reward.texts == ends


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "orpo", "grpo", "rloo"])
def test_nothing_is_left_to_trls_own_defaults_of_precision_and_memory(tmp_path: Path, method: str) -> None:
    args = {"sft": SFTConfig, "dpo": DPOConfig, "kto": KTOConfig, "orpo": ORPOConfig, "grpo": GRPOConfig, "rloo": RLOOConfig}[
        method
    ]
    for value in (False, True):
        config = config_of(method, gradient_checkpointing=value, **({"batch_size": 8} if method in ("grpo", "rloo") else {}))
        made = args(**trainer_arguments(config, tmp_path, 1) | ({"eval_strategy": "no"} if method in ("grpo", "rloo") else {}))
        assert made.bf16 is False
        assert made.gradient_checkpointing is made.activation_checkpointing is value
