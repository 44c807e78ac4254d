"""Group-relative policy optimisation (DeepSeekMath, arXiv:2402.03300, Eq. 3; DeepSeek-R1, arXiv:2501.12948) from a reward.

Each prompt gets several answers. An answer's advantage is its reward less its group's mean, divided by its group's standard deviation.
It is the same for all its tokens, so no value model is needed. The ratio to the policy that sampled the answer is clipped as in PPO. The
KL to the reference, which is `init`, is part of the loss and not of the reward. With a verifier as reward this is RLVR (Tülu 3,
arXiv:2411.15124, §6).

Watch `equal_groups_fraction`: nothing is learnt from a group whose scores are all equal. With a reward of 0 or 1 that is most groups while
a task is too hard or too easy.
"""

from dataclasses import dataclass

from omegaconf import MISSING

from plumbline.methods.job import OnlineJob
from plumbline.methods.online.groups import Grouped
from plumbline.pipeline.ranges import NOT_NEGATIVE, outside


@dataclass
class GrpoConfig(Grouped):
    """Values and their meaning: conf/method/grpo.yaml."""

    method: str = "grpo"
    loss: str = MISSING
    scale_rewards: str = MISSING
    importance_sampling: str = MISSING
    unbiased_kl: bool = MISSING
    entropy_coefficient: float = MISSING

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        unknown = [
            f"{name}: expected one of {', '.join(choices)}, found {getattr(self, name)!r}"
            for name, choices in CHOICES.items()
            if getattr(self, name) not in choices
        ]
        return [*super().problems(), *unknown, *outside(self, entropy_coefficient=NOT_NEGATIVE)]


SCHEMAS = {"grpo_schema": GrpoConfig}

CHOICES = {
    "loss": ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling": ("token", "sequence"),
}


def align(config: GrpoConfig, job: OnlineJob) -> dict[str, float]:
    """Trains `job.init` on the reward in `job.reward`, with `job.init` as reference, and writes the policy to `job.output`.

    Returns the training metrics averaged over the last tenth of the steps.
    """
    from trl import GRPOConfig as Arguments
    from trl import GRPOTrainer

    from plumbline.methods.keeping import keeping
    from plumbline.methods.online.group_rollouts import MOST_RATIO, drawing
    from plumbline.methods.online.groups import group_arguments, group_history, load_groups, reference_arguments
    from plumbline.methods.online.start import last_means, reward_totals
    from plumbline.models.adapters import lora_config
    from plumbline.models.curves import curve_rows, write_curve
    from plumbline.models.saving import save_trained, whole_model
    from plumbline.models.training import train
    from plumbline.models.watching import watching
    from plumbline.rewards.reward import finishing

    start = load_groups(config, "grpo", job)
    trainer = GRPOTrainer(
        model=start.policy,
        reward_funcs=start.functions,
        args=Arguments(
            **group_arguments(config, job.checkpoints, job.seed, start.steps),
            **reference_arguments(job.init),
            loss_type=config.loss,
            scale_rewards=config.scale_rewards,
            importance_sampling_level=config.importance_sampling,
            use_bias_correction_kl=config.unbiased_kl,
            entropy_coef=config.entropy_coefficient,
            vllm_importance_sampling_mode="token_truncate"
            if config.loss == "vespo"
            else "sequence_mask",  # of a server's completions
            vllm_importance_sampling_clip_max=MOST_RATIO,
        ),
        train_dataset=start.dataset,
        processing_class=start.tokenizer,
        peft_config=lora_config(config),
    )
    with finishing(start.reward), drawing(trainer, start, config, job):
        train(trainer, job.checkpoints, [*watching(trainer, job), *keeping(trainer, job, config)])
    job.run.log_costs(reward_totals(start.reward))
    save_trained(whole_model(trainer, job.init), start.tokenizer, job, config)
    history = group_history(curve_rows(trainer.state.log_history), kl="kl_k3_per_token")
    write_curve(job.curve, history, job.run)
    return last_means(history)
