"""Supervised fine-tuning: cross-entropy on the completion's tokens, none on the prompt's (InstructGPT, arXiv:2203.02155, §3.5).

Also what rejection sampling ends in (Llama 2, arXiv:2307.09288, §3.2.3; RAFT, arXiv:2304.06767): SFT on the policy's own best.

Padding is kept low by batches of rows alike in length, or avoided by `packing`: several rows in one of the context's length, each of which sees
itself alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from stages.models.training import Lora, Optimisation
from stages.pipeline.tracking import Run


@dataclass
class SftConfig(Optimisation, Lora):
    """Values and their meaning: conf/method/sft.yaml."""

    method: str = "sft"
    init: str = MISSING
    signal: str = MISSING
    packing: bool = MISSING


SCHEMAS = {"sft_schema": SftConfig}


def require_fit(rows: Sequence[Sequence[int]], context_tokens: int | None) -> None:
    """Requires that packing would cut no row.

    Raises:
        ValueError: the model's context has no end to pack to, or a row is longer.
    """
    if context_tokens is None:
        raise ValueError("sft: packing: expected a model with a longest context, found one without: set packing to false")
    if over := [len(ids) for ids in rows if len(ids) > context_tokens]:
        raise ValueError(
            f"sft: packing: {len(over)} of {len(rows)} rows are longer than the model's context of {context_tokens} tokens (longest: "
            f"{max(over)}) and would be cut: drop them in `prepare` (model.context_tokens), or set packing to false"
        )


def align(
    config: SftConfig, *, init: Path, signal: Path, data: Path, output: Path, checkpoints: Path, curve: Path, run: Run, seed: int
) -> dict[str, float]:
    """Trains `init` on the demonstrations in `signal` and writes the policy to `output`; returns its validation loss."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig as Arguments
    from trl import SFTTrainer

    from stages.models.chat import encode_demonstrations
    from stages.models.loading import context_of, training_dtype
    from stages.models.training import curve_rows, lora_config, save_trained, train, trainer_arguments, write_curve
    from stages.pipeline.records import read_columns

    tokenizer = AutoTokenizer.from_pretrained(init)

    def demonstrations(split: str) -> Dataset:
        return Dataset.from_list(
            encode_demonstrations(tokenizer, read_columns(signal / f"{split}.jsonl", ("prompt", "completion"), "sft"))
        )

    policy = AutoModelForCausalLM.from_pretrained(init, dtype=training_dtype(config.lora_rank))
    context = context_of(policy.config)
    rows = demonstrations("train")
    if config.packing:
        require_fit(rows["input_ids"], context)
    trainer = SFTTrainer(
        model=policy,
        args=Arguments(
            **trainer_arguments(config, checkpoints, seed),
            max_length=context if config.packing else None,
            packing=config.packing,
            eval_packing=False,
            completion_only_loss=True,
            train_sampling_strategy="random" if config.packing else "group_by_length",
        ),
        train_dataset=rows,
        eval_dataset=demonstrations("validation"),
        processing_class=tokenizer,
        peft_config=lora_config(config),
    )
    train(trainer, checkpoints)
    evaluation = trainer.evaluate()
    save_trained(trainer.model, tokenizer, output, config)
    write_curve(curve, curve_rows(trainer.state.log_history), run)
    return {"validation_loss": evaluation["eval_loss"]}
