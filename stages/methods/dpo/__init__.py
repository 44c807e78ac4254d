"""Direct preference optimisation (arXiv:2305.18290, Eq. 7): a reward model's work done by the policy's own log-ratio.

Deviation: a share of SFT loss on the chosen completion may be added (`sft_weight`; arXiv:2404.19733, Eq. 1). Without it the likelihood
of *both* completions may sink while their margin rises; refusals, which often stand on both sides of a pair, go first.
"""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from stages.models.training import Optimisation
from stages.pipeline.tracking import Run


@dataclass
class DpoConfig(Optimisation):
    """Values and their meaning: conf/method/dpo.yaml."""

    method: str = "dpo"
    init: str = MISSING
    signal: str = MISSING
    beta: float = MISSING
    loss: str = MISSING
    label_smoothing: float = MISSING
    sft_weight: float = MISSING


SCHEMAS = {"dpo_schema": DpoConfig}


def align(
    config: DpoConfig, *, init: Path, signal: Path, data: Path, output: Path, checkpoints: Path, curve: Path, run: Run, seed: int
) -> dict[str, float]:
    """Trains `init` on the preferences in `signal`, with `init` as reference, and writes the policy to `output`.

    Returns validation figures; `chosen_logps_change` is the mean over validation pairs of log π(chosen) − log π_ref(chosen): below
    zero, the likelihood of the better answer itself has fallen.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig as Arguments
    from trl import DPOTrainer

    from stages.models.training import curve_rows, save_policy, train, trainer_arguments, write_curve
    from stages.pipeline.records import read_jsonl

    def preferences(split: str) -> Dataset:
        rows = read_jsonl(signal / f"{split}.jsonl")
        return Dataset.from_list([{column: row[column] for column in ("prompt", "chosen", "rejected")} for row in rows])

    losses = {config.loss: 1.0} | ({"sft": config.sft_weight} if config.sft_weight else {})
    tokenizer = AutoTokenizer.from_pretrained(init)
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(init),
        ref_model=AutoModelForCausalLM.from_pretrained(init),
        args=Arguments(
            **trainer_arguments(config, checkpoints, seed),
            max_length=None,
            beta=config.beta,
            loss_type=list(losses),
            loss_weights=list(losses.values()),
            label_smoothing=config.label_smoothing,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=4 * config.micro_batch_size,
        ),
        train_dataset=preferences("train"),
        eval_dataset=preferences("validation"),
        processing_class=tokenizer,
    )
    train(trainer, checkpoints)
    evaluation = trainer.evaluate()
    save_policy(trainer.model, tokenizer, output)
    write_curve(curve, curve_rows(trainer.state.log_history), run)
    return {
        "validation_loss": evaluation["eval_loss"],
        "validation_accuracy": evaluation["eval_rewards/accuracies"],
        "validation_margin": evaluation["eval_rewards/margins"],
        "chosen_logps_change": evaluation["eval_rewards/chosen"] / config.beta,
    }
