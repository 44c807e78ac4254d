"""Kahneman–Tversky optimisation (arXiv:2402.01306, Eq. 7): learns from single answers that are good or bad, without pairs.

A good answer's loss is λ_D·(1 − σ(β(log-ratio − z))), a bad one's λ_U·(1 − σ(β(z − log-ratio))). The reference point z is the KL of
policy to reference. The forward passes of all processes at a time estimate it from their prompts, each paired with the completion of the row before.

Pairs are split into a good and a bad answer. Rows are shuffled once, by the seed, and keep that order in every epoch, because TRL pairs
each prompt with its neighbour's completion before training. So `micro_batch_size` times the number of processes decides z here; elsewhere it
decides only memory and speed.
"""

import random
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import MISSING

from plumbline.methods.job import OfflineJob
from plumbline.models.training_values import Lora, Validated
from plumbline.pipeline import processes
from plumbline.pipeline.ranges import NOT_NEGATIVE, POSITIVE, outside
from plumbline.pipeline.records import stream_jsonl
from plumbline.pipeline.row_index import RowIndex

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

LOSSES = ("kto", "apo_zero_unpaired")


@dataclass
class KtoConfig(Validated, Lora):
    """Values and their meaning: conf/method/kto.yaml."""

    method: str = "kto"
    init: str = MISSING
    signal: str = MISSING
    beta: float = MISSING
    loss: str = MISSING
    desirable_weight: float = MISSING
    undesirable_weight: float = MISSING

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        complaints = [*super().problems(), *self.lora_problems()]
        complaints += outside(self, beta=POSITIVE, desirable_weight=NOT_NEGATIVE, undesirable_weight=NOT_NEGATIVE)
        if self.desirable_weight == self.undesirable_weight == 0:
            complaints.append(
                "desirable_weight, undesirable_weight: expected at least one above 0, found 0 twice: nothing would be learnt"
            )
        if self.loss not in LOSSES:
            complaints.append(f"loss: expected one of {', '.join(LOSSES)}, found {self.loss!r}")
        if self.loss == "kto" and self.micro_batch_size < 2:
            complaints.append(
                "micro_batch_size: expected at least 2, because z is estimated from other rows of the forward pass, found 1"
            )
        return complaints


LEARNS_FROM = ("preferences", "unpaired")  # the kinds of rows that `signal` may hold, as plumbline/graph.py names them
SCHEMAS = {"kto_schema": KtoConfig}


def unpaired(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of `prompt`, `completion` and `label` (whether it is desirable); a pair becomes two rows."""
    for row in rows:
        if "chosen" in row:
            yield {"prompt": row["prompt"], "completion": row["chosen"], "label": True}
            yield {"prompt": row["prompt"], "completion": row["rejected"], "label": False}
        else:
            yield {"prompt": row["prompt"], "completion": row["completion"], "label": row["label"]}


class Labels(NamedTuple):
    """A file of pairs or labels as rows in the order of training. In memory is the order, and not the rows."""

    lines: RowIndex
    order: "array[int]"
    """Of each row twice the position of its line, and 1 more for the rejected completion of a pair."""
    desirable_fraction: float

    def rows(self, most: int | None = None) -> Iterator[dict[str, Any]]:
        """The first `most` rows, or all, as `unpaired` makes them."""
        order = self.order[:most]
        for number, row in zip(order, self.lines.rows(number // 2 for number in order), strict=True):
            yield [*unpaired([row])][number % 2]


def read_labels(file: Path, seed: int) -> Labels:
    """The rows of a file of pairs or labels, shuffled by the seed, so that neighbours answer different prompts.

    Raises:
        ValueError: there is no desirable or no undesirable row.
    """
    order, desirable = array("Q"), 0
    for position, line in enumerate(stream_jsonl(file)):
        for side, row in enumerate(unpaired([line])):
            order.append(2 * position + side)
            desirable += row["label"]
    if not 0 < desirable < len(order):
        raise ValueError(
            f"kto: expected desirable and undesirable completions in {file}, found {desirable} and {len(order) - desirable}. Choose a signal "
            "with labels (label.<entry>.pairs: unpaired, data/unpaired) or with pairs, and leave some for validation."
        )
    random.Random(seed).shuffle(order)
    return Labels(RowIndex(file), order, desirable / len(order))


def encode_labels(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Mapping[str, Any]], config: KtoConfig
) -> list[dict[str, Any]]:
    """Rows in the tokenised form of TRL's KTO trainer.

    `KL_completion_ids`, from which z is estimated, are the completion of the row before, and in the first of the rows that pass together that of
    the last.
    """
    from plumbline.models.chat import encode_turns

    turns = encode_turns(tokenizer, [(row["prompt"], row["completion"]) for row in rows])
    tokenised: list[dict[str, Any]] = [
        {"prompt_ids": turn.prompt, "completion_ids": turn.completion, "label": row["label"]}
        for turn, row in zip(turns, rows, strict=True)
    ]
    if config.loss == "kto":
        rows_at_once = config.micro_batch_size * processes.count()
        for start in range(0, len(rows), rows_at_once):
            batch = tokenised[start : start + rows_at_once]
            for number, row in enumerate(batch):
                row["KL_completion_ids"] = batch[number - 1]["completion_ids"]
    return tokenised


def align(config: KtoConfig, job: OfflineJob) -> dict[str, float]:
    """Trains `job.init` on the labels in `job.signal`, with `job.init` as reference, and writes the policy to `job.output`.

    Returns validation figures. `chosen_logps_change` is the mean of log π − log π_ref over desirable completions. `kl_estimate` is the
    mean of z, which comes from mismatched completions and is never below 0.
    """
    from transformers import AutoTokenizer
    from trl import KTOConfig as Arguments
    from trl import KTOTrainer

    from plumbline.models.adapters import lora_config
    from plumbline.models.curves import curve_rows, write_curve
    from plumbline.models.loading import load_causal_lm, training_dtype
    from plumbline.models.rows_on_disk import rows_on_disk
    from plumbline.models.saving import save_trained, whole_model
    from plumbline.models.training import takes_ids, train, trainer_arguments
    from plumbline.models.watching import watching

    splits = {split: read_labels(job.signal / f"{split}.jsonl", job.seed) for split in ("train", "validation")}
    tokenizer = AutoTokenizer.from_pretrained(job.init)

    def table(split: str, most: int | None = None) -> "Dataset":
        file, encode = job.checkpoints / f"{split}.arrow", partial(encode_labels, tokenizer, config=config)
        return rows_on_disk(splits[split].rows(most), encode, file, multiple_of=config.micro_batch_size * processes.count())

    trainer = takes_ids(KTOTrainer)(
        # also the reference, whose log-probabilities are computed before the first step
        model=load_causal_lm(job.init, dtype=training_dtype(config.lora_rank)),
        args=Arguments(
            **trainer_arguments(config, job.checkpoints, job.seed),
            train_sampling_strategy="sequential",
            max_length=None,
            beta=config.beta,
            loss_type=config.loss,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=4 * config.micro_batch_size,
        ),
        train_dataset=table("train", most=config.most_rows),  # the reference is asked about every row
        eval_dataset=table("validation"),
        processing_class=tokenizer,
        peft_config=lora_config(config),
    )
    train(trainer, job.checkpoints, watching(trainer, job))
    evaluation = trainer.evaluate()
    save_trained(whole_model(trainer, job.init), tokenizer, job, config)
    write_curve(job.curve, curve_rows(trainer.state.log_history), job.run)
    chosen, rejected = evaluation["eval_rewards/chosen"], evaluation["eval_rewards/rejected"]
    return {
        "validation_loss": evaluation["eval_loss"],
        "validation_margin": chosen - rejected,
        "kl_estimate": evaluation["eval_kl"],
        "chosen_logps_change": chosen / config.beta,
        "rejected_logps_change": rejected / config.beta,
        "desirable_fraction": splits["train"].desirable_fraction,
    }
