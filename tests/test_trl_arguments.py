"""Every value of a conf file that TRL is to know reaches TRL, under TRL's name."""

from pathlib import Path
from typing import Any

import pytest
from aligning import Crashed, run_align, write_inputs

ARGUMENTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # method: TRL's class, values that are not defaults, and the arguments that TRL must get
    "sft": (
        "trl.SFTConfig",
        {"packing": True, "epochs": 5, "schedule": "constant", "warmup_fraction": 0.3, "weight_decay": 0.02, "adam_beta2": 0.9,
         "max_grad_norm": 0.5, "max_steps": 7, "evaluate_every": 3, "checkpoint_every": 6, "batch_size": 12, "micro_batch_size": 4,
         "learning_rate": 2e-5, "gradient_checkpointing": True, "keep": "best", "bf16": True},
        {"packing": True, "max_length": 64, "num_train_epochs": 5, "lr_scheduler_type": "constant", "warmup_steps": 0.3,
         "weight_decay": 0.02, "adam_beta2": 0.9, "max_grad_norm": 0.5, "max_steps": 7, "eval_steps": 3, "save_steps": 6,
         "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "learning_rate": 2e-5, "activation_checkpointing": True,
         "load_best_model_at_end": True, "completion_only_loss": True, "bf16": True, "logging_steps": 2},
    ),
    "dpo": (
        "trl.DPOConfig",
        {"beta": 0.3, "loss": "robust", "sft_weight": 0.5, "loss_weights": {"hinge": 0.25}, "label_smoothing": 0.2,
         "f_divergence": "alpha_divergence", "f_alpha": 0.7, "length_alpha": 0.4, "discopop_tau": 0.06, "policy_weighting": True},
        {"beta": 0.3, "loss_type": ["robust", "sft", "hinge"], "loss_weights": [1.0, 0.5, 0.25], "label_smoothing": 0.2,
         "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7, "ld_alpha": 0.4, "discopop_tau": 0.06,
         "use_weighting": True, "precompute_ref_log_probs": True, "max_length": None},
    ),
    "kto": (
        "trl.KTOConfig",
        {"beta": 0.3, "loss": "apo_zero_unpaired", "desirable_weight": 1.2, "undesirable_weight": 0.8},
        {"beta": 0.3, "loss_type": "apo_zero_unpaired", "desirable_weight": 1.2, "undesirable_weight": 0.8, "max_length": None},
    ),
    "orpo": ("trl.experimental.orpo.ORPOConfig", {"beta": 0.3}, {"beta": 0.3}),
    "grpo": (
        "trl.GRPOConfig",
        {"num_generations": 2, "rollout_batch_size": 16, "update_epochs": 3, "checkpoint_every": 6, "max_new_tokens": 5, "temperature": 0.7,
         "mask_truncated": True, "loss": "dapo", "scale_rewards": "batch", "importance_sampling": "sequence", "beta": 0.2,
         "unbiased_kl": True, "clip_range": 0.1, "clip_range_high": 0.3, "entropy_coefficient": 0.01},
        {"num_generations": 2, "generation_batch_size": 16, "num_iterations": 3, "save_steps": 6, "max_completion_length": 5, "temperature": 0.7,
         "mask_truncated_completions": True, "loss_type": "dapo", "scale_rewards": "batch", "importance_sampling_level": "sequence",
         "beta": 0.2, "use_bias_correction_kl": True, "epsilon": 0.1, "epsilon_high": 0.3, "entropy_coef": 0.01, "top_k": 0, "top_p": 1.0,
         "min_p": 0.0, "repetition_penalty": 1.0, "eval_strategy": "no", "shuffle_dataset": False},
    ),
    "rloo": (
        "trl.RLOOConfig",
        {"num_generations": 2, "beta": 0.2, "normalise_advantages": True, "clip_score": 3.0, "clip_range": 0.1, "temperature": 0.7},
        {"num_generations": 2, "beta": 0.2, "normalize_advantages": True, "reward_clip_range": (-3.0, 3.0), "epsilon": 0.1, "temperature": 0.7},
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", ARGUMENTS)
def test_values_of_the_conf_file_reach_trl(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, values, expected = ARGUMENTS[method]
    received: dict[str, Any] = {}

    def record(**arguments: Any) -> None:
        received.update(arguments)
        raise Crashed

    monkeypatch.setattr(target, record)
    with pytest.raises(Crashed):
        run_align(write_inputs(tmp_path), method, **values)
    assert {name: received[name] for name in expected} == expected
