"""Direct preference optimisation (arXiv:2305.18290, Eq. 7): a reward model's work done by the policy's own log-ratio.

Any loss of TRL's DPO, or a weighted combination of several; the reference's log-probabilities are computed once, before training.

Deviation: a share of SFT loss on the chosen completion may be added (`sft_weight`; arXiv:2404.19733, Eq. 1). Without it the likelihood
of *both* completions may sink while their margin rises (arXiv:2402.13228, arXiv:2410.08847); refusals, which often stand on both sides
of a pair, go first. That is warned of, and shown as `chosen_logps_change` and `rejected_logps_change`, both below zero.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from stages.models.training import Lora, Optimisation
from stages.pipeline.tracking import Run

if TYPE_CHECKING:
    from transformers import TrainerCallback

logger = logging.getLogger(__name__)

LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero",
    "apo_down", "discopop", "sigmoid_norm",
)  # fmt: skip
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
"""The losses that read `label_smoothing`."""
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
DIVERGING = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
"""The losses that are defined for another divergence than the reverse KL."""


@dataclass
class DpoConfig(Optimisation, Lora):
    """Values and their meaning: conf/method/dpo.yaml."""

    method: str = "dpo"
    init: str = MISSING
    signal: str = MISSING
    beta: float = MISSING
    loss: str = MISSING
    label_smoothing: float = MISSING
    sft_weight: float = MISSING
    loss_weights: dict[str, float] = field(default_factory=dict)
    f_divergence: str = MISSING
    f_alpha: float = MISSING
    length_alpha: float | None = MISSING
    discopop_tau: float = MISSING
    policy_weighting: bool = MISSING


SCHEMAS = {"dpo_schema": DpoConfig}


def weighted_losses(config: DpoConfig) -> dict[str, float]:
    """The losses that are added, with their weights: `loss` with 1, `sft` with `sft_weight`, and what `loss_weights` says."""
    weights = {config.loss: 1.0, "sft": config.sft_weight} | config.loss_weights
    return {name: weight for name, weight in weights.items() if weight}


def validate(config: DpoConfig) -> None:
    """Refuses values that TRL would ignore or refuse halfway; all complaints at once.

    Raises:
        ValueError: an unknown loss, or a value that the chosen losses do not read.
    """
    losses, smoothing = weighted_losses(config), config.label_smoothing
    complaints = [
        f"loss {name!r}: expected one of {', '.join(LOSSES)}" for name in {config.loss, *losses} - {"sft"} if name not in LOSSES
    ]
    if config.loss == "sft":
        complaints.append("loss: expected a loss of preferences, found 'sft', which is method: sft")
    if smoothing and not set(losses) & set(SMOOTHED):
        complaints.append(
            f"label_smoothing {smoothing}: {', '.join(losses)} do not read it; those that do: {', '.join(SMOOTHED)}"
        )
    if not 0 <= smoothing < 0.5:
        complaints.append(f"label_smoothing {smoothing}: expected a share in [0, 0.5)")
    if "exo_pair" in losses and not smoothing:
        complaints.append("loss exo_pair: expected label_smoothing above 0; the paper (arXiv:2402.00856): 0.001")
    if config.f_divergence not in DIVERGENCES:
        complaints.append(f"f_divergence {config.f_divergence!r}: expected one of {', '.join(DIVERGENCES)}")
    elif config.f_divergence != "reverse_kl" and (other := sorted(set(losses) - set(DIVERGING))):
        complaints.append(
            f"f_divergence {config.f_divergence}: not defined for {', '.join(other)}, only for {', '.join(DIVERGING)}"
        )
    if config.length_alpha is not None and not 0 <= config.length_alpha <= 1:
        complaints.append(f"length_alpha {config.length_alpha}: expected null or a weight in [0, 1]")
    if config.policy_weighting and set(losses) & {"aot", "aot_unpaired"}:
        complaints.append("policy_weighting: not with aot, which sorts the pairs of a batch")
    if complaints:
        raise ValueError("conf/method/dpo.yaml or params.yaml (align.<entry>):\n- " + "\n- ".join(complaints))


def displacement(figures: Mapping[str, float], beta: float) -> str | None:
    """Says so if, on validation pairs, both completions have become less likely than under the reference while the margin grew.

    figures: of TRL's evaluation; its rewards are β·(log π − log π_ref), means over pairs.
    """
    chosen, rejected = (figures[f"eval_rewards/{side}"] / beta for side in ("chosen", "rejected"))
    if not (chosen < 0 and rejected < 0 and chosen > rejected):
        return None
    return (
        f"the margin of validation pairs grew to {chosen - rejected:.3g} nats while both log-probabilities fell, the chosen one's by "
        f"{-chosen:.3g}, the rejected one's by {-rejected:.3g}: what is gained may go to answers in neither. Raise sft_weight or beta, "
        "lower learning_rate, or keep only pairs with a larger margin (label.min_margin); compare gold, not margins."
    )


def warn_of_displacement(beta: float) -> "TrainerCallback":
    """A callback that warns, at the first validation that shows it, of both likelihoods falling."""
    from transformers import TrainerCallback

    class WarnOfDisplacement(TrainerCallback):
        warned = False

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            message = displacement(kwargs["metrics"], beta)
            if message and not self.warned:
                self.warned = True
                logger.warning("dpo, step %d: %s", state.global_step, message)

    return WarnOfDisplacement()


def align(
    config: DpoConfig, *, init: Path, signal: Path, data: Path, output: Path, checkpoints: Path, curve: Path, run: Run, seed: int
) -> dict[str, float]:
    """Trains `init` on the preferences in `signal`, with `init` as reference, and writes the policy to `output`.

    Returns validation figures; `chosen_logps_change` is the mean over validation pairs of log π(chosen) − log π_ref(chosen): below
    zero, the likelihood of the better answer itself has fallen. `both_fell` is 1 if that of both has, while their margin grew.
    """
    validate(config)
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig as Arguments
    from trl import DPOTrainer

    from stages.models.loading import training_dtype
    from stages.models.training import curve_rows, lora_config, save_trained, train, trainer_arguments, write_curve
    from stages.pipeline.records import PREFERENCES, read_columns

    losses = weighted_losses(config)
    tokenizer = AutoTokenizer.from_pretrained(init)
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            init, dtype=training_dtype(config.lora_rank)
        ),  # and the reference too, read before the first step
        args=Arguments(
            **trainer_arguments(config, checkpoints, seed),
            max_length=None,
            beta=config.beta,
            loss_type=list(losses),
            loss_weights=list(losses.values()),
            label_smoothing=config.label_smoothing,
            f_divergence_type=config.f_divergence,
            f_alpha_divergence_coef=config.f_alpha,
            ld_alpha=config.length_alpha,
            discopop_tau=config.discopop_tau,
            use_weighting=config.policy_weighting,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=4 * config.micro_batch_size,
        ),
        train_dataset=Dataset.from_list(read_columns(signal / "train.jsonl", PREFERENCES, "dpo")),
        eval_dataset=Dataset.from_list(read_columns(signal / "validation.jsonl", PREFERENCES, "dpo")),
        processing_class=tokenizer,
        callbacks=[warn_of_displacement(config.beta)],
        peft_config=lora_config(config),
    )
    train(trainer, checkpoints)
    evaluation = trainer.evaluate()
    save_trained(trainer.model, tokenizer, output, config)
    write_curve(curve, curve_rows(trainer.state.log_history), run)
    return {
        "validation_loss": evaluation["eval_loss"],
        "validation_accuracy": evaluation["eval_rewards/accuracies"],
        "validation_margin": evaluation["eval_rewards/margins"],
        "chosen_logps_change": evaluation["eval_rewards/chosen"] / config.beta,
        "rejected_logps_change": evaluation["eval_rewards/rejected"] / config.beta,
        "both_fell": float(displacement(evaluation, config.beta) is not None),
    }
