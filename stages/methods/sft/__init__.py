"""Supervised fine-tuning: cross-entropy on the completion's tokens, none on the prompt's (InstructGPT, arXiv:2203.02155, §3.5).

Also what rejection sampling ends in (Llama 2, arXiv:2307.09288, §3.2.3; RAFT, arXiv:2304.06767): SFT on the policy's own best.

Padding is kept low by batches of rows alike in length, or avoided by `packing`: several rows in one of the context's length, each of which sees
itself alone.
"""

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


def align(
    config: SftConfig, *, init: Path, signal: Path, data: Path, output: Path, checkpoints: Path, curve: Path, run: Run, seed: int
) -> dict[str, float]:
    """Trains `init` on the demonstrations in `signal` and writes the policy to `output`; returns its validation loss."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig as Arguments
    from trl import SFTTrainer

    from stages.models.chat import encode_demonstrations
    from stages.models.training import curve_rows, lora_config, save_trained, train, trainer_arguments, write_curve
    from stages.pipeline.records import read_jsonl

    tokenizer = AutoTokenizer.from_pretrained(init)

    def demonstrations(split: str) -> Dataset:
        return Dataset.from_list(encode_demonstrations(tokenizer, read_jsonl(signal / f"{split}.jsonl")))

    policy = AutoModelForCausalLM.from_pretrained(init)
    trainer = SFTTrainer(
        model=policy,
        args=Arguments(
            **trainer_arguments(config, checkpoints, seed),
            max_length=policy.config.max_position_embeddings if config.packing else None,
            packing=config.packing,
            eval_packing=False,
            completion_only_loss=True,
            train_sampling_strategy="random" if config.packing else "group_by_length",
        ),
        train_dataset=demonstrations("train"),
        eval_dataset=demonstrations("validation"),
        processing_class=tokenizer,
        peft_config=lora_config(config),
    )
    train(trainer, checkpoints)
    evaluation = trainer.evaluate()
    save_trained(trainer.model, tokenizer, output, config)
    write_curve(curve, curve_rows(trainer.state.log_history), run)
    return {"validation_loss": evaluation["eval_loss"]}
