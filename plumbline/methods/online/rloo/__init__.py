"""REINFORCE with a leave-one-out baseline (RLOO, arXiv:2402.14740, §2.2) from a reward.

Each prompt gets several answers. An answer's score is its reward less β times its log-ratio to the reference. Its advantage is its score
less the mean score of the other answers to the prompt, which is an unbiased baseline without a value model. The whole answer is one
action: its ratio to the policy that sampled it is the product over its tokens, clipped as in PPO.

Unlike in GRPO, the KL is part of the reward and not of the loss, advantages are not divided by the group's standard deviation, and every
answer has the same weight, whatever its length.
"""

from dataclasses import dataclass

from omegaconf import MISSING

from plumbline.methods.job import OnlineJob
from plumbline.methods.online.groups import Grouped
from plumbline.pipeline.ranges import POSITIVE, outside


@dataclass
class RlooConfig(Grouped):
    """Values and their meaning: conf/method/rloo.yaml."""

    method: str = "rloo"
    normalise_advantages: bool = MISSING
    clip_score: float | None = MISSING

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        return [*super().problems(), *outside(self, clip_score=POSITIVE)]


SCHEMAS = {"rloo_schema": RlooConfig}


def align(config: RlooConfig, job: OnlineJob) -> dict[str, float]:
    """Trains `job.init` on the reward in `job.reward`, with `job.init` as reference, and writes the policy to `job.output`.

    Returns the training metrics averaged over the last tenth of the steps.
    """
    from trl import RLOOConfig as Arguments
    from trl import RLOOTrainer

    from plumbline.methods.keeping import keeping
    from plumbline.methods.online.group_rollouts import drawing
    from plumbline.methods.online.groups import group_arguments, group_history, load_groups, reference_arguments
    from plumbline.methods.online.start import last_means, reward_totals
    from plumbline.models.adapters import lora_config
    from plumbline.models.curves import curve_rows, write_curve
    from plumbline.models.saving import save_trained, whole_model
    from plumbline.models.training import train
    from plumbline.models.watching import watching
    from plumbline.rewards.reward import finishing

    start = load_groups(config, "rloo", job)
    trainer = RLOOTrainer(
        model=start.policy,
        reward_funcs=start.functions,
        args=Arguments(
            **group_arguments(config, job.checkpoints, job.seed, start.steps),
            **reference_arguments(job.init),
            normalize_advantages=config.normalise_advantages,
            reward_clip_range=None if config.clip_score is None else (-config.clip_score, config.clip_score),
        ),
        train_dataset=start.dataset,
        processing_class=start.tokenizer,
        peft_config=lora_config(config),
    )
    with finishing(start.reward), drawing(trainer, start, config, job):
        train(trainer, job.checkpoints, [*watching(trainer, job), *keeping(trainer, job, config)])
    job.run.log_costs(reward_totals(start.reward))
    save_trained(whole_model(trainer, job.init), start.tokenizer, job, config)
    history = group_history(curve_rows(trainer.state.log_history), kl="kl_k1_per_token")
    write_curve(job.curve, history, job.run)
    return last_means(history)
