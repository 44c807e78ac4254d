"""Proximal policy optimisation (arXiv:1707.06347) from a reward, as in InstructGPT (arXiv:2203.02155).

Maximises the reward less β·KL(π ‖ π_ref), where π_ref is the policy that the run starts from. Each step samples a batch of completions at
temperature τ and scores their texts. Score and KL become a reward for each token, and GAE turns these into advantages, with a value model
that starts as the reward model. A few epochs of clipped updates follow. The implementation is our own, on transformers and accelerate:

- `trainer.py`: a step from top to bottom, resuming, several processes;
- `rollout.py`: sampling, rewards, what the models compute at each token;  `networks.py`: policy, reference, value model;
- `updates.py`: the epochs of minibatches;  `losses.py`: the mathematics, with the papers' equation numbers;
- `shaping.py`: score normalisation, penalty, β, λ;  `guard.py`: numbers that are not finite, and warnings.

With `cost_limit` the method is Safe RLHF's (arXiv:2310.12773): it maximises (reward − λ·cost) / (1 + λ), where λ follows how far the mean
cost is above the limit. Deviation: one value model estimates both reward and cost, and λ moves slowly compared with it. A reward that is a
plain sum, with a fixed weight for the cost, is the form with a fixed λ.

Deviations from InstructGPT: no pretraining loss is added, and one answer is one episode without discount (γ = 1). A completion that reaches
the token limit ends there, without a bootstrapped value. Watch `kl_k1` as well as `reward`: a reward that rises at a KL of tens of nats is
the reward model's error.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from plumbline.methods.job import OnlineJob
from plumbline.methods.keeping import keep, require_within
from plumbline.methods.online.ppo.settings import PpoConfig

if TYPE_CHECKING:
    from plumbline.methods.online.ppo.rollout import Metrics
    from plumbline.rewards.reward import Reward

__all__ = ["SCHEMAS", "PpoConfig", "align"]

SCHEMAS = {"ppo_schema": PpoConfig}


def constrained(reward: "Reward", folder: Path) -> "tuple[Reward, Reward, float]":
    """Splits a sum whose second part is a cost into the reward, the cost, and the first λ, which is the cost's negated weight.

    Raises:
        ValueError: the reward is not such a sum.
    """
    from plumbline.rewards.reward import WeightedSum

    if not isinstance(reward, WeightedSum) or len(reward.parts) != 2 or reward.parts[1][0] >= 0:
        raise ValueError(
            "ppo: cost_limit: expected a reward that is a sum (reward_sum), with the cost as `second` and a negative second_weight, found "
            f"another kind at {folder}. Make such a sum, or set cost_limit to null"
        )
    (weight, helpful), (cost_weight, cost) = reward.parts
    return WeightedSum([(weight, helpful)]), cost, -cost_weight


def align(config: PpoConfig, job: OnlineJob) -> dict[str, float]:
    """Trains `job.init` on the reward in `job.reward`, with `job.init` as reference, and writes the policy to `job.output`.

    Returns the training metrics averaged over the last tenth of the steps.
    """
    from plumbline.methods.online.ppo.networks import load_networks
    from plumbline.methods.online.ppo.trainer import PpoTrainer, train
    from plumbline.methods.online.start import last_means, load_start, reward_totals
    from plumbline.models.curves import write_curve
    from plumbline.models.saving import save_trained
    from plumbline.models.watching import watch
    from plumbline.rewards.reward import finishing, load_reward

    require_within(config.keep_steps, config.steps)
    start = load_start(config, "ppo", job)
    networks = load_networks(start.policy, config, job.init, job.reward, start.tokenizer)
    reward = load_reward(job.reward, job.checkpoints.name)
    optimised, cost, init_lambda = constrained(reward, job.reward) if config.cost_limit is not None else (reward, None, 1.0)
    trainer = PpoTrainer(
        policy=networks.policy,
        reference=networks.reference,
        value_model=networks.value_model,
        reward=optimised,
        tokenizer=start.tokenizer,
        prompts=start.prompts,
        config=config,
        seed=job.seed,
        cost=cost,
        init_lambda=init_lambda,
    )
    watched = watch(job, start.tokenizer, config.steps)
    if watched:
        watched.at(0, networks.policy)

    def log(step: int, metrics: "Metrics", timings: "Metrics") -> None:
        job.run.log_metrics({**metrics, **timings}, step=step)
        done = step + 1 if timings else 0  # none of a step that was made before a crash
        if done and watched:
            watched.at(done, networks.policy)
        if config.keep_steps and done in (*config.keep_steps, config.steps):
            keep(networks.policy, start.tokenizer, job, config, done)

    with finishing(reward):
        history = train(trainer, job.checkpoints, log=log, log_samples=lambda step, rows: job.run.extend_table("rollouts", rows))
    job.run.log_costs(reward_totals(reward))
    save_trained(networks.policy, start.tokenizer, job, config)
    write_curve(job.curve, [{"step": step, **metrics} for step, metrics in enumerate(history)])  # already logged
    return last_means(history)
