"""A project with every stage that trains in several processes, shrunk to a policy of a few thousand parameters and a few steps."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from aligning import pairs, write_inputs
from omegaconf import OmegaConf
from safetensors.torch import load_file

from plumbline.pipeline.records import write_jsonl
from tests.conftest import ROOT

SHORT: dict[str, Any] = {
    "batch_size": 8, "micro_batch_size": 2, "max_steps": 4, "checkpoint_every": 2, "learning_rate": 1e-3, "max_grad_norm": 100.0
}  # fmt: skip
OFFLINE = SHORT | {"evaluate_every": 4, "init": "base"}
ONLINE = {"init": "base", "reward": "digits", "rollout_batch_size": 8, "max_new_tokens": 6, "min_reward_accuracy": 0.0}

NODES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", SHORT | {"evaluate_every": 4}),
    "rm": ("reward_model", OFFLINE | {"signal": "label/round1"}),
    "dpo": ("align", OFFLINE | {"method": "dpo", "signal": "label/round1"}),
    "kto": ("align", OFFLINE | {"method": "kto", "signal": "label/round1", "micro_batch_size": 4}),
    "orpo": ("align", OFFLINE | {"method": "orpo", "signal": "label/round1", "lora_rank": 2}),
    "grpo": ("rl", SHORT | ONLINE | {"method": "grpo", "num_generations": 4}),
    "rloo": ("rl", SHORT | ONLINE | {"method": "rloo", "num_generations": 4}),
    "ppo": ("rl", ONLINE | {"method": "ppo", "episodes": 16, "batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-3, "checkpoint_every": 1}),
}  # fmt: skip
"""Each method's stage and values: every step has the same rows in one process and in two, for a micro-batch is one wherever it is computed."""


def command(name: str) -> tuple[list[str], str]:
    """A node's arguments for `python -m`, and its name in DVC."""
    stage = NODES[name][0]
    return ([f"stages.{stage}"], stage) if stage == name else ([f"stages.{stage}", f"{stage}={name}"], f"{stage}@{name}")


class Project:
    """A folder with the inputs of every stage that trains, in which stages run as DVC runs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_inputs(folder / "artifacts")
        (folder / "artifacts/policy/sft").rename(folder / "artifacts/policy/base")
        for split, count in (("train", 64), ("validation", 8)):
            write_jsonl(folder / f"artifacts/label/round1/{split}.jsonl", pairs(count))
            demonstrations = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs(count)]
            write_jsonl(folder / f"artifacts/data/sft/{split}.jsonl", demonstrations)
        recipe: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/recipe/default.yaml"))
        sections: dict[str, Any] = {"align": {}, "rl": {}, "reward_model": {}}
        for name, (stage, values) in NODES.items():
            sections.get(stage, {})[name] = values
        OmegaConf.save(recipe | sections | {"threads": 1, "sft": NODES["sft"][1]}, folder / "params.yaml")

    def start(self, name: str, *overrides: str, **environment: str) -> subprocess.Popen[str]:
        arguments, node = command(name)
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_STAGE": node, **environment}
        return subprocess.Popen(
            [sys.executable, "-m", *arguments, *overrides], cwd=self.folder, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )  # fmt: skip

    def run(self, name: str, *overrides: str, **environment: str) -> Mapping[str, torch.Tensor]:
        """Runs a node and returns the weights that it wrote."""
        process = self.start(name, *overrides, **environment)
        out, errors = process.communicate()
        assert process.returncode == 0, f"{out[-2000:]}\n{errors[-4000:]}"
        return load_file(self.made(name) / "model.safetensors")

    def made(self, name: str) -> Path:
        return self.folder / "artifacts" / ("reward" if NODES[name][0] == "reward_model" else "policy") / name
