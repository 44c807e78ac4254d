"""Aligns a policy by reinforcement learning: the policy samples completions during training, and a reward scores them.

Reads `artifacts/policy/<init>`, `artifacts/reward/<reward>` and the rollout prompts in `artifacts/data/prompts`; writes `artifacts/policy/<entry>`,
`artifacts/figures/rl/<entry>.json`, a training curve, and in `artifacts/steps/<entry>` the policies after the steps that `keep_steps` names.

Each method is a package of plumbline/methods/online, which names its paper and its deviations; conf/method/<method>.yaml has its values.
Every method works with every kind of reward. GRPO and RLOO may let the engine's server draw completions (`sampler: server`). Watch the KL as
well as the reward: a reward that rises at a KL of tens of nats is the reward model's error.
"""

import importlib
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.methods.job import HERE, SERVER, OnlineJob
from plumbline.methods.keeping import write_kept
from plumbline.pipeline.composing import entry_name, method_module, register, typed
from plumbline.pipeline.engine import Engine
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.launcher import Launcher
from plumbline.pipeline.records import write_json
from plumbline.rewards.reward import modules_of

PROMPTS = Path("artifacts/data/prompts/train.jsonl")
HEADLINE = ("kl_k1", "kl_k1_per_token", "kl_k3_per_token", "entropy", "end_of_turn_fraction", "length_tokens")
"""The figures that MLflow shows first. The reward is the last value of `train/reward`: there, `reward` is that of an evaluation, of other prompts."""


@dataclass
class RlStage:
    """The config of the stage; `rl` is an entry, in the schema of its method."""

    seed: int = MISSING
    threads: int = MISSING
    launcher: Launcher = field(default_factory=Launcher)
    engine: Engine = field(default_factory=Engine)
    rl: Any = MISSING

    @property
    def drawing_engine(self) -> Engine:
        """What draws completions: the recipe's engine if the entry says so, else the training process, whatever the engine is."""
        return self.engine if self._served else Engine()

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        if not self._served or self.engine.server:
            return []
        return [
            "rl.sampler: expected here with an engine without a server, found server. Set engine to vllm, or another of conf/engine/ with a server, "
            "or sampler to here"
        ]

    @property
    def _served(self) -> bool:
        return getattr(self.rl, "sampler", HERE) == SERVER  # PPO has none


def run(config: RlStage, entry: str) -> None:
    """Trains the policy of one entry."""
    config = replace(config, engine=config.drawing_engine)  # an engine that draws nothing does not belong to the computation
    settings = config.rl
    init, reward = Path("artifacts/policy") / settings.init, Path("artifacts/reward") / settings.reward
    loads = chain([method_module("rl", settings.method)], modules_of(reward))
    with executing("rl", entry, config, [init, reward, PROMPTS], loads) as work:
        from plumbline.models.determinism import make_deterministic
        from plumbline.models.model_card import origin_of, write_card
        from plumbline.models.training_memory import require_memory

        make_deterministic(config.seed, config.threads)
        require_memory(settings, settings.method, init)
        policy = work.output(f"artifacts/policy/{entry}")
        with work.checkpoints() as checkpoints:
            job = OnlineJob(
                init=init,
                output=policy,
                curve=work.output(f"artifacts/curves/rl/{entry}.csv"),
                checkpoints=checkpoints,
                run=work.run,
                seed=config.seed,
                reward=reward,
                prompts=PROMPTS,
                server=config.engine.server,
            )
            figures = importlib.import_module(method_module("rl", settings.method)).align(settings, job)
            write_kept(checkpoints, work.output(f"artifacts/steps/{entry}"), getattr(settings, "keep_steps", []))
        did = f"trained `{settings.init}` by `{settings.method}` on the reward `{settings.reward}`"
        write_card(work, policy, did=did, values=asdict(settings), figures=figures, origin=origin_of(init), seed=config.seed)
        write_json(work.output(f"artifacts/figures/rl/{entry}.json"), figures)
        work.run.log_figures(figures, HEADLINE)


@hydra.main(version_base=None, config_path="../conf", config_name="rl")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("rl"))


if __name__ == "__main__":
    register("rl", RlStage)
    main()
