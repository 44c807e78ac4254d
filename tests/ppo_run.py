"""A PPO run in a process of its own, to be killed or launched several times: `python ppo_run.py <folder> [<step to die at>]`.

Writes the final weights and the metrics of every step to <folder>/result-<process>.pt.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from ppo_tiny import PROMPTS, count_a, tiny_config, tiny_policy, tiny_value_model, word_tokenizer  # noqa: E402

from stages.methods.ppo.trainer import train  # noqa: E402


def main(folder: Path, die_at: int | None) -> None:
    torch.set_num_threads(1)
    policy, value_model = tiny_policy(), tiny_value_model()

    def log(step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    history = train(
        policy=policy,
        reference=tiny_policy(),
        value_model=value_model,
        reward=count_a,
        tokenizer=word_tokenizer(),
        prompts=PROMPTS,
        config=tiny_config(episodes=48, target_kl=1.0, normalise_scores=True),
        seed=3,
        checkpoint_folder=folder / "checkpoints",
        log=log,
        log_samples=lambda step, rows: None,
    )
    weights = torch.cat([parameter.detach().flatten() for model in (policy, value_model) for parameter in model.parameters()])
    torch.save({"weights": weights, "history": history}, folder / f"result-{PartialState().process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
