"""Proximal policy optimisation (arXiv:1707.06347) from a reward, as in InstructGPT (arXiv:2203.02155).

Maximises the reward less β·KL(π ‖ π_ref), where π_ref is the policy that the run starts from. Each step draws a batch of
completions at temperature τ, scores their texts, turns score and KL into a reward for each token, estimates advantages by
GAE with a value model that starts as the reward model, and makes a few epochs of clipped updates. Our own, on transformers
and accelerate alone:

- `trainer.py`: a step from top to bottom, resuming, several processes;
- `losses.py`: the mathematics, with the papers' equation numbers;  `shaping.py`: score normalisation, penalty, β;
- `rollout.py`: sampling, rewards, what the models say of each token;  `models.py`: policy, reference, value model;
- `guard.py`: numbers that are not finite, and warnings.

With `cost_limit` it is Safe RLHF's (arXiv:2310.12773): the reward less λ times a cost, over 1 + λ, where λ follows how far the mean cost lies above
the limit. Deviation: one value model estimates both; λ moves slowly against it. With a fixed weight, a plain `sum` is the fixed-λ form.

Deviations from InstructGPT: no pretraining loss is mixed in; one answer is one episode without a bandit environment's
discount (γ = 1). A completion that runs into the token limit ends there, with no bootstrapped value. Look at `kl_k1` beside
`reward`: a reward that rises at a KL of tens of nats is the reward model's error.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.methods.ppo.config import PpoConfig, validate

if TYPE_CHECKING:
    from stages.models.rewards import Reward
    from stages.pipeline.tracking import Run

__all__ = ["SCHEMAS", "PpoConfig", "align"]

SCHEMAS = {"ppo_schema": PpoConfig}


def constrained(reward: "Reward", signal: Path) -> "tuple[Reward, Reward, float]":
    """The reward, the cost and the first λ of a sum whose second part is a cost: its weight is −λ.

    Raises:
        ValueError: the signal is no such sum.
    """
    from stages.models.rewards import WeightedSum

    if not isinstance(reward, WeightedSum) or len(reward.parts) != 2 or reward.parts[1][0] >= 0:
        raise ValueError(
            f"ppo: cost_limit: expected a signal of `kind: sum` with the cost as `second` and a negative second_weight, found another at {signal}"
        )
    (weight, helpful), (cost_weight, cost) = reward.parts
    return WeightedSum([(weight, helpful)]), cost, -cost_weight


def align(
    config: PpoConfig,
    *,
    init: Path,
    signal: Path,
    data: Path,
    output: Path,
    checkpoints: Path,
    curve: Path,
    run: "Run",
    seed: int,
) -> dict[str, float]:
    """Trains `init` on the reward in `signal`, with `init` as reference, and writes the policy to `output`.

    Returns the training metrics averaged over the last tenth of the steps.
    """
    validate(config)
    import torch
    from accelerate import PartialState
    from transformers import AutoModelForCausalLM

    from stages.methods.ppo.models import add_adapter, load_value_model
    from stages.methods.ppo.trainer import train
    from stages.models.groups import last_means, load_start
    from stages.models.rewards import finish, load_reward, outcomes
    from stages.models.training import save_trained, write_curve
    from stages.pipeline.tracking import Run

    processes = PartialState(cpu=not torch.accelerator.is_available())  # before any model: each process has a GPU of its own
    start = load_start(config, "ppo", init=init, signal=signal, data=data)
    policy: Any = start.policy
    tokenizer, prompts = start.tokenizer, start.prompts
    value_model = load_value_model(signal, init, tokenizer)
    reference = None if config.lora_rank else AutoModelForCausalLM.from_pretrained(init, dtype=torch.float32)
    if config.lora_rank:
        policy = add_adapter(policy, config)
        value_model.backbone = add_adapter(value_model.backbone, config)

    reward = load_reward(signal, checkpoints.name)
    optimised, cost, init_lambda = constrained(reward, signal) if config.cost_limit is not None else (reward, None, 1.0)

    def log(step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        run.log_metrics({**metrics, **timings}, step=step)

    history = train(
        policy=policy,
        reference=reference,
        value_model=value_model,
        reward=optimised,
        cost=cost,
        init_lambda=init_lambda,
        tokenizer=tokenizer,
        prompts=prompts,
        config=config,
        seed=seed,
        checkpoint_folder=checkpoints,
        log=log,
        log_samples=lambda step, rows: run.log_table(f"rollouts/step_{step:05d}", rows),
    )
    if checked := {**outcomes(reward), **finish(reward)}:  # since the last resume, so to MLflow only
        run.log_metrics(checked, step=len(history))
    if processes.is_main_process:
        save_trained(policy, tokenizer, output, config)
        write_curve(curve, [{"step": step, **metrics} for step, metrics in enumerate(history)], Run())  # logged already
    processes.wait_for_everyone()
    return last_means(history)
