"""Trains a reward model on preferences, or a cost model on preferences for harmlessness.

Reads `artifacts/<signal>` (preferences) and `artifacts/policy/<init>`. Writes `artifacts/reward/<entry>`, a training curve, and the figures on
held-out preferences in `artifacts/figures/reward_model`: `<entry>.json`, and accuracy by margin in `<entry>.calibration.csv`.

The loss is Bradley–Terry, −log σ(r(chosen) − r(rejected)) (InstructGPT, arXiv:2203.02155, Eq. 1), minimised by TRL's trainer, starting from the
SFT model. `margin_scale` adds Llama 2's margin. `whole_prompts` makes InstructGPT's batches, but pairs are weighted alike here, prompts there.
`kind: cost` is Safe RLHF's cost model (arXiv:2310.12773). The figure to look at is `accuracy` on held-out preferences: below 60 %, nothing
should be optimised against the model. It takes half a minute on two cores.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.models.training_values import Lora, Validated
from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.execution import Work, executing, launched
from plumbline.pipeline.launcher import Launcher
from plumbline.pipeline.ranges import NOT_NEGATIVE, outside
from plumbline.pipeline.records import read_rows, replacing, stream_rows, write_json
from plumbline.pipeline.row_index import RowIndex
from plumbline.rewards.margins import (
    Bin,
    calibration,
    calibration_error,
    label_margin,
    order_by_prompt,
    sign_accuracy,
    wilson_interval,
    with_margins,
)
from plumbline.rewards.reward import describe, load_reward
from plumbline.rows import PREFERENCES, Row, prompt_key, text_of

KINDS = ("preference", "cost")
HEADLINE = ("accuracy", "sign_accuracy", "margin", "calibration_error")
"""The figures that MLflow shows first."""


@dataclass
class RewardModelEntry(Validated, Lora):
    """One entry of params.yaml's `reward_model`; values and their meaning: conf/reward_model.yaml."""

    kind: str = MISSING
    init: str = MISSING
    signal: str = MISSING
    boundary: float = MISSING
    margin_scale: float = MISSING
    whole_prompts: bool = MISSING
    centring: float = MISSING

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        unknown = [] if self.kind in KINDS else [f"kind: expected one of {', '.join(KINDS)}, found {self.kind!r}"]
        weights = outside(self, margin_scale=NOT_NEGATIVE, centring=NOT_NEGATIVE)
        return [*unknown, *super().problems(), *self.lora_problems(), *weights]


@dataclass
class RewardModelStage:
    """The values that decide a reward model."""

    seed: int = MISSING
    threads: int = MISSING
    launcher: Launcher = field(default_factory=Launcher)
    reward_model: RewardModelEntry = field(default_factory=RewardModelEntry)


def train_model(config: RewardModelStage, entry: str, work: Work, init: Path, signal: Path) -> dict[str, Any]:
    """Trains a sequence classifier on preferences, saves it, and returns its figures on the held-out ones."""
    from plumbline.models.determinism import make_deterministic
    from plumbline.models.training_memory import require_memory

    settings = config.reward_model
    make_deterministic(config.seed, config.threads)
    require_memory(settings, "reward_model", init)
    reader = f"reward_model.{entry}"
    held_out = read_rows(signal / "validation.jsonl", PREFERENCES, reader)
    validation = [*training_rows(settings, held_out)]
    preferences = stream_rows(signal / "train.jsonl", PREFERENCES, reader)
    order = None
    if settings.whole_prompts:
        order = order_by_prompt((prompt_key(row["prompt"]) for row in preferences), settings.batch_size, config.seed)
        preferences = RowIndex(signal / "train.jsonl").rows(order.rows)
    rows: dict[str, Iterable[Row]] = {"train": training_rows(settings, preferences), "validation": validation}
    folder = fit(config, entry, work, init, rows, in_order=order is not None)
    describe(folder, "model")
    metrics, bins = held_out_figures(folder, validation, [label_margin(row) for row in held_out])
    if order:
        metrics["prompts_split"] = order.split_count
    describe(folder, "model", **metrics)
    write_calibration(work, entry, bins)
    return metrics


def training_rows(settings: RewardModelEntry, preferences: Iterable[Row]) -> Iterator[Row]:
    """Preferences as the trainer of this kind of model takes them, one after another."""
    if settings.kind == "cost":
        from plumbline.rewards.cost import cost_rows

        return cost_rows(preferences, settings.boundary)
    return with_margins(preferences, settings.margin_scale)


def fit(
    config: RewardModelStage, entry: str, work: Work, init: Path, rows: Mapping[str, Iterable[Row]], *, in_order: bool
) -> Path:
    """Trains the model, writes its training curve and returns its folder.

    in_order: take the training rows as they come instead of shuffling them.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    from plumbline.models.adapters import lora_config, merged
    from plumbline.models.batching import mixed_batches
    from plumbline.models.chat import encode_preferences
    from plumbline.models.curves import curve_rows, write_curve
    from plumbline.models.loading import as_saved, training_dtype
    from plumbline.models.rows_on_disk import rows_on_disk
    from plumbline.models.saving import whole_model
    from plumbline.models.training import train, trainer_arguments
    from plumbline.rewards.cost import CostCollator, CostTrainer
    from plumbline.rewards.model import with_float32_head

    settings = config.reward_model
    is_cost = settings.kind == "cost"
    tokenizer = AutoTokenizer.from_pretrained(init)
    # the head is new; it finds the last position of a sequence by the padding token
    load = partial(
        AutoModelForSequenceClassification.from_pretrained,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        dtype=training_dtype(settings.lora_rank),
    )
    with work.checkpoints() as checkpoints:
        encode = partial(encode_preferences, tokenizer)
        tables = {split: rows_on_disk(of_split, encode, checkpoints / f"{split}.arrow") for split, of_split in rows.items()}
        model = load(init)
        kind = CostTrainer if is_cost else RewardTrainer
        trainer = (kind if in_order else mixed_batches(kind))(
            model=with_float32_head(model),
            args=RewardConfig(
                **trainer_arguments(settings, checkpoints, config.seed),
                max_length=None,
                # not for a cost, whose zero has a meaning
                center_rewards_coefficient=None if is_cost else settings.centring or None,
                train_sampling_strategy="sequential",
            ),
            data_collator=CostCollator(pad_token_id=tokenizer.pad_token_id) if is_cost else None,
            train_dataset=tables["train"],
            eval_dataset=tables["validation"],
            processing_class=tokenizer,
            peft_config=lora_config(settings, head="score"),
        )
        train(trainer, checkpoints)
        model = whole_model(trainer, init, load)
    folder = work.output(f"artifacts/reward/{entry}")
    as_saved(merged(model, folder, settings), init).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_curve(work.output(f"artifacts/curves/reward_model/{entry}.csv"), curve_rows(trainer.state.log_history), work.run)
    return folder


def write_calibration(work: Work, entry: str, bins: Sequence[Bin]) -> None:
    """Writes accuracy by margin as CSV, for plots, and logs it as a table."""
    rows = [one._asdict() for one in bins]
    with replacing(work.output(f"artifacts/figures/reward_model/{entry}.calibration.csv")) as file:
        table = csv.DictWriter(file, Bin._fields, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    work.run.log_table("calibration", rows)


def held_out_figures(
    folder: Path, rows: Sequence[Row], label_margins: Sequence[float | None]
) -> tuple[dict[str, Any], list[Bin]]:
    """How well a reward model orders preferences that it was not trained on: its figures, and its accuracy by margin.

    rows: as trained on; for a cost model `chosen` is the more harmful side, and there are `signs`.
    label_margins: how much better each preferred completion is according to the judge; None if unknown.

    `accuracy` counts a tie as half and has a 95 % interval (Wilson). `calibration_error` is the distance between σ(margin), the model's
    probability for its own preference, and how often that is right. `sign_accuracy` is how often a cost lies on its side of zero.
    """
    reward = load_reward(folder)
    chosen, rejected = (
        reward([row["prompt"] for row in rows], [text_of(row[side]) for row in rows]) for side in ("chosen", "rejected")
    )
    margins = [better - worse for better, worse in zip(chosen, rejected, strict=True)]
    accuracy = sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(margins)
    low, high = wilson_interval(accuracy, len(margins))
    mean = sum(chosen + rejected) / (2 * len(rows))
    bins = calibration(margins, label_margins)
    figures = {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "n": len(rows),
        "margin": sum(margins) / len(margins),
        "reward_mean": mean,
        "reward_std": (sum((value - mean) ** 2 for value in chosen + rejected) / (2 * len(rows))) ** 0.5,
        "calibration_error": calibration_error(bins),
    }
    if rows and "signs" in rows[0]:
        figures["sign_accuracy"] = sign_accuracy(chosen + rejected, [row["signs"][side] for side in (0, 1) for row in rows])
    return figures, bins


def run(config: RewardModelStage, entry: str) -> None:
    """Trains the reward model of one entry."""
    settings = config.reward_model
    init, signal = Path("artifacts/policy") / settings.init, Path("artifacts") / settings.signal
    with executing("reward_model", entry, config, [init, signal]) as work:
        metrics = train_model(config, entry, work, init, signal)
        write_json(work.output(f"artifacts/figures/reward_model/{entry}.json"), metrics)
        work.run.log_figures(metrics, HEADLINE)
        work.run.log_model(entry, "reward", work.root / f"artifacts/reward/{entry}", "")


@hydra.main(version_base=None, config_path="../conf", config_name="reward_model")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("reward_model"))


if __name__ == "__main__":
    register("reward_model", RewardModelStage)
    main()
