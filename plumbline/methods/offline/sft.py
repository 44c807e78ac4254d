"""Supervised fine-tuning: cross-entropy on the completion's tokens and not on the prompt's (InstructGPT, arXiv:2203.02155, §3.5).

It is also the last step of rejection sampling (Llama 2, arXiv:2307.09288, §3.2.3; RAFT, arXiv:2304.06767): SFT on the policy's own
best completions.

Batches are drawn at random and sorted by length, which keeps padding low. `packing` avoids padding: it puts several rows into one of the
context's length, and each row attends to itself only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from shutil import copytree, ignore_patterns
from typing import ClassVar

from omegaconf import MISSING

from plumbline.methods.job import OfflineJob
from plumbline.models.curves import write_curve
from plumbline.models.training_values import Lora, Validated


@dataclass
class SftConfig(Validated, Lora):
    """Values and their meaning: conf/method/sft.yaml."""

    method: str = "sft"
    init: str = MISSING
    signal: str = MISSING
    packing: bool = MISSING

    may_stay_untrained: ClassVar[bool] = True

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        return [*super().problems(), *self.lora_problems()]


LEARNS_FROM = ("demonstrations",)  # the kinds of rows that `signal` may hold, as plumbline/graph.py names them
SCHEMAS = {"sft_schema": SftConfig}


def require_fit(rows: Sequence[Sequence[int]], context_tokens: int | None) -> None:
    """Checks that packing would not cut a row.

    context_tokens: the model's longest sequence; None if there is no limit.

    Raises:
        ValueError: there is no limit to pack to, or a row exceeds it.
    """
    if context_tokens is None:
        raise ValueError("sft: packing: expected a model with a limited context, found one without a limit. Set packing to false")
    if over := [len(ids) for ids in rows if len(ids) > context_tokens]:
        raise ValueError(
            f"sft: packing: expected rows of at most {context_tokens} tokens, the model's context, found {len(over)} of {len(rows)} that are "
            f"longer (longest: {max(over)}) and would be cut. Have `prepare` drop them (model.context_tokens), or set packing to false"
        )


def align(config: SftConfig, job: OfflineJob) -> dict[str, float]:
    """Trains `job.init` on the demonstrations in `job.signal`, writes the policy to `job.output`, and returns its validation loss.

    With `epochs: 0` the policy is copied as it is: what an instruct model has learnt already need not be learnt again.
    """
    if config.untrained:
        copytree(job.init, job.output, dirs_exist_ok=True, ignore=ignore_patterns("adapter"))
        write_curve(job.curve, [])
        return {}
    from transformers import AutoTokenizer
    from trl import SFTConfig as Arguments
    from trl import SFTTrainer

    from plumbline.models.adapters import lora_config
    from plumbline.models.batching import mixed_batches
    from plumbline.models.chat import encode_demonstrations
    from plumbline.models.curves import curve_rows
    from plumbline.models.loading import context_of, load_causal_lm, training_dtype
    from plumbline.models.rows_on_disk import signal_on_disk
    from plumbline.models.saving import save_trained, whole_model
    from plumbline.models.training import train, trainer_arguments
    from plumbline.models.watching import watching

    tokenizer = AutoTokenizer.from_pretrained(job.init)
    encode = partial(encode_demonstrations, tokenizer)
    train_rows, validation_rows = signal_on_disk(job, ("prompt", "completion"), "sft", encode)
    policy = load_causal_lm(job.init, dtype=training_dtype(config.lora_rank))
    context = context_of(policy.config)
    if config.packing:
        require_fit(train_rows["input_ids"], context)
    trainer = (SFTTrainer if config.packing else mixed_batches(SFTTrainer))(
        model=policy,
        args=Arguments(
            **trainer_arguments(config, job.checkpoints, job.seed),
            max_length=context if config.packing else None,
            packing=config.packing,
            eval_packing=False,
            completion_only_loss=True,
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
    return {"validation_loss": evaluation["eval_loss"]}
