"""Rejection sampling: selects among each prompt's completions by a reward.

Reads `artifacts/sample/<sample>` and `artifacts/reward/<reward>`; writes `artifacts/reject/<entry>/{train,validation}.jsonl` (demonstrations
for `method: sft`, or preferences) and `artifacts/figures/reject/<entry>.json`. For a hard limit on a cost, `filter` the sample first.

The strategies are best of n (Llama 2, arXiv:2307.09288, §3.2.3), a threshold or a fraction (RAFT, arXiv:2304.06767), and statistical rejection
sampling (RSO, arXiv:2309.06657), whose accepted completions can be paired into preferences. The figure to look at is `reward_gain`, the mean
reward of the kept completions minus that of all. It takes seconds.

Memory holds one shard of the sample. Scoring and selecting are two passes, because a fraction of the whole sample is known only when all is scored.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import numpy as np
from omegaconf import MISSING, DictConfig

from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.engine import Engine
from plumbline.pipeline.execution import Work, executing, launched
from plumbline.pipeline.ranges import BELOW_ONE, NOT_NEGATIVE, POSITIVE, Range, outside
from plumbline.pipeline.records import stream_jsonl, write_json, write_jsonl
from plumbline.pipeline.shard_files import read_shard, shard_paths
from plumbline.pipeline.shard_work import as_lines, by_shard, counts, only_here, write_counts
from plumbline.pipeline.shard_workers import Compute
from plumbline.rewards.rejection import Floats, best, matches, reject_statistically, top_fraction_threshold
from plumbline.rewards.reward import asks_judge, finishing, load_reward, modules_of, score, spending, spent
from plumbline.rows import Row, held_out, last_turn, text_of

STRATEGIES = ("best", "threshold", "fraction", "statistical")
PAIRS = ("none", "best_vs_worst", "first_round", "tournament")
NONE = "none"
SPLITS = ("train", "validation")
REWARDS, KEPT = "rewards.npy", "kept.jsonl"
"""A shard's files: the rewards of its completions; some of those that were kept, as text."""
SHOWN = 40
"""The number of kept completions in MLflow's table."""


@dataclass
class RejectEntry:
    """One entry of params.yaml's `reject`; values and their meaning: conf/reject.yaml."""

    sample: str = MISSING
    reward: str = MISSING
    strategy: str = MISSING
    keep: int = MISSING
    threshold: float | None = MISSING
    fraction: float | None = MISSING
    beta: float | None = MISSING
    pairs: str = MISSING
    min_margin: float = MISSING
    validation_fraction: float = MISSING

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        complaints = [
            f"{key}: expected one of {', '.join(names)}, found {getattr(self, key)!r}"
            for key, names in (("strategy", STRATEGIES), ("pairs", PAIRS))
            if getattr(self, key) not in names
        ]
        if self.strategy == "best" and self.keep == 0:
            complaints.append(f"keep: expected at least 1 with strategy: best, found {self.keep}")
        share = Range("above 0 and at most 1", lambda value: 0 < value <= 1)
        complaints += outside(
            self, keep=NOT_NEGATIVE, fraction=share, beta=POSITIVE, min_margin=NOT_NEGATIVE, validation_fraction=BELOW_ONE
        )
        needed = {"threshold": "a number in units of the reward", "fraction": share.expected, "statistical": POSITIVE.expected}
        key = "beta" if self.strategy == "statistical" else self.strategy
        if self.strategy in needed and getattr(self, key) is None:
            complaints.append(f"{key}: expected {needed[self.strategy]} with strategy: {self.strategy}, found null")
        if self.pairs != NONE and self.keep == 1:
            complaints.append(f"keep: expected 2 or more, or 0, with pairs: {self.pairs}, found 1")
        return complaints


@dataclass
class RejectStage:
    """The values that decide a selection."""

    seed: int = MISSING
    threads: int = MISSING
    engine: Engine = field(default_factory=Engine)
    reject: RejectEntry = field(default_factory=RejectEntry)


def candidates(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows that may be kept, by prompt. A completion that was cut off (`finished` is false) is left out: it would teach not to stop."""
    finished: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["finished"]:
            finished[row["id"]].append(row)
    return finished


def threshold_of(entry: RejectEntry, parts: Callable[[], Iterable[Floats]]) -> float | None:
    """The lowest reward that may be kept: the entry's, or that of its fraction of all candidates, whose rewards `parts` returns; None without one."""
    if entry.strategy == "fraction" and any(len(part) for part in parts()):
        return top_fraction_threshold(parts, entry.fraction or 1.0)
    return entry.threshold


def select(by_prompt: dict[str, list[Row]], entry: RejectEntry, threshold: float | None, seed: int) -> list[list[Row]]:
    """The kept rows of each prompt that has any, by the entry's strategy. Random draws for a prompt do not depend on other prompts."""
    kept = []
    for prompt_id, rows in by_prompt.items():
        if entry.strategy == "statistical":
            rng = random.Random(f"{seed}:{prompt_id}")
            chosen = reject_statistically([row["reward"] for row in rows], entry.beta or 1.0, entry.keep, rng)
        else:
            if entry.strategy != "best":
                rows = [row for row in rows if threshold is not None and row["reward"] >= threshold]
            chosen = best([row["reward"] for row in rows], [text_of(row["completion"]) for row in rows], entry.keep)
        kept.append([rows[index] for index in chosen])
    return [rows for rows in kept if rows]


def preferences(rows: list[Row], pairs: str, min_margin: float, seed: int) -> list[Row]:
    """Preferences among one prompt's kept rows."""
    rng = random.Random(f"{seed}:pairs:{rows[0]['id']}")
    rewards, texts = [row["reward"] for row in rows], [text_of(row["completion"]) for row in rows]
    return [
        {
            "id": rows[0]["id"],
            "prompt": rows[0]["prompt"],
            "chosen": rows[match.chosen]["completion"],
            "rejected": rows[match.rejected]["completion"],
            "margin": rows[match.chosen]["reward"] - rows[match.rejected]["reward"],
            "score_chosen": rows[match.chosen]["reward"],
            "score_rejected": rows[match.rejected]["reward"],
            "policy_chosen": rows[match.chosen]["policy"],
            "policy_rejected": rows[match.rejected]["policy"],
        }
        for match in matches(range(len(rows)), rewards, texts, pairs, min_margin, rng)
    ]


def outcome(kept: list[list[Row]], entry: RejectEntry, seed: int) -> dict[str, list[Row]]:
    """The rows of each split: the kept completions as demonstrations, or preferences among them."""
    columns = ("id", "prompt", "completion", "reward", "policy", "index")
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    for rows in kept:
        split = "validation" if held_out(rows[0]["id"], entry.validation_fraction, seed) else "train"
        demonstrations = [{column: row[column] for column in columns} for row in rows]
        splits[split] += demonstrations if entry.pairs == NONE else preferences(rows, entry.pairs, entry.min_margin, seed)
    return splits


class Scored(NamedTuple):
    """A shard of the sample, and the folder with its rewards and counts."""

    file: Path
    shard: Path

    def rows(self) -> list[Row]:
        """The completions, each with its `reward`."""
        rewards = np.load(self.shard / REWARDS).tolist()
        return [{**row, "reward": value} for row, value in zip(read_shard(self.file), rewards, strict=True)]

    def candidate_rewards(self) -> Floats:
        """The rewards of the completions that may be kept."""
        return np.array([row["reward"] for rows in candidates(self.rows()).values() for row in rows])


@contextmanager
def scoring(config: RejectStage, reward: Path, run_name: str) -> Iterator[Compute]:
    """Loads the reward, and computes shards of its scores; run_name: for the budget of a reward that is a judge's rating."""
    from plumbline.models.determinism import make_deterministic

    make_deterministic(config.seed, config.threads)
    scorer = load_reward(reward, run_name)

    def compute(number: int, file: Path, shard: Path) -> None:
        rows = read_shard(file)
        with spending(scorer, shard):
            rewards, outcomes = score(scorer, rows)
        np.save(shard / REWARDS, np.array(rewards, dtype=np.float64))
        counted = {
            "completions": len(rows),
            "prompts": len({row["id"] for row in rows}),
            "unfinished": sum(not row["finished"] for row in rows),
            "reward": sum(rewards),
        }
        write_counts(shard, counted | outcomes)

    with finishing(scorer):
        yield compute


def score_shards(config: RejectStage, work: Work, checkpoints: Path, sample: Path, reward: Path) -> list[Scored]:
    """Scores the completions of each shard of the sample."""
    files = shard_paths(sample)
    # the name keeps a judge's budget: what a crashed attempt at this run has spent still counts when it runs again
    prepare = partial(scoring, config, reward, f"{work.name} {work.key}")
    shards = by_shard(checkpoints / "scored", files, prepare, None if asks_judge(reward) else config.engine)
    if ledger := spent(shards):
        work.log_timing(**ledger)
    return [*map(Scored, files, shards)]


def select_shards(config: RejectStage, checkpoints: Path, scored: Sequence[Scored]) -> list[Path]:
    """Selects among the completions of each scored shard: the rows of each split, some of the kept completions as text, and counts."""
    settings = config.reject
    threshold = threshold_of(settings, lambda: map(Scored.candidate_rewards, scored))

    def compute(number: int, source: Scored, shard: Path) -> None:
        kept = select(candidates(source.rows()), settings, threshold, config.seed)
        splits = outcome(kept, settings, config.seed)
        for split, rows in splits.items():
            write_jsonl(shard / f"{split}.jsonl", rows)
        chosen = [row for rows in kept for row in rows]
        write_jsonl(shard / KEPT, map(_shown, chosen[:SHOWN]))
        counted = {"kept": len(chosen), "prompts_kept": len(kept), "reward_kept": sum(row["reward"] for row in chosen)}
        write_counts(shard, counted | {f"rows_{split}": len(rows) for split, rows in splits.items()})

    return by_shard(checkpoints / "selected", scored, only_here(compute))


def run(config: RejectStage, entry: str) -> None:
    """Scores the completions, selects some, and writes them with their figures."""
    settings = config.reject
    sample, reward = Path("artifacts/sample") / settings.sample, Path("artifacts/reward") / settings.reward
    with executing("reject", entry, config, [sample, reward], modules_of(reward)) as work, work.checkpoints() as checkpoints:
        scored = score_shards(config, work, checkpoints, sample, reward)
        selected = select_shards(config, checkpoints, scored)
        total, chosen = counts(one.shard for one in scored), counts(selected)
        if not chosen["rows_train"]:
            raise ValueError(
                f"reject: expected completions to keep, found none among {total['completions']} "
                f"({total['completions'] - total['unfinished']} finished). Lower threshold, raise beta, or sample more"
            )
        output = work.output(f"artifacts/reject/{entry}")
        for split in SPLITS:
            as_lines(selected, f"{split}.jsonl", output / f"{split}.jsonl")
        metrics = figures(total, chosen)
        write_json(work.output(f"artifacts/figures/reject/{entry}.json"), metrics)
        work.run.log_figures(metrics)
        shown = (row for shard in selected for row in stream_jsonl(shard / KEPT))
        work.run.log_table("kept", [*islice(shown, SHOWN)])


def figures(total: dict[str, Any], chosen: dict[str, Any]) -> dict[str, float | int]:
    """Counts of the kept completions and of the prompts without any, and how far the kept rewards lie above the mean.

    total: what scoring counted, the outcomes of checks among it; chosen: what selecting counted.
    """
    total = dict(total)
    completions, prompts, unfinished, reward = (total.pop(name) for name in ("completions", "prompts", "unfinished", "reward"))
    mean, kept_mean = reward / completions, chosen["reward_kept"] / chosen["kept"]
    return {
        "completions": completions,
        "unfinished": unfinished,
        "kept": chosen["kept"],
        "kept_fraction": chosen["kept"] / completions,
        "prompts_without": prompts - chosen["prompts_kept"],
        "reward_mean": mean,
        "reward_kept": kept_mean,
        "reward_gain": kept_mean - mean,
        "rows": chosen["rows_train"] + chosen["rows_validation"],
        **dict(sorted(total.items())),
    }


def _shown(row: Row) -> Row:
    return {"prompt": last_turn(row["prompt"]), "completion": text_of(row["completion"]), "reward": row["reward"]}


@hydra.main(version_base=None, config_path="../conf", config_name="reject")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("reject"))


if __name__ == "__main__":
    register("reject", RejectStage)
    main()
