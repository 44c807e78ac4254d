"""Odds-ratio preference optimisation (arXiv:2403.07691, Eq. 6): SFT and preferences in one loss, without a reference model.

The loss is the SFT loss on the chosen completion, plus λ times −log σ of the log odds ratio of chosen to rejected. Their probabilities
are geometric means over tokens. The method is meant to start from a policy that has not been fine-tuned (`init: base`).

TRL keeps it in `trl.experimental`, so TRL's version is pinned, and tests/test_contracts.py checks what this module relies on. As in the
authors' code, the SFT loss covers the prompt's tokens too.
"""

import os
from dataclasses import dataclass
from functools import partial
from typing import Any

from omegaconf import MISSING

from plumbline.methods.job import OfflineJob
from plumbline.models.training_values import Lora, Validated
from plumbline.pipeline.ranges import NOT_NEGATIVE, outside

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
        return [*super().problems(), *self.lora_problems(), *outside(self, beta=NOT_NEGATIVE)]


LEARNS_FROM = ("preferences",)  # the kinds of rows that `signal` may hold, as plumbline/graph.py names them
SCHEMAS = {"orpo_schema": OrpoConfig}


def orpo_row(prompt_ids: list[int], chosen_ids: list[int], rejected_ids: list[int]) -> dict[str, list[int]]:
    """A pair in the tokenised form of TRL's ORPO trainer; labels of -100 carry no loss."""
    columns = {"prompt_input_ids": prompt_ids, "prompt_attention_mask": [1] * len(prompt_ids)}
    for side, completion in (("chosen", chosen_ids), ("rejected", rejected_ids)):
        columns |= {
            f"{side}_input_ids": prompt_ids + completion,
            f"{side}_attention_mask": [1] * (len(prompt_ids) + len(completion)),
            f"{side}_labels": [-100] * len(prompt_ids) + completion,
        }
    return columns


def align(config: OrpoConfig, job: OfflineJob) -> dict[str, float]:
    """Trains `job.init` on the preferences in `job.signal` and writes the policy to `job.output`.

    Returns validation figures; `log_odds_ratio` is the mean over pairs of the log odds ratio of chosen to rejected.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # silences a warning at import that repeats the docstring above
    from transformers import AutoTokenizer
    from trl.experimental.orpo import ORPOConfig as Arguments
    from trl.experimental.orpo import ORPOTrainer

    from plumbline.models.adapters import lora_config
    from plumbline.models.chat import encode_pairs
    from plumbline.models.curves import curve_rows, write_curve
    from plumbline.models.loading import load_causal_lm, training_dtype
    from plumbline.models.rows_on_disk import signal_on_disk
    from plumbline.models.saving import save_trained, whole_model
    from plumbline.models.training import train, trainer_arguments
    from plumbline.models.watching import watching
    from plumbline.rows import PREFERENCES

    tokenizer = AutoTokenizer.from_pretrained(job.init)

    train_rows, validation_rows = signal_on_disk(job, PREFERENCES, "orpo", partial(encode_pairs, tokenizer))

    class Tokenised(ORPOTrainer):  # for the reason that `takes_ids` gives
        def tokenize_row(self, feature: Any, model: Any = None) -> dict[str, list[int]]:
            return orpo_row(**feature)

    trainer = Tokenised(
        model=load_causal_lm(job.init, dtype=training_dtype(config.lora_rank)),
        args=Arguments(
            **trainer_arguments(config, job.checkpoints, job.seed),
            remove_unused_columns=False,  # the collator needs all columns
            max_length=UNLIMITED,
            beta=config.beta,
        ),
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        processing_class=tokenizer,
        peft_config=lora_config(config),
    )
    train(trainer, job.checkpoints, watching(trainer, job))
    evaluation = trainer.evaluate()
    save_trained(whole_model(trainer, job.init), tokenizer, job, config)
    write_curve(job.curve, curve_rows(trainer.state.log_history), job.run)
    return {
        "validation_loss": evaluation["eval_loss"],
        "validation_accuracy": evaluation["eval_rewards/accuracies"],
        "sft_loss": evaluation["eval_nll_loss"],
        "log_odds_ratio": evaluation["eval_log_odds_chosen"],
        "chosen_logps": evaluation["eval_logps/chosen"],
        "rejected_logps": evaluation["eval_logps/rejected"],
    }
