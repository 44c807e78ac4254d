"""Rejection sampling: selects among a prompt's n completions by a reward.

Reads `artifacts/sample/<sample>`, `artifacts/reward/<reward>` and, for a hard ceiling, `artifacts/reward/<cost>`; writes
`artifacts/reject/<entry>/{train,validation}.jsonl` (demonstrations for `method: sft`, or preferences) and `metrics/reject/<entry>.json`.

Best of n (Llama 2, arXiv:2307.09288, §3.2.3), a threshold (RAFT, arXiv:2304.06767), or statistical rejection sampling (RSO,
arXiv:2309.06657), whose accepted completions may be made into preferences. `reward_gain` is how far the kept ones lie above the mean.
Seconds.
"""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from omegaconf import MISSING, DictConfig

from stages.models.rewards import finish, load_reward, outcomes
from stages.pipeline.composing import entry_name, register, typed
from stages.pipeline.execution import executing, explained
from stages.pipeline.records import read_jsonl, write_json, write_jsonl
from stages.pipeline.splits import held_out
from stages.rewards.selection import best, matches, reject_statistically, top_fraction_threshold

STRATEGIES = ("best", "threshold", "fraction", "statistical")
PAIRS = ("none", "first_round", "tournament")
NONE = "none"
Row = dict[str, Any]


@dataclass
class RejectEntry:
    """One entry of params.yaml's `reject`; values and their meaning: conf/reject.yaml."""

    sample: str = MISSING
    reward: str = MISSING
    cost: str = MISSING
    strategy: str = MISSING
    keep: int = MISSING
    threshold: float | None = MISSING
    fraction: float | None = MISSING
    beta: float | None = MISSING
    max_cost_score: float | None = MISSING
    pairs: str = MISSING
    validation_fraction: float = MISSING


@dataclass
class RejectStage:
    """What decides a selection."""

    seed: int = MISSING
    threads: int = MISSING
    reject: RejectEntry = field(default_factory=RejectEntry)


def check_entry(entry: RejectEntry, name: str) -> None:
    """Requires that the values fit together.

    Raises:
        ValueError: with what does not fit and what would.
    """
    for key, known in (("strategy", STRATEGIES), ("pairs", PAIRS)):
        if getattr(entry, key) not in known:
            raise ValueError(
                f"params.yaml: reject.{name}.{key}: expected one of {', '.join(known)}, found {getattr(entry, key)!r}"
            )
    needs = []
    if entry.strategy == "best" and entry.keep < 1:
        needs.append(f"strategy: best needs keep of at least 1, found {entry.keep}")
    if entry.keep < 0:
        needs.append(f"keep: expected 0 (no limit) or above, found {entry.keep}")
    if entry.strategy == "threshold" and entry.threshold is None:
        needs.append("strategy: threshold needs a threshold, in units of the reward")
    if entry.strategy == "fraction" and not 0 < (entry.fraction or 0) <= 1:
        needs.append(f"strategy: fraction needs a fraction above 0 and at most 1, found {entry.fraction}")
    if entry.strategy == "statistical" and not (entry.beta or 0) > 0:
        needs.append(f"strategy: statistical needs a beta above 0, found {entry.beta}")
    if (entry.max_cost_score is None) != (entry.cost == NONE):
        needs.append(
            f"a ceiling needs both cost and max_cost_score, found cost: {entry.cost} and max_cost_score: {entry.max_cost_score}"
        )
    if entry.pairs != NONE and entry.keep == 1:
        needs.append(f"pairs: {entry.pairs} needs keep of 2 or more, or 0")
    if needs:
        raise ValueError(f"params.yaml: reject.{name}: " + "; ".join(needs))


def candidates(rows: list[Row], max_cost_score: float | None) -> tuple[dict[str, list[Row]], Counter[str]]:
    """The rows that may be kept, by prompt, and how many may not and why.

    A completion that was cut off (`finished` false) is never kept: it would teach not to stop. One whose `cost` exceeds the ceiling is
    dropped whatever its reward.
    """
    by_prompt: dict[str, list[Row]] = defaultdict(list)
    dropped: Counter[str] = Counter(unfinished=0, above_cost=0)
    for row in rows:
        if not row["finished"]:
            dropped["unfinished"] += 1
        elif max_cost_score is not None and row["cost"] > max_cost_score:
            dropped["above_cost"] += 1
        else:
            by_prompt[row["id"]].append(row)
    return by_prompt, dropped


def select(by_prompt: dict[str, list[Row]], entry: RejectEntry, seed: int) -> list[list[Row]]:
    """The kept rows of each prompt that has any, by the entry's strategy; what is drawn depends on the prompt alone, not on others."""
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
            chosen = best([row["reward"] for row in rows], [_text(row) for row in rows], entry.keep)
        kept.append([rows[place] for place in chosen])
    return [rows for rows in kept if rows]


def preferences(rows: list[Row], pairs: str, seed: int) -> list[Row]:
    """Preferences among one prompt's kept rows."""
    rng = random.Random(f"{seed}:pairs:{rows[0]['id']}")
    found = matches(range(len(rows)), [row["reward"] for row in rows], [_text(row) for row in rows], pairs, rng)
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
        for match in found
    ]


def outcome(kept: list[list[Row]], entry: RejectEntry, seed: int) -> dict[str, list[Row]]:
    """The rows of each split: the kept completions as demonstrations, or the preferences among them."""
    columns = ("id", "prompt", "completion", "reward", "policy", "index", *(("cost",) if entry.cost != NONE else ()))
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    for rows in kept:
        split = "validation" if held_out(rows[0]["id"], entry.validation_fraction, seed) else "train"
        demonstrations = [{column: row[column] for column in columns} for row in rows]
        splits[split] += demonstrations if entry.pairs == NONE else preferences(rows, entry.pairs, seed)
    return splits


def run(config: RejectStage, entry: str) -> None:
    """Scores, selects, saves."""
    settings = config.reject
    check_entry(settings, entry)
    sample, reward, cost = (
        Path("artifacts") / place / name
        for place, name in (("sample", settings.sample), ("reward", settings.reward), ("reward", settings.cost))
    )
    with executing("reject", entry, config, [sample, reward, cost]) as work:
        from stages.models.training import make_deterministic

        make_deterministic(config.seed, config.threads)
        rows = read_jsonl(sample / "completions.jsonl")
        prompts, texts = [row["prompt"] for row in rows], [_text(row) for row in rows]
        # A judge's budget is for this run: what a crashed attempt at it spent counts when it is run again.
        run_name = f"{work.name} {work.key}"
        scorer = load_reward(reward, run_name)
        cost_scorer = None if settings.cost == NONE else load_reward(cost, run_name)
        rewards = scorer(prompts, texts)
        costs: list[float | None] = [*cost_scorer(prompts, texts)] if cost_scorer else [None] * len(rows)
        scored = [{**row, "reward": r, "cost": c} for row, r, c in zip(rows, rewards, costs, strict=True)]
        by_prompt, dropped = candidates(scored, settings.max_cost_score)
        kept = select(by_prompt, settings, config.seed)
        splits = outcome(kept, settings, config.seed)
        if not splits["train"]:
            raise ValueError(
                f"reject: expected completions to keep, found none of {len(rows)} ({dict(dropped)}). Lower threshold, raise "
                "max_cost_score or beta, or sample more."
            )
        output = work.output(f"artifacts/reject/{entry}")
        for split, selected in splits.items():
            write_jsonl(output / f"{split}.jsonl", selected)
        metrics = figures(rows, rewards, kept, dropped) | {"rows": sum(map(len, splits.values()))} | outcomes(scorer)
        write_json(work.output(f"metrics/reject/{entry}.json"), metrics)
        work.run.log_metrics(metrics)
        of_cost = finish(cost_scorer) if cost_scorer else {}
        if taken := finish(scorer) | {f"cost_{name}": value for name, value in of_cost.items()}:
            work.log_timing(**taken)
        work.run.log_table("kept", [_shown(row) for rows in kept for row in rows][:40])


def figures(rows: list[Row], rewards: list[float], kept: list[list[Row]], dropped: Counter[str]) -> dict[str, float | int]:
    """How many completions were kept, of how many prompts, and by how much they are better than the mean one."""
    prompts = len({row["id"] for row in rows})
    chosen = [row["reward"] for selected in kept for row in selected]
    mean, kept_mean = sum(rewards) / len(rewards), sum(chosen) / len(chosen)
    return {
        "completions": len(rows),
        **dropped,
        "kept": len(chosen),
        "kept_fraction": len(chosen) / len(rows),
        "prompts_without": prompts - len(kept),
        "reward_mean": mean,
        "reward_kept": kept_mean,
        "reward_gain": kept_mean - mean,
    }


def _text(row: Row) -> str:
    return str(row["completion"][0]["content"])


def _shown(row: Row) -> Row:
    scores = {key: row[key] for key in ("reward", "cost") if row[key] is not None}
    return {"prompt": row["prompt"][-1]["content"], "completion": _text(row)} | scores


@hydra.main(version_base=None, config_path="../conf", config_name="reject")
@explained
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("reject"))


if __name__ == "__main__":
    register("reject", RejectStage)
    main()
