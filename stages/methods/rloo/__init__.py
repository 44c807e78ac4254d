"""REINFORCE with a leave-one-out baseline (RLOO, arXiv:2402.14740, §2.2) from a reward.

Each prompt is answered several times; an answer's advantage is its reward, less β times its KL to the reference, less the mean of that
over the other answers to the prompt: an unbiased baseline without a value model. The whole answer is one action, with one ratio to the
policy that sampled it (the product over its tokens), clipped as in PPO.

Beside GRPO: the KL is in the reward and not in the loss, nothing is divided by the group's deviation, and every answer weighs the same,
however long.
"""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from stages.models.groups import Grouped, validate
from stages.pipeline.tracking import Run


@dataclass
class RlooConfig(Grouped):
    """Values and their meaning: conf/method/rloo.yaml."""

    method: str = "rloo"
    normalise_advantages: bool = MISSING
    clip_score: float | None = MISSING


SCHEMAS = {"rloo_schema": RlooConfig}


def align(
    config: RlooConfig, *, init: Path, signal: Path, data: Path, output: Path, checkpoints: Path, curve: Path, run: Run, seed: int
) -> dict[str, float]:
    """Trains `init` on the reward in `signal`, with `init` as reference, and writes the policy to `output`.

    Returns the training metrics averaged over the last tenth of the steps.
    """
    validate(config, "rloo")
    from trl import RLOOConfig as Arguments
    from trl import RLOOTrainer

    from stages.models.groups import group_arguments, group_history, last_means, load_groups
    from stages.models.rewards import finish, outcomes
    from stages.models.training import curve_rows, lora_config, save_trained, train, write_curve

    start = load_groups(config, "rloo", init=init, signal=signal, data=data, seed=seed, name=checkpoints.name)
    trainer = RLOOTrainer(
        model=start.policy,
        reward_funcs=start.functions,
        args=Arguments(
            **group_arguments(config, checkpoints, seed, start.steps),
            normalize_advantages=config.normalise_advantages,
            reward_clip_range=None if config.clip_score is None else (-config.clip_score, config.clip_score),
        ),
        train_dataset=start.dataset,
        processing_class=start.tokenizer,
        peft_config=lora_config(config),
    )
    train(trainer, checkpoints)
    save_trained(trainer.model, start.tokenizer, output, config)
    history = group_history(curve_rows(trainer.state.log_history), kl="kl_k1_per_token")
    write_curve(curve, history, run)
    if checked := {**outcomes(start.reward), **finish(start.reward)}:  # since the last resume, so to MLflow only
        run.log_metrics(checked, step=start.steps)
    return last_means(history)
