"""Direct preference optimisation (arXiv:2305.18290, Eq. 7): the policy's own log-ratio does the work of a reward model.

`loss` is any loss of TRL's DPO, or `loss_weights` combines several. The reference's log-probabilities are computed once, before training.

Deviation: an SFT loss on the chosen completion may be added (`sft_weight`; arXiv:2404.19733, Eq. 1). Without it the likelihood of *both*
completions may fall while their margin grows (arXiv:2402.13228, arXiv:2410.08847). Refusals suffer first, because they often stand on both
sides of a pair. A warning reports this, and `chosen_logps_change` and `rejected_logps_change` show it: both are then below zero.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from plumbline.methods.job import OfflineJob
from plumbline.methods.keeping import Kept, keeping
from plumbline.models.training_values import Validated
from plumbline.pipeline.launcher import Launcher
from plumbline.pipeline.ranges import NOT_NEGATIVE, POSITIVE, outside

if TYPE_CHECKING:
    from transformers import TrainerCallback

logger = logging.getLogger(__name__)

LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero",
    "apo_down", "discopop", "sigmoid_norm",
)  # fmt: skip
SMOOTHED_LOSSES = ("robust", "exo_pair", "aot", "aot_unpaired")
"""The losses that read `label_smoothing`."""
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
DIVERGENCE_LOSSES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
"""The losses that are also defined for divergences other than the reverse KL."""


@dataclass
class DpoConfig(Validated, Kept):
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

    def problems(self) -> list[str]:
        """What is wrong with the values, including what TRL would ignore or refuse halfway; empty if nothing is."""
        losses, smoothing = weighted_losses(self), self.label_smoothing
        complaints = [*super().problems(), *self.lora_problems(), *self.keeping_problems()]
        complaints += outside(self, beta=POSITIVE, sft_weight=NOT_NEGATIVE, discopop_tau=POSITIVE)
        complaints += [
            f"loss_weights.{name}: expected 0 or above, found {weight}"
            for name, weight in self.loss_weights.items()
            if not weight >= 0
        ]
        complaints += [
            f"loss: expected one of {', '.join(LOSSES)}, found {name!r}"
            for name in sorted({self.loss, *losses} - {"sft"})
            if name not in LOSSES
        ]
        if self.loss == "sft":
            complaints.append("loss: expected a loss over preferences, found 'sft'. Set method to sft for that loss alone")
        if smoothing and not set(losses) & set(SMOOTHED_LOSSES):
            complaints.append(
                f"label_smoothing: expected 0 with losses that do not read it ({', '.join(losses)}), found {smoothing}; "
                f"{', '.join(SMOOTHED_LOSSES)} do"
            )
        if not 0 <= smoothing < 0.5:
            complaints.append(f"label_smoothing: expected a fraction in [0, 0.5), found {smoothing}")
        if "exo_pair" in losses and not smoothing:
            complaints.append("label_smoothing: expected above 0 with loss exo_pair (arXiv:2402.00856: 0.001), found 0")
        if self.f_divergence not in DIVERGENCES:
            complaints.append(f"f_divergence: expected one of {', '.join(DIVERGENCES)}, found {self.f_divergence!r}")
        elif self.f_divergence != "reverse_kl" and (fixed := sorted(set(losses) - set(DIVERGENCE_LOSSES))):
            complaints.append(
                f"f_divergence: expected reverse_kl with {', '.join(fixed)}, found {self.f_divergence}; {', '.join(DIVERGENCE_LOSSES)} take others"
            )
        if self.f_divergence == "alpha_divergence" and not 0 < self.f_alpha < 1:
            complaints.append(
                f"f_alpha: expected above 0 and less than 1 with f_divergence: alpha_divergence, found {self.f_alpha}"
            )
        if self.length_alpha is not None and not 0 <= self.length_alpha <= 1:
            complaints.append(f"length_alpha: expected null or a weight in [0, 1], found {self.length_alpha}")
        if self.policy_weighting and set(losses) & {"aot", "aot_unpaired"}:
            complaints.append("policy_weighting: expected false with aot, which sorts the pairs of a batch, found true")
        return complaints

    def launcher_problems(self, launcher: Launcher) -> list[str]:
        """What does not fit several processes; empty if all does."""
        return [*super().launcher_problems(launcher), *self.sharding_problems(launcher)]


LEARNS_FROM = ("preferences",)  # the kinds of rows that `signal` may hold, as plumbline/graph.py names them
SCHEMAS = {"dpo_schema": DpoConfig}


def weighted_losses(config: DpoConfig) -> dict[str, float]:
    """The losses to add up, with their weights: `loss` with 1, `sft` with `sft_weight`, and those of `loss_weights`."""
    weights = {config.loss: 1.0, "sft": config.sft_weight} | config.loss_weights
    return {name: weight for name, weight in weights.items() if weight}


def displacement(figures: Mapping[str, float], beta: float) -> str | None:
    """A warning if both completions of validation pairs are less likely than under the reference while the margin grew, else None.

    figures: those of TRL's evaluation, whose rewards are means of β·(log π − log π_ref) over pairs.
    """
    chosen, rejected = (figures[f"eval_rewards/{side}"] / beta for side in ("chosen", "rejected"))
    if not (chosen < 0 and rejected < 0 and chosen > rejected):
        return None
    return (
        f"the margin of validation pairs grew to {chosen - rejected:.3g} nats while both log-probabilities fell, the chosen one's by "
        f"{-chosen:.3g}, the rejected one's by {-rejected:.3g}. The lost probability may have moved to answers that are in neither. Raise "
        "sft_weight or beta, lower learning_rate, or keep only pairs with a larger margin (label.min_margin); compare gold, not margins."
    )


def warn_of_displacement(beta: float) -> "TrainerCallback":
    """A callback that logs a warning at the first validation in which both likelihoods have fallen."""
    from transformers import TrainerCallback

    class WarnOfDisplacement(TrainerCallback):
        warned = False

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            message = displacement(kwargs["metrics"], beta)
            if message and not self.warned:
                self.warned = True
                logger.warning("dpo, step %d: %s", state.global_step, message)

    return WarnOfDisplacement()


def loss_arguments(config: DpoConfig) -> dict[str, Any]:
    """TRL's arguments for the loss and its reference."""
    losses = weighted_losses(config)
    return {
        "max_length": None,
        "beta": config.beta,
        "loss_type": list(losses),
        "loss_weights": list(losses.values()),
        "label_smoothing": config.label_smoothing,
        "f_divergence_type": config.f_divergence,
        "f_alpha_divergence_coef": config.f_alpha,
        "ld_alpha": config.length_alpha,
        "discopop_tau": config.discopop_tau,
        "use_weighting": config.policy_weighting,
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": 4 * config.micro_batch_size,
    }


def align(config: DpoConfig, job: OfflineJob) -> dict[str, float]:
    """Trains `job.init` on the preferences in `job.signal`, with `job.init` as reference, and writes the policy to `job.output`.

    Returns validation figures. `chosen_logps_change` is the mean of log π(chosen) − log π_ref(chosen) over validation pairs. If it is
    below zero, the better answers themselves have become less likely. `both_fell` is 1 if both have while the margin grew.
    """
    from transformers import AutoTokenizer
    from trl import DPOConfig as Arguments
    from trl import DPOTrainer

    from plumbline.models.adapters import lora_config
    from plumbline.models.batching import mixed_batches
    from plumbline.models.chat import encode_pairs
    from plumbline.models.curves import curve_rows, write_curve
    from plumbline.models.loading import load_causal_lm, training_dtype
    from plumbline.models.rows_on_disk import signal_on_disk
    from plumbline.models.saving import save_trained, whole_model
    from plumbline.models.training import takes_ids, train, trainer_arguments
    from plumbline.models.watching import watching
    from plumbline.rows import PREFERENCES

    tokenizer = AutoTokenizer.from_pretrained(job.init)

    encode = partial(encode_pairs, tokenizer)
    train_rows, validation_rows = signal_on_disk(job, PREFERENCES, "dpo", encode, most=config.most_rows)
    trainer = mixed_batches(takes_ids(DPOTrainer))(
        # also the reference, whose log-probabilities are computed before the first step
        model=load_causal_lm(job.init, dtype=training_dtype(config.lora_rank)),
        args=Arguments(**trainer_arguments(config, job.checkpoints, job.seed), **loss_arguments(config)),
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        processing_class=tokenizer,
        callbacks=[warn_of_displacement(config.beta)],
        peft_config=lora_config(config),
    )
    train(trainer, job.checkpoints, [*watching(trainer, job), *keeping(trainer, job, config)])
    evaluation = trainer.evaluate()
    save_trained(whole_model(trainer, job.init), tokenizer, job, config)
    write_curve(job.curve, curve_rows(trainer.state.log_history), job.run)
    return {
        "validation_loss": evaluation["eval_loss"],
        "validation_accuracy": evaluation["eval_rewards/accuracies"],
        "validation_margin": evaluation["eval_rewards/margins"],
        "chosen_logps_change": evaluation["eval_rewards/chosen"] / config.beta,
        "rejected_logps_change": evaluation["eval_rewards/rejected"] / config.beta,
        "both_fell": float(displacement(evaluation, config.beta) is not None),
    }
