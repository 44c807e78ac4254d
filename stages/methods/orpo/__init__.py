"""Odds-ratio preference optimisation (arXiv:2403.07691, Eq. 6): SFT and preferences in one loss, without a reference model.

The loss is the SFT loss on the chosen completion and λ times −log σ of the log odds ratio of chosen to rejected, whose probabilities
are geometric means over tokens. Meant to start from a policy that has not been fine-tuned (`init: base`).

TRL keeps it in `trl.experimental`: an exact version and tests/test_contracts.py hold what is relied on. As in the authors' code, the SFT
loss is over the prompt's tokens too.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from stages.models.training import Lora, Optimisation
from stages.pipeline.tracking import Run

UNLIMITED = 1 << 30  # tokens; TRL reads None as 512 and cuts what is longer


@dataclass
class OrpoConfig(Optimisation, Lora):
    """Values and their meaning: conf/method/orpo.yaml."""

    method: str = "orpo"
    init: str = MISSING
    signal: str = MISSING
    beta: float = MISSING


SCHEMAS = {"orpo_schema": OrpoConfig}


def align(
    config: OrpoConfig, *, init: Path, signal: Path, data: Path, output: Path, checkpoints: Path, curve: Path, run: Run, seed: int
) -> dict[str, float]:
    """Trains `init` on the preferences in `signal` and writes the policy to `output`.

    Returns validation figures; `log_odds_ratio` is the mean over pairs of the log odds ratio of chosen to rejected.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # a warning at import that says what the docstring above says
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.orpo import ORPOConfig as Arguments
    from trl.experimental.orpo import ORPOTrainer

    from stages.models.loading import training_dtype
    from stages.models.training import curve_rows, lora_config, save_trained, train, trainer_arguments, write_curve
    from stages.pipeline.records import PREFERENCES, read_columns

    tokenizer = AutoTokenizer.from_pretrained(init)
    trainer = ORPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(init, dtype=training_dtype(config.lora_rank)),
        args=Arguments(
            **trainer_arguments(config, checkpoints, seed),
            remove_unused_columns=False,  # the collator needs them
            max_length=UNLIMITED,
            beta=config.beta,
        ),
        train_dataset=Dataset.from_list(read_columns(signal / "train.jsonl", PREFERENCES, "orpo")),
        eval_dataset=Dataset.from_list(read_columns(signal / "validation.jsonl", PREFERENCES, "orpo")),
        processing_class=tokenizer,
        peft_config=lora_config(config),
    )
    train(trainer, checkpoints)
    evaluation = trainer.evaluate()
    save_trained(trainer.model, tokenizer, output, config)
    write_curve(curve, curve_rows(trainer.state.log_history), run)
    return {
        "validation_loss": evaluation["eval_loss"],
        "validation_accuracy": evaluation["eval_rewards/accuracies"],
        "sft_loss": evaluation["eval_nll_loss"],
        "log_odds_ratio": evaluation["eval_log_odds_chosen"],
        "chosen_logps": evaluation["eval_logps/chosen"],
        "rejected_logps": evaluation["eval_logps/rejected"],
    }
