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
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import RLOOConfig as Arguments
    from trl import RLOOTrainer

    from stages.models.chat import end_of_turn_id, prompt_ids
    from stages.models.completions import require_room
    from stages.models.groups import group_arguments, group_history, last_means, prompts_in_order, reward_functions
    from stages.models.rewards import finish, held_out_accuracy, load_reward, outcomes, require_accuracy
    from stages.models.training import curve_rows, lora_config, save_trained, train, write_curve
    from stages.pipeline.records import read_jsonl

    require_accuracy(held_out_accuracy(signal), config.min_reward_accuracy, signal, "rloo")
    tokenizer = AutoTokenizer.from_pretrained(init)
    model = AutoModelForCausalLM.from_pretrained(init, dtype=torch.float32)
    prompts = [row["prompt"] for row in read_jsonl(data / "prompts/train.jsonl")]
    require_room(
        [prompt_ids(tokenizer, prompt) for prompt in prompts], model.config.max_position_embeddings, config.max_new_tokens, "rloo"
    )
    end_ids = (end_of_turn_id(tokenizer), tokenizer.eos_token_id)
    reward = load_reward(signal, checkpoints.name)
    steps = config.steps(len(prompts))
    rollouts = -(-steps // config.steps_of_rollout)
    order = prompts_in_order(prompts, rollouts * config.rollout_batch_size // config.num_generations, seed)
    trainer = RLOOTrainer(
        model=model,
        reward_funcs=reward_functions(reward, end_ids, config.missing_eos_penalty),
        args=Arguments(
            **group_arguments(config, checkpoints, seed, steps),
            normalize_advantages=config.normalise_advantages,
            reward_clip_range=None if config.clip_score is None else (-config.clip_score, config.clip_score),
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in order]),
        processing_class=tokenizer,
        peft_config=lora_config(config),
    )
    train(trainer, checkpoints)
    save_trained(trainer.model, tokenizer, output, config)
    history = group_history(curve_rows(trainer.state.log_history), kl="kl_k1_per_token")
    write_curve(curve, history, run)
    if checked := {**outcomes(reward), **finish(reward)}:  # since the last resume, so to MLflow only
        run.log_metrics(checked, step=steps)
    return last_means(history)
