"""What we rely on in TRL's reward trainer: losses derived by hand, the tokens that it reads, and the gradient of a step."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from bigram import LN2, PAIR, POLICY, SIZE, SWAPPED, TOKENIZER, WIDTH, bigram
from datasets import Dataset
from omegaconf import OmegaConf
from transformers import LlamaConfig, LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer

from plumbline.models.chat import END, encode_preferences
from plumbline.models.training import trainer_arguments
from plumbline.pipeline.composing import CONF, size_section
from stages.reward_model import RewardModelEntry

SCORES = {"a": 2 * LN2, "b": LN2, "c": 0.0, "d": -LN2, "q": 7 * LN2, "r": -9 * LN2, END: 3 * LN2}


def scorer() -> LlamaForSequenceClassification:
    """A classifier whose output depends on the last token only; tokens that are not in SCORES, such as padding, give another value."""
    config = LlamaConfig.from_dict(bigram(POLICY).config.to_dict() | {"num_labels": 1})
    model = LlamaForSequenceClassification(config).eval()
    model.model.load_state_dict(bigram(POLICY).model.state_dict())
    values = [SCORES.get(token, 20.0) for token in TOKENIZER.convert_ids_to_tokens(list(range(SIZE)))]
    model.score.weight.data = torch.tensor([values + [0.0] * (WIDTH - SIZE)]) / math.sqrt(WIDTH)  # RMSNorm scales by √width
    return model


def arguments(tmp_path: Path, rows: int) -> dict[str, Any]:
    """The trainer's arguments from conf/reward_model.yaml, with all rows in a batch."""
    values: Any = OmegaConf.load(CONF / "reward_model.yaml")
    changes = {"init": "sft", "signal": "label/round1", "batch_size": rows, "micro_batch_size": rows}
    changes = size_section("tiny", "reward_model") | changes
    entry: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RewardModelEntry), values.reward_model, changes))
    return trainer_arguments(entry, tmp_path, 1)


def reward_trainer(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> RewardTrainer:
    """A trainer of `scorer` with the arguments of stages/reward_model.py, on tokenised rows."""
    data = Dataset.from_list(rows)
    args = RewardConfig(**arguments(tmp_path, len(rows)), **{"max_length": None, "center_rewards_coefficient": None} | changes)
    return RewardTrainer(model=scorer(), args=args, train_dataset=data, eval_dataset=data, processing_class=TOKENIZER)


def compared(chosen: str, rejected: str, **more: float) -> dict[str, Any]:
    chosen_ids, rejected_ids = (TOKENIZER.convert_tokens_to_ids(text.split()) for text in (chosen, rejected))
    return {"chosen_ids": chosen_ids, "rejected_ids": rejected_ids, **more}


# Completions of different lengths: first the longer one is chosen, then the shorter. Scores at the last tokens: 2 ln 2 and ln 2; −ln 2 and 0.
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
        compared(*pair, **({} if margins is None else {"margin": margins[index] * LN2}))
        for index, pair in enumerate((LONGER, SHORTER))
    ]
    evaluation = reward_trainer(tmp_path, rows, center_rewards_coefficient=centring).evaluate()
    assert evaluation["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert evaluation["eval_min_reward"] == pytest.approx(-LN2, rel=1e-5)  # read at the last token before padding
    assert evaluation["eval_max_reward"] == pytest.approx(2 * LN2, rel=1e-5)
    assert evaluation["eval_margin"] == pytest.approx(0.0, abs=1e-6)
    assert evaluation["eval_accuracy"] == 0.5


def test_a_reward_is_trained_on_our_own_tokens_and_read_at_the_end_of_turn(tmp_path: Path) -> None:
    """TRL takes tokenised rows as they are, including the margin, and each of ours ends in the token with score 3 ln 2."""
    rows = encode_preferences(TOKENIZER, [PAIR | {"margin": LN2}, SWAPPED | {"margin": 0.0}])
    trainer = reward_trainer(tmp_path, rows)
    assert [dict(row) for row in trainer.train_dataset] == rows
    evaluation = trainer.evaluate()
    assert evaluation["eval_min_reward"] == evaluation["eval_max_reward"] == pytest.approx(3 * LN2, rel=1e-5)
    assert evaluation["eval_loss"] == pytest.approx((math.log(3) + LN2) / 2, rel=1e-5)  # −ln σ(0 − ln 2), −ln σ(0)


def test_a_step_of_a_reward_model_weighs_a_pair_by_how_wrong_it_is(tmp_path: Path) -> None:
    """dL/dr = −(1 − σ(Δ)) / n for the chosen, and its negative for the rejected: 1/3 and 2/3 of one half, by plain gradient descent."""
    rows = [compared(*LONGER), compared(*SHORTER)]
    plain = {
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_steps": 1,
        "learning_rate": 1.0,
        "max_grad_norm": 1e9,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    data = Dataset.from_list(rows)
    model = scorer()
    model.model.requires_grad_(False)
    before = model.score.weight.detach().double().clone()
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**arguments(tmp_path, 2) | plain, max_length=None),
        train_dataset=data,
        processing_class=TOKENIZER,
    )
    trainer.train()
    change = (model.score.weight.detach().double() - before)[0] / math.sqrt(WIDTH)
    expected = dict.fromkeys(range(WIDTH), 0.0)
    for token, moved in {"a": 1 / 6, "b": -1 / 6, "d": 1 / 3, "c": -1 / 3}.items():
        expected[TOKENIZER.convert_tokens_to_ids(token)] = moved
    assert change.tolist() == pytest.approx([*expected.values()], abs=1e-5)
