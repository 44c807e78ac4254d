"""A PPO run in a process of its own, which tests kill or launch several times: `python ppo_run.py <folder> [<step to die at>]`.

Writes the final weights and the metrics of every step to <folder>/result-<process>.pt.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from ppo_tiny import tiny_config, trainer_of  # noqa: E402

from plumbline.methods.online.ppo.trainer import train  # noqa: E402


def main(folder: Path, die_at: int | None) -> None:
    torch.set_num_threads(1)
    trainer = trainer_of(tiny_config(episodes=48, target_kl=1.0, normalise_scores=True))

    def log(step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    history = train(trainer, folder / "checkpoints", log=log, log_samples=lambda step, rows: None)
    models = (trainer.policy, trainer.value_model)
    weights = torch.cat([parameter.detach().flatten() for model in models for parameter in model.parameters()])
    torch.save({"weights": weights, "history": history}, folder / f"result-{PartialState().process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
