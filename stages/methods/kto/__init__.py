"""Kahneman–Tversky optimisation (arXiv:2402.01306, Eq. 7): from answers that are each good or bad by themselves, without pairs.

A good answer's loss is λ_D·(1 − σ(β(log-ratio − z))), a bad one's λ_U·(1 − σ(β(z − log-ratio))). The reference point z is the KL of
policy to reference, estimated for each forward pass from its prompts, each with the completion of the row before it.

Pairs are split into a good and a bad answer. Rows are shuffled once, by the seed, and read in that order in every epoch: TRL makes the
mismatched completions beforehand, from neighbours. So `micro_batch_size`, elsewhere only memory and speed, decides z here.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from stages.models.training import Lora, Optimisation
from stages.pipeline.tracking import Run

LOSSES = ("kto", "apo_zero_unpaired")


@dataclass
class KtoConfig(Optimisation, Lora):
    """Values and their meaning: conf/method/kto.yaml."""

    method: str = "kto"
    init: str = MISSING
    signal: str = MISSING
    beta: float = MISSING
    loss: str = MISSING
    desirable_weight: float = MISSING
    undesirable_weight: float = MISSING


SCHEMAS = {"kto_schema": KtoConfig}


def unpaired(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of `prompt`, `completion` and `label` (desirable?); a pair becomes two of them."""
    for row in rows:
        if "chosen" in row:
            yield {"prompt": row["prompt"], "completion": row["chosen"], "label": True}
            yield {"prompt": row["prompt"], "completion": row["rejected"], "label": False}
        else:
            yield {"prompt": row["prompt"], "completion": row["completion"], "label": row["label"]}


def read_labels(file: Path, seed: int) -> list[dict[str, Any]]:
    """The rows of a file of pairs or labels, in an order of their own, so that neighbours are answers to different prompts.

    Raises:
        ValueError: there is no desirable or no undesirable row.
    """
    from stages.pipeline.records import read_jsonl

    rows = [*unpaired(read_jsonl(file))]
    desirable = sum(row["label"] for row in rows)
    if not 0 < desirable < len(rows):
        raise ValueError(
            f"kto: expected desirable and undesirable completions in {file}, found {desirable} and {len(rows) - desirable}. Name a "
            "signal with `label` (label.<entry>.pairs: unpaired, data/unpaired) or with pairs, and leave some for validation."
        )
    random.Random(seed).shuffle(rows)
    return rows


def align(
    config: KtoConfig, *, init: Path, signal: Path, data: Path, output: Path, checkpoints: Path, curve: Path, run: Run, seed: int
) -> dict[str, float]:
    """Trains `init` on the labels in `signal`, with `init` as reference, and writes the policy to `output`.

    Returns validation figures; `chosen_logps_change` is the mean over desirable completions of log π − log π_ref, and `kl_estimate` the
    mean of z, from mismatched completions and never below 0.
    """
    if config.loss not in LOSSES:
        raise ValueError(f"kto: loss {config.loss!r}: expected one of {', '.join(LOSSES)}")
    if config.loss == "kto" and config.micro_batch_size < 2:
        raise ValueError("kto: micro_batch_size 1: expected at least 2, as z is estimated from other rows of a forward pass")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import KTOConfig as Arguments
    from trl import KTOTrainer

    from stages.models.loading import training_dtype
    from stages.models.training import curve_rows, lora_config, save_trained, train, trainer_arguments, write_curve

    splits = {split: read_labels(signal / f"{split}.jsonl", seed) for split in ("train", "validation")}
    tokenizer = AutoTokenizer.from_pretrained(init)
    trainer = KTOTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            init, dtype=training_dtype(config.lora_rank)
        ),  # and the reference too, read before the first step
        args=Arguments(
            **trainer_arguments(config, checkpoints, seed),
            train_sampling_strategy="sequential",
            max_length=None,
            beta=config.beta,
            loss_type=config.loss,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=4 * config.micro_batch_size,
        ),
        train_dataset=Dataset.from_list(splits["train"]),
        eval_dataset=Dataset.from_list(splits["validation"]),
        processing_class=tokenizer,
        peft_config=lora_config(config),
    )
    train(trainer, checkpoints)
    evaluation = trainer.evaluate()
    save_trained(trainer.model, tokenizer, output, config)
    write_curve(curve, curve_rows(trainer.state.log_history), run)
    chosen, rejected = evaluation["eval_rewards/chosen"], evaluation["eval_rewards/rejected"]
    return {
        "validation_loss": evaluation["eval_loss"],
        "validation_margin": chosen - rejected,
        "kl_estimate": evaluation["eval_kl"],
        "chosen_logps_change": chosen / config.beta,
        "rejected_logps_change": rejected / config.beta,
        "desirable_fraction": sum(row["label"] for row in splits["train"]) / len(splits["train"]),
    }
