"""Makes a reward: a model of preferences or of costs, the verifier, rules, checked answers, a judge, or a weighted sum of two rewards.

Reads `artifacts/<signal>` (preferences, or prompts with references), `artifacts/policy/<init>` and conf/judge; writes `artifacts/reward/<entry>`,
`metrics/reward/<entry>.json`, a training curve and accuracy by margin (`artifacts/calibration/<entry>.csv`).

Bradley–Terry: loss −log σ(r(chosen) − r(rejected)) (InstructGPT, arXiv:2203.02155, Eq. 1), by TRL's trainer, from the SFT model; with
`margin_scale` Llama 2's margin loss, with `whole_prompts` InstructGPT's batches (each pair counts alike here, there each prompt does). What
to look at is `accuracy` on held-out preferences: below 60 %, nothing should be optimised against it. Half a minute on two cores.
"""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hydra
from omegaconf import MISSING, DictConfig

from stages.models.rewards import DESCRIPTION, VERIFIED, load_reward
from stages.models.training import Lora, Optimisation
from stages.pipeline.composing import entry_name, register, typed
from stages.pipeline.execution import Work, executing, explained, input_digest
from stages.pipeline.records import PREFERENCES, read_rows, replacing, write_json, write_jsonl
from stages.rewards.algebra import Algebra
from stages.rewards.judged import complaint, described
from stages.rewards.maths import require_readable
from stages.rewards.preferences import (
    Bin,
    calibration,
    calibration_error,
    label_margin,
    order_by_prompt,
    sign_accuracy,
    wilson_interval,
    with_margins,
)
from stages.rewards.references import REFERENCES, collect, key_of
from stages.rewards.rules import Rule, complaints
from stages.rewards.sandbox import Limits, require_isolation

KINDS = ("model", "cost", "verifier", "sum", "rules", "math", "code", "judge")
TRAINED = ("model", "cost")


@dataclass
class RewardEntry(Optimisation, Lora):
    """One entry of params.yaml's `reward`; values and their meaning: conf/reward.yaml."""

    kind: str = MISSING
    init: str = MISSING
    signal: str = MISSING
    second: str = MISSING
    judge: str = MISSING
    weight: float = MISSING
    second_weight: float = MISSING
    measure: str = MISSING
    rules: dict[str, Rule] = field(default_factory=dict)
    isolation: str = MISSING
    limits: Limits = field(default_factory=Limits)
    boundary: float = MISSING
    margin_scale: float = MISSING
    whole_prompts: bool = MISSING
    centring: float = MISSING


@dataclass
class RewardStage:
    """What decides a reward."""

    seed: int = MISSING
    threads: int = MISSING
    reward: RewardEntry = field(default_factory=RewardEntry)
    judge: Any = MISSING


def train_model(config: RewardStage, entry: str, work: Work, init: Path, signal: Path) -> dict[str, Any]:
    """Trains a sequence classifier on preferences, saves it and returns how it does on the held-out ones."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    from stages.models.chat import encode_preferences
    from stages.models.loading import training_dtype
    from stages.models.training import curve_rows, lora_config, make_deterministic, merged, train, trainer_arguments, write_curve
    from stages.rewards.cost import CostCollator, CostTrainer, cost_rows

    settings = config.reward
    make_deterministic(config.seed, config.threads)
    splits = {split: read_rows(signal / f"{split}.jsonl", PREFERENCES, f"reward.{entry}") for split in ("train", "validation")}
    order = None
    if settings.whole_prompts:
        order = order_by_prompt([key_of(row["prompt"]) for row in splits["train"]], settings.batch_size, config.seed)
        splits["train"] = [splits["train"][place] for place in order.rows]
    is_cost = settings.kind == "cost"
    rows = {
        split: cost_rows(given, settings.boundary) if is_cost else with_margins(given, settings.margin_scale)
        for split, given in splits.items()
    }
    tokenizer = AutoTokenizer.from_pretrained(init)
    datasets = {split: Dataset.from_list(encode_preferences(tokenizer, given)) for split, given in rows.items()}
    # the head is new, and the pad token tells it which position is the last
    model = AutoModelForSequenceClassification.from_pretrained(
        init, num_labels=1, pad_token_id=tokenizer.pad_token_id, dtype=training_dtype(settings.lora_rank)
    )
    with work.checkpoints() as checkpoints:
        trainer = (CostTrainer if is_cost else RewardTrainer)(
            model=model,
            args=RewardConfig(
                **trainer_arguments(settings, checkpoints, config.seed),
                max_length=None,
                center_rewards_coefficient=None
                if is_cost
                else settings.centring or None,  # a cost's zero has a meaning of its own
                train_sampling_strategy="sequential" if order else "random",
            ),
            data_collator=CostCollator(pad_token_id=tokenizer.pad_token_id) if is_cost else None,
            train_dataset=datasets["train"],
            eval_dataset=datasets["validation"],
            processing_class=tokenizer,
            peft_config=lora_config(settings, head="score"),
        )
        train(trainer, checkpoints)
    folder = work.output(f"artifacts/reward/{entry}")
    merged(trainer.model, folder, settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / DESCRIPTION, {"kind": "model"})
    write_curve(work.output(f"artifacts/curves/reward/{entry}.csv"), curve_rows(trainer.state.log_history), work.run)
    told = [label_margin(row) for row in splits["validation"]]
    metrics, bins = held_out_figures(
        folder, [{**row, "told": margin} for row, margin in zip(rows["validation"], told, strict=True)]
    )
    if order:
        metrics["prompts_split"] = order.split_count
    write_json(folder / DESCRIPTION, {"kind": "model", **metrics})
    write_calibration(work, entry, bins)
    return metrics


def write_calibration(work: Work, entry: str, bins: Sequence[Bin]) -> None:
    """Writes accuracy by margin as CSV, to plot, and logs it as a table."""
    rows = [one._asdict() for one in bins]
    with replacing(work.output(f"artifacts/calibration/{entry}.csv")) as file:
        table = csv.DictWriter(file, Bin._fields, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    work.run.log_table("calibration", rows)


def held_out_figures(folder: Path, rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[Bin]]:
    """How a reward orders preferences that it was not trained on: `accuracy` (a tie counts half) with a 95 % interval (Wilson).

    Rows are as trained on, with the judge's margin as `told`; those of a cost model have `signs`, and `sign_accuracy` is how often a cost lies on
    its side of zero.
    `calibration_error` is how far σ(margin), the probability that the model gives its own preference, lies from how often it is right;
    the bins say where.
    """
    reward = load_reward(folder)
    chosen, rejected = (
        reward([row["prompt"] for row in rows], [row[side][0]["content"] for row in rows]) for side in ("chosen", "rejected")
    )
    margins = [better - worse for better, worse in zip(chosen, rejected, strict=True)]
    accuracy = sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(margins)
    low, high = wilson_interval(accuracy, len(margins))
    mean = sum(chosen + rejected) / (2 * len(rows))
    bins = calibration(margins, [row["told"] for row in rows])
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


def check_entry(config: RewardEntry, judge: Any, entry: str) -> None:
    """Requires a kind that there is, and values that fit it; `judge` is the configuration of the one that the entry names.

    Raises:
        ValueError: with what does not fit and what would.
    """
    where = f"params.yaml: reward.{entry}"
    if config.kind not in KINDS:
        raise ValueError(f"{where}.kind: expected one of {', '.join(KINDS)}, found {config.kind!r}")
    if config.kind == "sum" and not (
        config.signal.startswith("reward/") and config.second not in ("none", config.signal.removeprefix("reward/"))
    ):
        raise ValueError(
            f"{where}: kind: sum: expected `signal: reward/<one>` and `second: <another>`, found {config.signal} and {config.second}. "
            "Of more than two, chain: a sum whose signal is a sum"
        )
    if config.kind == "verifier" and config.measure not in VERIFIED:
        raise ValueError(f"{where}.measure: expected one of {', '.join(VERIFIED)}, found {config.measure!r}")
    if config.kind == "rules" and (found := complaints(config.rules)):
        raise ValueError("\n- ".join([f"{where}.rules:", *found]))
    if config.kind == "judge" and (why := complaint(judge)):
        raise ValueError(f"{where}.judge: {why}")
    if config.kind != "judge" and config.judge != "none":
        raise ValueError(
            f"{where}.judge: expected none, since kind: {config.kind} asks no judge, found {config.judge}: set `kind: judge` for its "
            "ratings as the reward"
        )


def describe(stage: RewardStage, entry: str, work: Work) -> dict[str, Any]:
    """Writes a reward that is not trained: the verifier, rules, references to check against, a judge as it is configured, or a sum that
    names its parts with their digests."""
    config = stage.reward
    description: dict[str, Any] = {"kind": config.kind}
    if config.kind == "judge":
        description |= described(stage.judge, config.judge, stage.seed)
    if config.kind == "verifier":
        description["measure"] = config.measure
    if config.kind == "rules":
        description["rules"] = {name: asdict(rule) for name, rule in config.rules.items()}
    if config.kind == "sum":
        parts = {config.signal.removeprefix("reward/"): config.weight, config.second: config.second_weight}
        description["parts"] = [
            {"reward": name, "weight": weight, "digest": input_digest(f"artifacts/reward/{name}")}
            for name, weight in parts.items()
        ]
    if config.kind == "code":
        require_isolation(config.isolation)
        description |= {"isolation": config.isolation, "limits": asdict(config.limits)}
    folder = work.output(f"artifacts/reward/{entry}")
    metrics: dict[str, Any] = {"accuracy": None, "n": 0}
    if config.kind in ("math", "code"):
        references, without = collect(Path("artifacts") / config.signal, "answer" if config.kind == "math" else "tests")
        if config.kind == "math":
            require_readable((str(row["answer"]) for row in references), Algebra())
        write_jsonl(folder / REFERENCES, references)
        metrics |= {"references": len(references), "prompts_without": without}
    write_json(folder / DESCRIPTION, description)
    work.output(f"artifacts/curves/reward/{entry}.csv").write_text("step\n")
    write_calibration(work, entry, [])
    return metrics


def run(config: RewardStage, entry: str) -> None:
    """Trains or describes the reward of one entry."""
    settings = config.reward
    init, signal = Path("artifacts/policy") / settings.init, Path("artifacts") / settings.signal
    check_entry(settings, config.judge, entry)
    with executing("reward", entry, config, [init, signal, Path("artifacts/reward") / settings.second]) as work:
        trained = settings.kind in TRAINED
        metrics = train_model(config, entry, work, init, signal) if trained else describe(config, entry, work)
        write_json(work.output(f"metrics/reward/{entry}.json"), metrics)
        work.run.log_metrics({name: value for name, value in metrics.items() if value is not None})


@hydra.main(version_base=None, config_path="../conf", config_name="reward")
@explained
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("reward"))


if __name__ == "__main__":
    register("reward", RewardStage)
    main()
