"""Runs of every method on the small recipe, by the project's own functions, without DVC and MLflow."""

import hashlib
import importlib
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas
import torch
from meter import Meter, peak_gib, rates
from omegaconf import OmegaConf
from recipe import SEED, Place, work_at
from transformers import AutoTokenizer, TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from plumbline.methods.job import OfflineJob, OnlineJob
from plumbline.methods.online.ppo.networks import CompletionLogits, micro_batches
from plumbline.models.chat import prompt_ids
from plumbline.models.determinism import make_deterministic
from plumbline.models.loading import load_policy
from plumbline.models.logps import per_token_logps
from plumbline.models.memory import rows_in_cache
from plumbline.models.sampling import Sampled, sample
from plumbline.pipeline.composing import CONF, require_sound, schema_module, size_section
from plumbline.pipeline.records import read_jsonl
from plumbline.pipeline.tracking import Run
from plumbline.rows import Message
from stages.reward_model import RewardModelEntry, RewardModelStage, train_model

ONLINE = ("grpo", "rloo", "ppo")
NEVER = 9_999  # steps between checkpoints; it has no divisor in common with 10, so that every step's loss is logged (trainer_arguments)


class Interrupted(Exception):
    """Stands for a killed process."""


def config_of(place: Place, method: str, **changes: Any) -> Any:
    """A method's conf file in its schema, with the values of this recipe."""
    scale = place.scale
    module = importlib.import_module(str(schema_module("method", method)))
    values: Any = OmegaConf.load(CONF / f"method/{method}.yaml")
    del values["defaults"]
    common = {"init": "base", "bf16": True, "checkpoint_every": NEVER, "micro_batch_size": scale.micro_batch}
    online = {
        "reward": "rm", "rollout_batch_size": scale.rollouts, "max_new_tokens": scale.new_tokens, "min_reward_accuracy": 0.0,
        "learning_rate": place.learning_rate / 10,
    }  # fmt: skip
    groups = {"num_generations": scale.group, "batch_size": scale.rollouts, "max_steps": scale.online_steps}
    ppo = {
        "episodes": scale.rollouts * scale.online_steps, "batch_size": scale.rollouts // 2, "update_epochs": 2, "samples_every": NEVER,
        "sampling_batch_size": scale.rollouts, "value_learning_rate": place.learning_rate / 10,
    }  # fmt: skip
    offline = {
        "signal": "rows", "max_steps": scale.steps, "batch_size": scale.batch, "learning_rate": place.learning_rate, "evaluate_every": NEVER,
    }  # fmt: skip
    own = common | (online | (ppo if method == "ppo" else groups) if method in ONLINE else offline)
    config = OmegaConf.to_object(
        OmegaConf.merge(
            OmegaConf.structured(module.SCHEMAS[f"{method}_schema"]), values, size_section("tiny", method), own, changes
        )
    )
    require_sound(config)
    return config


def train(place: Place, name: str, method: str, *, resume_at: int | None = None, **changes: Any) -> Mapping[str, Any]:
    """Trains by a method of `align` or `rl` and returns what it cost and gave.

    resume_at: a step with a checkpoint; the run is interrupted one step later, and resumed.
    """
    if resume_at:
        changes["checkpoint_every"] = resume_at
        try:
            attempt(place, name, method, resume_at + 1, **changes)
        except Interrupted:
            pass
        else:
            raise RuntimeError(f"{name}: expected an interruption after step {resume_at + 1}, found none")
    figures = attempt(place, name, method, None, **changes)
    speed = {} if resume_at else speed_of(place, flops_per_trained=4 if changes.get("lora_rank") else 6)
    return outcome(place, name, figures, speed, online=method in ONLINE)


def attempt(place: Place, name: str, method: str, stop_after: int | None, **changes: Any) -> Mapping[str, float]:
    """One process's worth of a run."""
    make_deterministic(SEED, place.threads)
    place.meter.start()
    artifacts = place.folder / "artifacts"
    checkpoints = place.folder / "checkpoints" / name
    checkpoints.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {
        "init": place.base, "output": artifacts / "policy" / name, "curve": artifacts / f"{name}.csv",
        "checkpoints": checkpoints, "run": StepRun(place.meter, stop_after), "seed": SEED,
    }  # fmt: skip
    if method in ONLINE:
        trained = artifacts / "reward/rm"
        reward = trained if (trained / "reward.json").is_file() else artifacts / "reward/rules"
        job: Any = OnlineJob(**common, reward=reward, prompts=artifacts / "data/prompts/train.jsonl")
    else:
        job = OfflineJob(**common, signal=artifacts / ("data/sft" if method == "sft" else "label/pairs"))
    module = importlib.import_module(str(schema_module("method", method)))
    with marked(place.meter, stop_after):
        figures: Mapping[str, float] = module.align(config_of(place, method, **changes), job)
    shutil.rmtree(checkpoints)
    return figures


def train_reward_model(place: Place) -> Mapping[str, Any]:
    """Trains the reward model that the methods of `rl` learn from."""
    place.meter.start()
    scale, entry = place.scale, "rm"
    values: Any = OmegaConf.load(CONF / "reward_model.yaml").reward_model
    own = {
        "init": "base", "signal": "label/pairs", "max_steps": scale.steps, "batch_size": scale.batch, "micro_batch_size": scale.micro_batch,
        "learning_rate": place.learning_rate, "evaluate_every": NEVER, "checkpoint_every": NEVER, "bf16": True,
    }  # fmt: skip
    settings: Any = OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(RewardModelEntry), values, size_section("tiny", "reward_model"), own)
    )
    require_sound(settings)
    config = RewardModelStage(SEED, place.threads, reward_model=settings)
    work = work_at(place.folder, "reward_model", entry)
    with work.until_done, marked(place.meter, None):
        figures = train_model(config, entry, work, place.base, place.folder / "artifacts/label/pairs")
    shutil.copy(place.folder / f"artifacts/curves/reward_model/{entry}.csv", place.folder / "artifacts/reward_model.csv")
    return outcome(place, "reward_model", figures, speed_of(place, flops_per_trained=6), online=False)


def speed_of(place: Place, flops_per_trained: float) -> dict[str, Any]:
    """The speed of the run that has just ended."""
    return rates(
        place.meter.marks,
        warm_up=place.scale.warm_up,
        parameters=place.parameters,
        flops_per_trained=flops_per_trained,
        peak=place.peak,
    )


def outcome(place: Place, name: str, figures: Mapping[str, Any], speed: Mapping[str, Any], *, online: bool) -> Mapping[str, Any]:
    """What a finished run cost and gave; its policy is deleted, and the digest of its weights kept."""
    result: dict[str, Any] = {"peak_gib": peak_gib(), **speed}
    curve = pandas.read_csv(place.folder / f"artifacts/{name}.csv")
    column = "reward" if online else "loss"
    result["curve"] = {column: curve[column].dropna().tolist()}
    if online and speed:
        tokens = place.scale.rollouts * curve["length_tokens"].mean()
        result["sampled_tokens_per_second"] = tokens / speed["seconds_per_step"]
    policy = place.folder / "artifacts/policy" / name
    if policy.is_dir():
        result["weights"] = weights_digest(policy)
        shutil.rmtree(policy)
    result["figures"] = {key: value for key, value in figures.items() if isinstance(value, float) and math.isfinite(value)}
    return result


def weights_digest(folder: Path) -> str:
    """Identifies the weights in a policy's folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def marked(meter: Meter, stop_after: int | None) -> Iterator[None]:
    """Marks the end of each step of transformers' trainers, and interrupts them after a step."""

    class StepMarks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            meter.mark()
            if state.global_step == stop_after:
                raise Interrupted

    DEFAULT_CALLBACKS.append(StepMarks)
    try:
        yield
    finally:
        DEFAULT_CALLBACKS.remove(StepMarks)


class StepRun(Run):
    """Marks the end of each step of PPO, which logs a step when it ends. The other methods log their curves after training."""

    def __init__(self, meter: Meter, stop_after: int | None) -> None:
        self.meter, self.stop_after = meter, stop_after

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if "tokens_per_second" in metrics:
            self.meter.mark()
            if step is not None and step + 1 == self.stop_after:
                raise Interrupted


# ---- sampling -----------------------------------------------------------------------------------------------------------


def draw_samples(place: Place, dtype: torch.dtype) -> Mapping[str, Any]:
    """Samples twice, and compares the samples with each other and their log-probabilities with those of a forward pass."""
    make_deterministic(SEED, place.threads)
    place.meter.start()
    scale = place.scale
    tokenizer = AutoTokenizer.from_pretrained(place.base)
    model: Any = load_policy(place.base).to(dtype)
    messages: list[list[Message]] = [row["prompt"] for row in read_jsonl(place.folder / "artifacts/data/prompts/train.jsonl")]
    prompts = [ids for prompt in messages[: scale.samples // 4] for ids in 4 * [prompt_ids(tokenizer, prompt)]]
    rows = rows_in_cache(model, max(map(len, prompts)) + scale.new_tokens, 512, held=model.get_memory_footprint())

    def draw(prompts: Sequence[list[int]], new_tokens: int) -> list[Sampled]:
        return sample(model, tokenizer, prompts, max_new_tokens=new_tokens, seed=SEED, batch_size=rows, with_logps=True)

    draw(prompts[:8], 4)
    place.meter.mark()
    samples = draw(prompts, scale.new_tokens)
    place.meter.mark()
    cost = rates(place.meter.marks, warm_up=1, parameters=place.parameters, flops_per_trained=6, peak=place.peak)
    peak = peak_gib()
    completions = [one.ids for one in samples]
    gaps = torch.tensor(gaps_to_forward_pass(model, tokenizer.pad_token_id, prompts, samples, scale.micro_batch))
    return {
        **cost,
        "growth_mib": None,
        "peak_gib": peak,
        "sampled_tokens_per_second": sum(map(len, completions)) / cost["seconds_per_step"],
        "logps_gap": float(gaps.max()),
        "logps_gap_mean": float(gaps.mean()),
        "repeated": completions == [one.ids for one in draw(prompts, scale.new_tokens)],
    }


@torch.no_grad()
def gaps_to_forward_pass(
    model: Any, pad_id: int, prompts: Sequence[list[int]], samples: Sequence[Sampled], size: int
) -> list[float]:
    """|log π at sampling − log π in a forward pass over the whole completion| of every sampled token, in nats."""
    logits, gaps = CompletionLogits(model, temperature=1.0), []
    for rows, batch in micro_batches(prompts, [one.ids for one in samples], size, pad_id, model.device):
        passed = per_token_logps(logits(batch), batch.tokens).tolist()
        sampled = [logp for row in rows for logp in samples[row].per_token_logps or []]
        gaps += [abs(one - other) for one, other in zip(sampled, passed, strict=True)]
    return gaps
