"""Makes a reward: a model trained on preferences, the verifier, or a weighted sum of rewards.

Reads `artifacts/<signal>` (preferences) and `artifacts/policy/<init>`; writes `artifacts/reward/<entry>`, `metrics/reward/<entry>.json` and a
curve.

Bradley–Terry: loss −log σ(r(chosen) − r(rejected)) (InstructGPT, arXiv:2203.02155, Eq. 1), by TRL's trainer, from the SFT model. What to
look at is `accuracy` on held-out preferences: below 60 %, nothing should be optimised against it. Half a minute on two cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from omegaconf import MISSING, DictConfig

from stages.models.rewards import DESCRIPTION, load_reward
from stages.models.training import Optimisation
from stages.pipeline.composing import entry_name, register, typed
from stages.pipeline.execution import Work, executing, explained, input_digest
from stages.pipeline.records import read_jsonl, write_json


@dataclass
class Part:
    """One term of a weighted sum."""

    reward: str = MISSING
    weight: float = MISSING


@dataclass
class RewardEntry(Optimisation):
    """One entry of params.yaml's `reward`; values and their meaning: conf/reward.yaml."""

    kind: str = MISSING
    init: str = MISSING
    signal: str = MISSING
    parts: list[Part] = field(default_factory=list)
    centring: float = MISSING


@dataclass
class RewardStage:
    """What decides a reward."""

    seed: int = MISSING
    threads: int = MISSING
    reward: RewardEntry = field(default_factory=RewardEntry)


def train_model(config: RewardStage, entry: str, work: Work, init: Path, signal: Path) -> dict[str, Any]:
    """Trains a sequence classifier on preferences, saves it and returns how it does on the held-out ones."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    from stages.models.chat import encode_preferences
    from stages.models.training import curve_rows, make_deterministic, train, trainer_arguments, write_curve

    make_deterministic(config.seed, config.threads)
    splits = {split: read_jsonl(signal / f"{split}.jsonl") for split in ("train", "validation")}
    tokenizer = AutoTokenizer.from_pretrained(init)
    datasets = {split: Dataset.from_list(encode_preferences(tokenizer, rows)) for split, rows in splits.items()}
    # the head is new, and the pad token tells it which position is the last
    model = AutoModelForSequenceClassification.from_pretrained(init, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    with work.checkpoints() as checkpoints:
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(
                **trainer_arguments(config.reward, checkpoints, config.seed),
                max_length=None,
                center_rewards_coefficient=config.reward.centring or None,
            ),
            train_dataset=datasets["train"],
            eval_dataset=datasets["validation"],
            processing_class=tokenizer,
        )
        train(trainer, checkpoints)
    folder = work.output(f"artifacts/reward/{entry}")
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / DESCRIPTION, {"kind": "model"})
    write_curve(work.output(f"artifacts/curves/reward/{entry}.csv"), curve_rows(trainer.state.log_history), work.run)
    metrics = held_out_figures(folder, splits["validation"])
    write_json(folder / DESCRIPTION, {"kind": "model", **metrics})
    return metrics


def held_out_figures(folder: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How a reward orders preferences that it was not trained on: `accuracy` (a tie counts half) with a 95 % interval (Wilson)."""
    reward = load_reward(folder)
    chosen, rejected = (
        reward([row["prompt"] for row in rows], [row[side][0]["content"] for row in rows]) for side in ("chosen", "rejected")
    )
    margins = [better - worse for better, worse in zip(chosen, rejected, strict=True)]
    accuracy = sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(margins)
    low, high = wilson_interval(accuracy, len(margins))
    mean = sum(chosen + rejected) / (2 * len(rows))
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "n": len(rows),
        "margin": sum(margins) / len(margins),
        "reward_mean": mean,
        "reward_std": (sum((value - mean) ** 2 for value in chosen + rejected) / (2 * len(rows))) ** 0.5,
    }


def wilson_interval(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a share of `n`; 95 % by default."""
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return centre - half, centre + half


def describe(config: RewardEntry, entry: str, work: Work) -> dict[str, Any]:
    """Writes a reward that is not trained: the verifier, or a sum that names its parts with their digests."""
    description: dict[str, Any] = {"kind": config.kind}
    if config.kind == "sum":
        description["parts"] = [
            {"reward": part.reward, "weight": part.weight, "digest": input_digest(f"artifacts/reward/{part.reward}")}
            for part in config.parts
        ]
    folder = work.output(f"artifacts/reward/{entry}")
    write_json(folder / DESCRIPTION, description)
    work.output(f"artifacts/curves/reward/{entry}.csv").write_text("step\n")
    return {"accuracy": None, "n": 0}


def run(config: RewardStage, entry: str) -> None:
    """Trains or describes the reward of one entry."""
    settings = config.reward
    init, signal = Path("artifacts/policy") / settings.init, Path("artifacts") / settings.signal
    if settings.kind not in ("model", "verifier", "sum"):
        raise ValueError(f"params.yaml: reward.{entry}.kind: expected model, verifier or sum, found {settings.kind!r}")
    with executing("reward", entry, config, [init, signal] if settings.kind == "model" else []) as work:
        trained = settings.kind == "model"
        metrics = train_model(config, entry, work, init, signal) if trained else describe(settings, entry, work)
        write_json(work.output(f"metrics/reward/{entry}.json"), metrics)
        work.run.log_metrics(metrics)


@hydra.main(version_base=None, config_path="../conf", config_name="reward")
@explained
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("reward"))


if __name__ == "__main__":
    register("reward", RewardStage)
    main()
