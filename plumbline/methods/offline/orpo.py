"""Odds-ratio preference optimisation (arXiv:2403.07691, Eq. 6): SFT and preferences in one loss, without a reference model.

The loss is the SFT loss on the chosen completion, plus λ times −log σ of the log odds ratio of chosen to rejected. Their probabilities
are geometric means over tokens. The method is meant to start from a policy that has not been fine-tuned (`init: base`).

TRL keeps it in `trl.experimental`, so TRL's version is pinned, and tests/test_contracts.py checks what this module relies on. As in the
authors' code, the SFT loss covers the prompt's tokens too.
"""

import os
from dataclasses import dataclass

from omegaconf import MISSING

from plumbline.methods.job import OfflineJob
from plumbline.models.training import Lora, Validated

UNLIMITED = 1 << 30  # tokens; TRL reads None as 512 and cuts longer rows


@dataclass
class OrpoConfig(Validated, Lora):
    """Values and their meaning: conf/method/orpo.yaml."""

    method: str = "orpo"
    init: str = MISSING
    signal: str = MISSING
    beta: float = MISSING

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        complaints = [*super().problems(), *self.lora_problems()]
        if self.beta < 0:
            complaints.append(f"beta: expected 0 or above, found {self.beta}")
        return complaints


LEARNS_FROM = ("preferences",)  # the kinds of rows that `signal` may hold, as plumbline/graph.py names them
SCHEMAS = {"orpo_schema": OrpoConfig}


def align(config: OrpoConfig, job: OfflineJob) -> dict[str, float]:
    """Trains `job.init` on the preferences in `job.signal` and writes the policy to `job.output`.

    Returns validation figures; `log_odds_ratio` is the mean over pairs of the log odds ratio of chosen to rejected.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # silences a warning at import that repeats the docstring above
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.orpo import ORPOConfig as Arguments
    from trl.experimental.orpo import ORPOTrainer

    from plumbline.models.loading import training_dtype
    from plumbline.models.training import curve_rows, lora_config, save_trained, train, trainer_arguments, write_curve
    from plumbline.pipeline.records import read_columns
    from plumbline.rows import PREFERENCES

    tokenizer = AutoTokenizer.from_pretrained(job.init)
    trainer = ORPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.init, dtype=training_dtype(config.lora_rank)),
        args=Arguments(
            **trainer_arguments(config, job.checkpoints, job.seed),
            remove_unused_columns=False,  # the collator needs all columns
            max_length=UNLIMITED,
            beta=config.beta,
        ),
        train_dataset=Dataset.from_list(read_columns(job.signal / "train.jsonl", PREFERENCES, "orpo")),
        eval_dataset=Dataset.from_list(read_columns(job.signal / "validation.jsonl", PREFERENCES, "orpo")),
        processing_class=tokenizer,
        peft_config=lora_config(config),
    )
    train(trainer, job.checkpoints)
    evaluation = trainer.evaluate()
    save_trained(trainer.model, tokenizer, job.output, config)
    write_curve(job.curve, curve_rows(trainer.state.log_history), job.run)
    return {
        "validation_loss": evaluation["eval_loss"],
        "validation_accuracy": evaluation["eval_rewards/accuracies"],
        "sft_loss": evaluation["eval_nll_loss"],
        "log_odds_ratio": evaluation["eval_log_odds_chosen"],
        "chosen_logps": evaluation["eval_logps/chosen"],
        "rejected_logps": evaluation["eval_logps/rejected"],
    }
