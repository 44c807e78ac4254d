"""Claims about DPO: its losses, the values that it refuses, and the warning when both likelihoods fall."""

import logging
from pathlib import Path
from typing import Any

import pytest
from aligning import config_of, run_align, write_inputs
from transformers import TrainerControl, TrainerState, TrainingArguments

from plumbline.methods.offline.dpo import displacement, warn_of_displacement, weighted_losses


def test_dpo_losses_and_their_weights() -> None:
    assert weighted_losses(config_of("dpo")) == {"sigmoid": 1.0, "sft": 1.0}
    assert weighted_losses(config_of("dpo", loss="hinge", sft_weight=0.0)) == {"hinge": 1.0}
    mpo = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}
    assert weighted_losses(config_of("dpo", loss_weights=mpo)) == mpo


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"loss": "sigmoidal"}, "loss: expected one of sigmoid, hinge"),
        ({"loss_weights": {"hing": 1.0}}, "loss: expected one of sigmoid, hinge"),
        ({"loss": "sft"}, "loss: expected a loss over preferences, found 'sft'"),
        ({"label_smoothing": 0.1}, "label_smoothing: expected 0 with losses that do not read it (sigmoid, sft)"),
        ({"loss": "robust", "label_smoothing": 0.5}, "label_smoothing: expected a fraction in [0, 0.5)"),
        ({"loss": "exo_pair"}, "label_smoothing: expected above 0 with loss exo_pair"),
        ({"f_divergence": "kl"}, "f_divergence: expected one of reverse_kl"),
        ({"f_divergence": "js_divergence", "loss": "aot"}, "f_divergence: expected reverse_kl with aot"),
        ({"length_alpha": 2.0}, "length_alpha: expected null or a weight in [0, 1], found 2.0"),
        ({"loss": "aot", "policy_weighting": True}, "policy_weighting: expected false with aot"),
    ],
)
def test_a_dpo_config_that_trl_would_ignore_or_refuse_halfway_is_named(changes: dict[str, Any], complaint: str) -> None:
    (problem,) = config_of("dpo", **changes).problems()
    assert problem.startswith(complaint)


FELL = {"eval_rewards/chosen": -0.2, "eval_rewards/rejected": -0.5}


@pytest.mark.parametrize(
    ("chosen", "rejected", "warned"), [(-0.2, -0.5, True), (0.1, -0.5, False), (-0.5, -0.2, False), (0.5, 0.1, False)]
)
def test_both_likelihoods_that_fall_while_the_margin_grows_are_reported(chosen: float, rejected: float, warned: bool) -> None:
    message = displacement({"eval_rewards/chosen": chosen, "eval_rewards/rejected": rejected}, beta=0.1)
    assert (message is not None) is warned
    if message:
        assert "grew to 3 nats" in message
        assert "chosen one's by 2, the rejected one's by 5" in message


def test_dpo_warns_at_the_first_validation_that_shows_it_and_not_again(caplog: pytest.LogCaptureFixture) -> None:
    callback = warn_of_displacement(beta=0.1)
    sound = {"eval_rewards/chosen": 0.2, "eval_rewards/rejected": -0.5}
    with caplog.at_level(logging.WARNING, logger="plumbline.methods.offline.dpo"):
        for step, figures in enumerate((sound, FELL, FELL)):
            callback.on_evaluate(TrainingArguments("unused"), TrainerState(global_step=step), TrainerControl(), metrics=figures)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["dpo, step 1"]


def test_dpo_counts_both_likelihoods_falling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = FELL | {"eval_loss": 0.5, "eval_rewards/accuracies": 1.0, "eval_rewards/margins": 0.3}
    monkeypatch.setattr("trl.DPOTrainer.evaluate", lambda *_, **__: evaluation)
    figures = run_align(write_inputs(tmp_path), "dpo", max_steps=1, beta=0.1)
    assert figures["both_fell"] == 1.0
    assert (figures["chosen_logps_change"], figures["rejected_logps_change"]) == pytest.approx((-2.0, -5.0))
