"""Rejection sampling: keeps the best of a prompt's n completions by a reward.

Reads `artifacts/sample/<sample>` and `artifacts/reward/<reward>`; writes `artifacts/reject/<entry>/{train,validation}.jsonl` (demonstrations for
`method: sft`) and `metrics/reject/<entry>.json`.

Best of n (Llama 2, arXiv:2307.09288, §3.2.3; RAFT, arXiv:2304.06767). `reward_gain` is how far the kept ones lie above the mean. Seconds.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from omegaconf import MISSING, DictConfig

from stages.models.rewards import load_reward
from stages.pipeline.composing import entry_name, register, typed
from stages.pipeline.execution import executing, explained
from stages.pipeline.records import read_jsonl, write_json, write_jsonl
from stages.pipeline.splits import held_out


@dataclass
class RejectEntry:
    """One entry of params.yaml's `reject`; values and their meaning: conf/reject.yaml."""

    sample: str = MISSING
    reward: str = MISSING
    keep: int = MISSING
    validation_fraction: float = MISSING


@dataclass
class RejectStage:
    """What decides a selection."""

    seed: int = MISSING
    threads: int = MISSING
    reject: RejectEntry = field(default_factory=RejectEntry)


def best(rows: list[dict[str, Any]], keep: int) -> list[dict[str, Any]]:
    """The `keep` completions of each prompt with the highest reward, the first sampled where rewards are equal; no text twice.

    A completion that was cut off (`finished` false) is never kept: it would teach not to stop.
    """
    by_prompt: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["finished"]:
            by_prompt[row["id"]].append(row)
    kept = []
    for candidates in by_prompt.values():
        distinct = {row["completion"][0]["content"]: row for row in reversed(candidates)}
        kept += sorted(distinct.values(), key=lambda row: (-row["reward"], row["index"]))[:keep]
    return kept


def run(config: RejectStage, entry: str) -> None:
    """Scores, selects, saves."""
    settings = config.reject
    sample, folder = Path("artifacts/sample") / settings.sample, Path("artifacts/reward") / settings.reward
    with executing("reject", entry, config, [sample, folder]) as work:
        from stages.models.training import make_deterministic

        make_deterministic(config.seed, config.threads)
        rows = read_jsonl(sample / "completions.jsonl")
        rewards = load_reward(folder)([row["prompt"] for row in rows], [row["completion"][0]["content"] for row in rows])
        scored = [{**row, "reward": reward} for row, reward in zip(rows, rewards, strict=True)]
        kept = best(scored, settings.keep)
        columns = ("id", "prompt", "completion", "reward", "policy", "index")
        splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
        for row in kept:
            split = "validation" if held_out(row["id"], settings.validation_fraction, config.seed) else "train"
            splits[split].append({column: row[column] for column in columns})
        output = work.output(f"artifacts/reject/{entry}")
        for split, selected in splits.items():
            write_jsonl(output / f"{split}.jsonl", selected)
        mean, kept_mean = sum(rewards) / len(rewards), sum(row["reward"] for row in kept) / len(kept)
        metrics = {
            "completions": len(rows),
            "unfinished": sum(not row["finished"] for row in rows),
            "kept": len(kept),
            "reward_mean": mean,
            "reward_kept": kept_mean,
            "reward_gain": kept_mean - mean,
        }
        write_json(work.output(f"metrics/reject/{entry}.json"), metrics)
        work.run.log_metrics(metrics)
        work.run.log_table(
            "kept",
            [
                {"prompt": row["prompt"][-1]["content"], "completion": row["completion"][0]["content"], "reward": row["reward"]}
                for row in kept[:40]
            ],
        )


@hydra.main(version_base=None, config_path="../conf", config_name="reject")
@explained
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("reject"))


if __name__ == "__main__":
    register("reject", RejectStage)
    main()
