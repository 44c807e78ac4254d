"""Runs the methods that stand on TRL's trainers on a policy of a few thousand parameters, and stops them like a crash."""

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from ppo_tiny import PROMPTS, tiny_policy, word_tokenizer
from transformers import Trainer

from plumbline.methods.job import OfflineJob, OnlineJob
from plumbline.methods.keeping import write_kept
from plumbline.models.determinism import make_deterministic
from plumbline.models.saving import save_policy
from plumbline.pipeline.composing import CONF, schema_module, size_section
from plumbline.pipeline.engine import Server
from plumbline.pipeline.records import write_json, write_jsonl
from plumbline.pipeline.tracking import Run
from plumbline.rows import Row, assistant

GROUPS = ("grpo", "rloo")
ROWS = {"train": 24, "validation": 6}
"""Rows of each split. An epoch of three steps of eight rows ends between checkpoints."""
SMALL: dict[str, Any] = {"batch_size": 8, "micro_batch_size": 4, "max_steps": 4, "checkpoint_every": 2, "learning_rate": 1e-3}
SMALL_OFFLINE: dict[str, Any] = {"evaluate_every": 2, "signal": "label/round1"}
SMALL_GROUPS: dict[str, Any] = {
    "num_generations": 4,
    "rollout_batch_size": 8,
    "max_new_tokens": 6,
    "min_reward_accuracy": 0.0,
    "reward": "digits",
}


def pairs(count: int) -> list[Row]:
    """Preferences for answers made of `a`."""
    return [
        {
            "prompt": PROMPTS[i % len(PROMPTS)],
            "chosen": assistant("a " * (1 + i % 3)),
            "rejected": assistant("c d" if i % 2 else "d d d"),
        }
        for i in range(count)
    ]


def write_inputs(folder: Path) -> Path:
    """A policy, preferences, demonstrations, prompts, and a reward of 1 for each answer with a digit, which no word has."""
    save_policy(tiny_policy(), word_tokenizer(), folder / "policy/sft")
    for split, count in ROWS.items():
        write_jsonl(folder / f"label/round1/{split}.jsonl", pairs(count))
        demonstrations = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs(count)]
        write_jsonl(folder / f"data/sft/{split}.jsonl", demonstrations)
    write_jsonl(folder / "data/prompts/train.jsonl", [{"id": str(i), "prompt": prompt} for i, prompt in enumerate(PROMPTS)])
    rules = {"digits": {"kind": "digits", "weight": 1.0}}
    write_json(folder / "reward/digits/reward.json", {"kind": "rules", "rules": rules})
    return folder


def module_of(method: str) -> Any:
    """The module of a method."""
    return importlib.import_module(str(schema_module("method", method)))


def config_of(method: str, **changes: Any) -> Any:
    """A method's conf file in its schema, with the values for a tiny model, shrunk."""
    schema = module_of(method).SCHEMAS[f"{method}_schema"]
    values = OmegaConf.load(CONF / f"method/{method}.yaml")
    del values["defaults"]
    small = SMALL | (SMALL_GROUPS if method in GROUPS else SMALL_OFFLINE) | {"init": "sft"} | changes
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values, size_section("tiny", method), small))


def run_align(folder: Path, method: str, name: str = "new", server: Server | None = None, **changes: Any) -> dict[str, float]:
    """Trains policy/<name> below a folder that `write_inputs` has filled; checkpoints stay if training crashes.

    server: draws the completions of GRPO and RLOO; None for the process itself.
    """
    make_deterministic(3, 1)
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    common: dict[str, Any] = {
        "init": folder / "policy/sft", "output": folder / "policy" / name, "curve": folder / f"{name}.csv",
        "checkpoints": checkpoints, "run": Run(), "seed": 3,
    }  # fmt: skip
    if method in GROUPS:
        prompts = folder / "data/prompts/train.jsonl"
        job: Any = OnlineJob(**common, reward=folder / "reward/digits", prompts=prompts, server=server)
        changes = {"sampler": "server"} | changes if server else changes
    else:
        job = OfflineJob(**common, signal=folder / ("data/sft" if method == "sft" else "label/round1"))
    figures: dict[str, float] = module_of(method).align(config_of(method, **changes), job)
    write_kept(checkpoints, folder / "steps" / name, changes.get("keep_steps", []))  # as the stage does
    shutil.rmtree(checkpoints)
    return figures


def outputs(folder: Path, name: str = "new") -> list[bytes]:
    """What must be the same in every run: the policy's weights and the curve."""
    return [(folder / "policy" / name / "model.safetensors").read_bytes(), (folder / f"{name}.csv").read_bytes()]


class Crashed(Exception):
    """Stands for a killed process."""


def crash_after(step: int) -> Callable[..., Any]:
    """Trainer's last method of a step, which raises Crashed after step `step`; a run that resumes later never gets there."""
    original = Trainer._maybe_log_save_evaluate

    def saving(self: Trainer, *arguments: Any, **keywords: Any) -> Any:
        result = original(self, *arguments, **keywords)
        if self.state.global_step == step:
            raise Crashed
        return result

    return saving


def recorded_steps(patch: pytest.MonkeyPatch) -> list[int]:
    """A list that receives the number of each step that is trained from now on."""
    steps: list[int] = []
    original = Trainer.training_step

    def recording(self: Trainer, *arguments: Any, **keywords: Any) -> Any:
        steps.append(self.state.global_step)
        return original(self, *arguments, **keywords)

    patch.setattr(Trainer, "training_step", recording)
    return steps
