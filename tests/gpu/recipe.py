"""A small recipe to measure: a model, and rows of the closed world that are as long as those of real recipes."""

import os
import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from meter import Meter, peak_flops
from omegaconf import OmegaConf

from plumbline.models.architecture import HubModel, ScratchModel, new_model
from plumbline.models.chat import end_of_turn_id
from plumbline.models.determinism import make_deterministic
from plumbline.models.saving import save_policy
from plumbline.models.size import parameter_count, range_of
from plumbline.models.tokenizers import load_tokenizer, train_tokenizer
from plumbline.pipeline.composing import CONF, sizes
from plumbline.pipeline.execution import Work
from plumbline.pipeline.records import write_json, write_jsonl
from plumbline.pipeline.tracking import Run
from plumbline.rows import Row
from plumbline.world.generate import ClosedWorldConfig, generate
from stages.pretrain import load_existing

SEED = 17
CONTEXT_TOKENS = 2048
LARGE = {"vocabulary_size": 8192, "initializer_range": 0.02}
SHAPES: dict[str, dict[str, Any]] = {
    "150M": {"hidden_size": 768, "layers": 18, "heads": 12, "intermediate_size": 2304, **LARGE},
    "350M": {"hidden_size": 1024, "layers": 24, "heads": 16, "intermediate_size": 3072, **LARGE},
    "500M": {"hidden_size": 1280, "layers": 24, "heads": 20, "intermediate_size": 3456, **LARGE},
}
"""Sizes of Qwen3 beside that of conf/model/nano.yaml."""


class Scale(NamedTuple):
    """How much is run."""

    world: float
    """Share of the closed world's demonstrations and prompts."""
    earlier: int
    """Demonstrations that stand before each question in its prompt, which makes rows as long as those of real recipes."""
    steps: int
    """Optimiser steps of the methods that learn from rows."""
    online_steps: int
    """Rollouts of the methods that learn from a reward."""
    warm_up: int
    """Steps whose time does not count."""
    batch: int
    micro_batch: int
    rollouts: int
    """Completions of an online step."""
    group: int
    """Completions of a prompt."""
    samples: int
    new_tokens: int
    checkpoint_at: int
    """The step from which an interrupted run of SFT resumes. Like `NEVER`, it has no divisor in common with 10."""


FULL = Scale(
    world=0.5, earlier=8, steps=12, online_steps=5, warm_up=2, batch=64, micro_batch=32, rollouts=64, group=8, samples=128, new_tokens=96,
    checkpoint_at=7,
)  # fmt: skip
DRY = Scale(
    world=0.02, earlier=1, steps=2, online_steps=2, warm_up=1, batch=4, micro_batch=2, rollouts=4, group=2, samples=8, new_tokens=6,
    checkpoint_at=1,
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where and how runs take place."""

    folder: Path
    scale: Scale
    meter: Meter
    parameters: int
    threads: int
    learning_rate: float
    peak: float | None

    @property
    def base(self) -> Path:
        """The policy that every run starts from."""
        return self.folder / "artifacts/policy/base"


def prepare(folder: Path, scale: Scale, model_folder: Path | None, size: str) -> Place:
    """Writes the rows and the policy to start from, which is the model of a folder or a new one with random weights."""
    threads = min(8, os.cpu_count() or 1)
    make_deterministic(SEED, threads)
    rows = conversations(scale)
    write_rows(folder / "artifacts", rows)
    if model_folder:
        tokenizer, notes = load_tokenizer(str(model_folder))
        print(*notes, sep="\n")
        count = parameter_count(str(model_folder), None) or 0
        fitting = next(name for name in sizes() if range_of(name).holds(count))
        model = load_existing(HubModel(path=str(model_folder), size=fitting), tokenizer, work_at(folder, "pretrain", None))
    else:
        texts = (turn["content"] for row in rows for turn in row["prompt"] + row["completion"])
        shape = shape_of(size)
        tokenizer = train_tokenizer(texts, shape.vocabulary_size)
        vocabulary, end_id = len(tokenizer), end_of_turn_id(tokenizer)
        model = new_model(shape, vocabulary=vocabulary, end_id=end_id, pad_id=tokenizer.pad_token_id).to(torch.bfloat16)
    save_policy(model, tokenizer, folder / "artifacts/policy/base")
    embeddings: Any = model.get_input_embeddings()
    tied = model.config.get_text_config().tie_word_embeddings
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return Place(
        folder=folder,
        scale=scale,
        meter=Meter(embeddings.num_embeddings, tokenizer.pad_token_id),
        # a lookup of an embedding takes no arithmetic; tied embeddings are also the matrix of the output layer
        parameters=model.num_parameters() - (0 if tied else embeddings.weight.numel()),
        threads=threads,
        learning_rate=1e-5 if model_folder else 1e-4,
        peak=peak_flops(device),
    )


def shape_of(size: str) -> ScratchModel:
    """A model's sizes: those of conf/model/nano.yaml, or of SHAPES; its context is long enough for the rows."""
    values: Any = OmegaConf.load(CONF / "model/nano.yaml")
    del values["defaults"]
    context = {"context_tokens": CONTEXT_TOKENS}
    shape: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ScratchModel), values, SHAPES.get(size, {}), context))
    return shape


def conversations(scale: Scale) -> list[Row]:
    """The closed world's demonstrations, each after some others in one conversation."""
    config: Any = OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(ClosedWorldConfig), OmegaConf.load(CONF / "data/closed_world.yaml"))
    )
    text = replace(config.pretrain, documents=1, validation_documents=1)
    rows = generate(replace(config, scale=scale.world, pretrain=text), SEED).sft_train
    turns = [row["prompt"] + row["completion"] for row in rows]
    return [
        {**row, "prompt": [turn for back in range(scale.earlier, 0, -1) for turn in turns[number - back]] + row["prompt"]}
        for number, row in enumerate(rows)
    ]


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Demonstrations, preferences (rejected is the answer to another question) and prompts, and a reward by rules."""
    others = random.Random(SEED).sample(range(len(rows)), len(rows))
    demonstrations = [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": rows[other]["completion"]}
        for row, other in zip(rows, others, strict=True)
    ]
    held_out = len(rows) // 20 + 1
    for name, table in {"data/sft": demonstrations, "label/pairs": pairs}.items():
        write_jsonl(folder / name / "train.jsonl", table[held_out:])
        write_jsonl(folder / name / "validation.jsonl", table[:held_out])
    write_jsonl(folder / "data/prompts/train.jsonl", [{"id": row["id"], "prompt": row["prompt"]} for row in rows[held_out:]])
    write_json(folder / "reward/rules/reward.json", {"kind": "rules", "rules": {"digits": {"kind": "digits", "weight": 1.0}}})


def work_at(folder: Path, stage: str, entry: str | None) -> Work:
    """What a stage's functions need, without a tracked run."""
    return Work(stage, entry, folder, Run(), "gpu", [], ExitStack())
