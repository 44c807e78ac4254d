"""What we rely on in TRL: losses of pairs and demonstrations, derived by hand for a few tokens (tests/bigram.py).

If an upgrade changes a number, a test here names it.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from aligning import config_of
from bigram import (
    CHOSEN,
    LN2,
    OTHER_PROMPT,
    PAIR,
    POLICY,
    PROMPT,
    REFERENCE,
    REJECTED,
    SIZE,
    SWAPPED,
    TOKENIZER,
    Table,
    bigram,
    logp,
    sequence_logp,
    weights,
)
from datasets import Dataset
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from plumbline.models.chat import END, completion_ids, prompt_ids
from plumbline.models.training import trainer_arguments
from plumbline.rows import assistant

H_CHOSEN, H_REJECTED = LN2, -LN2


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
    logps = model(ids).logits.log_softmax(-1)[0]
    expected = [[logp(POLICY, int(before), token) for token in range(SIZE)] for before in ids[0]]
    assert torch.allclose(logps, torch.tensor(expected), atol=1e-6)
    chosen = completion_ids(TOKENIZER, PROMPT, CHOSEN)
    start = prompt_ids(TOKENIZER, PROMPT)[-1]
    assert sequence_logp(POLICY, start, chosen) == pytest.approx(-3 * LN2)
    assert sequence_logp(POLICY, start, completion_ids(TOKENIZER, PROMPT, REJECTED)) == pytest.approx(-5 * LN2)
    assert sequence_logp(REFERENCE, start, chosen) == pytest.approx(-4 * LN2)


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
    value = dpo_loss(tmp_path, loss_type=[loss], label_smoothing=smoothing, discopop_tau=TAU)
    assert value == pytest.approx(DPO_LOSSES[loss], rel=1e-5)


def test_dpo_ignores_label_smoothing_with_the_sigmoid_loss(tmp_path: Path) -> None:
    """Therefore our config refuses it there."""
    assert dpo_loss(tmp_path, loss_type=["sigmoid"], label_smoothing=0.1) == pytest.approx(DPO_LOSSES["sigmoid"], rel=1e-5)


def test_dpo_losses_are_added_with_their_weights(tmp_path: Path) -> None:
    weights = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}
    value = dpo_loss(tmp_path, loss_type=list(weights), loss_weights=list(weights.values()))
    assert value == pytest.approx(sum(weight * DPO_LOSSES[name] for name, weight in weights.items()), rel=1e-5)


def test_aot_sorts_the_log_ratios_of_policy_and_reference_separately(tmp_path: Path) -> None:
    """chosen − rejected: under P −3 ln 2 + 5 ln 2 = 2 ln 2 and, for the swapped pair, −2 ln 2; under Q 0 and 0."""
    expected = sum(0.9 * -log_sigmoid(BETA * delta) + 0.1 * -log_sigmoid(-BETA * delta) for delta in (-2 * LN2, 2 * LN2)) / 2
    value = dpo_loss(tmp_path, (PAIR, SWAPPED), loss_type=["aot"], label_smoothing=0.1)
    assert value == pytest.approx(expected, rel=1e-5)
    unpaired = dpo_loss(tmp_path, (PAIR, SWAPPED), loss_type=["aot_unpaired"])  # h of both sides is −ln 2, ln 2: no difference
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
    value = dpo_loss(tmp_path, loss_type=["sigmoid"], f_divergence_type=divergence, f_alpha_divergence_coef=0.5)
    assert value == pytest.approx(-log_sigmoid(BETA * (chosen - rejected)), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_dpo_weighs_the_tokens_by_which_a_completion_is_longer(tmp_path: Path, alpha: float) -> None:
    """With Q(<|end|> | b) = 1/4, the chosen completion's third token, which exceeds the rejected one's length, also has log-ratio ln 2."""
    reference = REFERENCE | {"b": {END: 8, "a": 12, "b": 4}}
    value = dpo_loss(tmp_path, reference=reference, ld_alpha=alpha)
    assert value == pytest.approx(-log_sigmoid(BETA * (LN2 + alpha * LN2 + LN2)), rel=1e-5)


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


GOOD, BAD = (
    {"prompt": PROMPT, "completion": CHOSEN, "label": True},
    {"prompt": OTHER_PROMPT, "completion": REJECTED, "label": False},
)


def test_kto_loss(tmp_path: Path) -> None:
    """z = (ln 2 + ln 2 − ln 2) / 3. Good: 1 − σ(β·⅔ ln 2) = 1 − σ(ln 2) = 1/3. Bad: 1 − σ(β·4/3 ln 2) = 1 − σ(2 ln 2) = 1/5."""
    trainer = kto_trainer(tmp_path, [GOOD, GOOD, BAD], undesirable_weight=2.0)
    evaluation = trainer.evaluate()
    assert evaluation["eval_loss"] == pytest.approx((1 / 3 + 1 / 3 + 2 / 5) / 3, rel=1e-5)
    assert evaluation["eval_kl"] == pytest.approx(LN2 / 3, rel=1e-5)


def test_kto_treats_a_negative_kl_as_zero(tmp_path: Path) -> None:
    """z = max(0, (ln 2 − 2 ln 2) / 3) = 0. Good: 1 − σ(β ln 2); bad the same."""
    value = kto_trainer(tmp_path, [GOOD, BAD, BAD]).evaluate()["eval_loss"]
    assert value == pytest.approx(1 - sigmoid(1.5 * LN2), rel=1e-5)


def test_kto_estimates_kl_from_the_completion_of_the_row_before(tmp_path: Path) -> None:
    rows = kto_trainer(tmp_path, [GOOD, BAD, BAD | {"completion": assistant("b")}]).train_dataset
    assert rows["KL_completion_ids"][:] == [rows["completion_ids"][i - 1] for i in range(3)]


def test_kto_without_a_reference_point(tmp_path: Path) -> None:
    """apo_zero_unpaired: 1 − σ(βh) and σ(βh)."""
    value = kto_trainer(tmp_path, [GOOD, BAD, BAD], loss_type="apo_zero_unpaired").evaluate()["eval_loss"]
    assert value == pytest.approx((1 - sigmoid(1.5 * LN2) + 2 * sigmoid(-1.5 * LN2)) / 3, rel=1e-5)


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


CONFIGS = {"sft": SFTConfig, "dpo": DPOConfig, "kto": KTOConfig, "orpo": ORPOConfig, "grpo": GRPOConfig, "rloo": RLOOConfig}


@pytest.mark.parametrize("method", CONFIGS)
def test_nothing_is_left_to_trls_own_defaults_of_precision_and_memory(tmp_path: Path, method: str) -> None:
    for value in (False, True):
        config = config_of(method, gradient_checkpointing=value)
        args: Any = CONFIGS[method](**trainer_arguments(config, tmp_path, 1))
        assert args.bf16 is False
        assert args.gradient_checkpointing is args.activation_checkpointing is value
