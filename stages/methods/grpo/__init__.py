"""Group-relative policy optimisation (DeepSeekMath, arXiv:2402.03300, Eq. 3; DeepSeek-R1, arXiv:2501.12948) from a reward.

Each prompt is answered several times; an answer's advantage is its reward less its group's mean, over its group's deviation, the same
for all its tokens, so no value model is needed. The ratio to the policy that sampled is clipped as in PPO; the KL to the reference, which
is `init`, is in the loss and not in the reward. With a verifier as reward this is RLVR (Tülu 3, arXiv:2411.15124, §6).

Look at `equal_groups_fraction`: in a group whose scores are all equal nothing is learnt, and with a reward of 0 or 1 that is most of them
while a task is too hard or too easy.
"""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from stages.models.groups import Grouped, validate
from stages.pipeline.tracking import Run


@dataclass
class GrpoConfig(Grouped):
    """Values and their meaning: conf/method/grpo.yaml."""

    method: str = "grpo"
    loss: str = MISSING
    scale_rewards: str = MISSING
    importance_sampling: str = MISSING
    unbiased_kl: bool = MISSING
    entropy_coefficient: float = MISSING


SCHEMAS = {"grpo_schema": GrpoConfig}

CHOICES = {
    "loss": ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling": ("token", "sequence"),
}


def align(
    config: GrpoConfig, *, init: Path, signal: Path, data: Path, output: Path, checkpoints: Path, curve: Path, run: Run, seed: int
) -> dict[str, float]:
    """Trains `init` on the reward in `signal`, with `init` as reference, and writes the policy to `output`.

    Returns the training metrics averaged over the last tenth of the steps.
    """
    validate(config, "grpo")
    for name, choices in CHOICES.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"grpo: {name} {getattr(config, name)!r}: expected one of {', '.join(choices)}")
    from trl import GRPOConfig as Arguments
    from trl import GRPOTrainer

    from stages.models.groups import group_arguments, group_history, last_means, load_groups
    from stages.models.rewards import finish, outcomes
    from stages.models.training import curve_rows, lora_config, save_trained, train, write_curve

    start = load_groups(config, "grpo", init=init, signal=signal, data=data, seed=seed, name=checkpoints.name)
    trainer = GRPOTrainer(
        model=start.policy,
        reward_funcs=start.functions,
        args=Arguments(
            **group_arguments(config, checkpoints, seed, start.steps),
            loss_type=config.loss,
            scale_rewards=config.scale_rewards,
            importance_sampling_level=config.importance_sampling,
            use_bias_correction_kl=config.unbiased_kl,
            entropy_coef=config.entropy_coefficient,
        ),
        train_dataset=start.dataset,
        processing_class=start.tokenizer,
        peft_config=lora_config(config),
    )
    train(trainer, checkpoints)
    save_trained(trainer.model, start.tokenizer, output, config)
    history = group_history(curve_rows(trainer.state.log_history), kl="kl_k3_per_token")
    write_curve(curve, history, run)
    if checked := {**outcomes(start.reward), **finish(start.reward)}:  # since the last resume, so to MLflow only
        run.log_metrics(checked, step=start.steps)
    return last_means(history)
