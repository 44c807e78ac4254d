"""Rejection sampling: selects among each prompt's completions by a reward.

Reads `artifacts/sample/<sample>` and `artifacts/reward/<reward>`; writes `artifacts/reject/<entry>/{train,validation}.jsonl` (demonstrations
for `method: sft`, or preferences) and `artifacts/figures/reject/<entry>.json`. For a hard limit on a cost, `filter` the sample first.

The strategies are best of n (Llama 2, arXiv:2307.09288, §3.2.3), a threshold or a fraction (RAFT, arXiv:2304.06767), and statistical rejection
sampling (RSO, arXiv:2309.06657), whose accepted completions can be paired into preferences. The figure to look at is `reward_gain`, the mean
reward of the kept completions minus that of all. It takes seconds.
"""

import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.ranges import BELOW_ONE, NOT_NEGATIVE, POSITIVE, Range, outside
from plumbline.pipeline.records import read_jsonl, write_json, write_jsonl
from plumbline.rewards.rejection import best, matches, reject_statistically, top_fraction_threshold
from plumbline.rewards.reward import finish, load_reward, outcomes
from plumbline.rows import Row, held_out, last_turn, text_of

STRATEGIES = ("best", "threshold", "fraction", "statistical")
PAIRS = ("none", "best_vs_worst", "first_round", "tournament")
NONE = "none"


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
    reject: RejectEntry = field(default_factory=RejectEntry)


def candidates(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows that may be kept, by prompt. A completion that was cut off (`finished` is false) is left out: it would teach not to stop."""
    finished: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["finished"]:
            finished[row["id"]].append(row)
    return finished


def select(by_prompt: dict[str, list[Row]], entry: RejectEntry, seed: int) -> list[list[Row]]:
    """The kept rows of each prompt that has any, by the entry's strategy. Random draws for a prompt do not depend on other prompts."""
    threshold = entry.threshold
    if entry.strategy == "fraction" and by_prompt:
        threshold = top_fraction_threshold([row["reward"] for rows in by_prompt.values() for row in rows], entry.fraction or 1.0)
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


def run(config: RejectStage, entry: str) -> None:
    """Scores the completions, selects some, and writes them with their figures."""
    settings = config.reject
    sample, reward = Path("artifacts/sample") / settings.sample, Path("artifacts/reward") / settings.reward
    with executing("reject", entry, config, [sample, reward]) as work:
        from plumbline.models.determinism import make_deterministic

        make_deterministic(config.seed, config.threads)
        rows = read_jsonl(sample / "completions.jsonl")
        # the name keeps a judge's budget: what a crashed attempt at this run has spent still counts when it runs again
        scorer = load_reward(reward, f"{work.name} {work.key}")
        rewards = scorer([row["prompt"] for row in rows], [text_of(row["completion"]) for row in rows])
        scored = [{**row, "reward": value} for row, value in zip(rows, rewards, strict=True)]
        kept = select(candidates(scored), settings, config.seed)
        splits = outcome(kept, settings, config.seed)
        if not splits["train"]:
            finished = sum(row["finished"] for row in rows)
            raise ValueError(
                f"reject: expected completions to keep, found none among {len(rows)} ({finished} finished). Lower threshold, raise beta, or "
                "sample more"
            )
        output = work.output(f"artifacts/reject/{entry}")
        for split, selected in splits.items():
            write_jsonl(output / f"{split}.jsonl", selected)
        metrics = figures(rows, rewards, kept) | {"rows": sum(map(len, splits.values()))} | outcomes(scorer)
        write_json(work.output(f"artifacts/figures/reject/{entry}.json"), metrics)
        work.run.log_figures(metrics)
        if ledger := finish(scorer):
            work.log_timing(**ledger)
        work.run.log_table("kept", [_shown(row) for rows in kept for row in rows][:40])


def figures(rows: list[Row], rewards: list[float], kept: list[list[Row]]) -> dict[str, float | int]:
    """Counts of the kept completions and of the prompts without any, and how far the kept rewards lie above the mean."""
    prompts = len({row["id"] for row in rows})
    chosen = [row["reward"] for selected in kept for row in selected]
    mean, kept_mean = sum(rewards) / len(rewards), sum(chosen) / len(chosen)
    return {
        "completions": len(rows),
        "unfinished": sum(not row["finished"] for row in rows),
        "kept": len(chosen),
        "kept_fraction": len(chosen) / len(rows),
        "prompts_without": prompts - len(kept),
        "reward_mean": mean,
        "reward_kept": kept_mean,
        "reward_gain": kept_mean - mean,
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
