"""Drops the completions of a sample whose reward is out of bounds: a hard limit, which no other quality makes up for.

Reads `artifacts/sample/<sample>` and `artifacts/reward/<reward>`; writes the rows that are left, unchanged, to
`artifacts/sample/<entry>`, shard by shard, and their counts to `artifacts/figures/filter/<entry>.json`. With a cost model and `most: 0`, only
completions are left that the model finds safe (Safe RLHF's constraint, arXiv:2310.12773).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.engine import Engine
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.records import read_json, write_json
from plumbline.pipeline.shard_files import read_shard, shard_paths, write_shard
from plumbline.pipeline.shard_work import as_table, by_shard, counts, write_counts
from plumbline.pipeline.shard_workers import Compute
from plumbline.rewards.reward import asks_judge, finishing, load_reward, modules_of, score, spending, spent

TABLE, BOUNDS = "completions.parquet", "bounds.json"
"""A shard's files: the completions that are left, and the lowest and the highest reward."""


@dataclass
class FilterEntry:
    """One entry of params.yaml's `filter`; values and their meaning: conf/filter.yaml."""

    sample: str = MISSING
    reward: str = MISSING
    least: float | None = MISSING
    most: float | None = MISSING

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        if self.least is None and self.most is None:
            return ["least, most: expected at least one of them, found neither, so nothing would be dropped"]
        if self.least is not None and self.most is not None and self.least > self.most:
            return [f"least: expected at most `most`, found {self.least} above {self.most}"]
        return []

    def allows(self, reward: float) -> bool:
        """Whether a reward is within the bounds, which are inclusive."""
        return (self.least is None or reward >= self.least) and (self.most is None or reward <= self.most)


@dataclass
class FilterStage:
    """The values that decide which completions are left."""

    seed: int = MISSING
    threads: int = MISSING
    engine: Engine = field(default_factory=Engine)
    filter: FilterEntry = field(default_factory=FilterEntry)


@contextmanager
def filtering(config: FilterStage, reward: Path, run_name: str) -> Iterator[Compute]:
    """Loads the reward, and computes shards of what is left; run_name: for the budget of a reward that is a judge's rating."""
    from plumbline.models.determinism import make_deterministic

    make_deterministic(config.seed, config.threads)
    settings, scorer = config.filter, load_reward(reward, run_name)

    def compute(number: int, file: Path, shard: Path) -> None:
        rows = read_shard(file)
        with spending(scorer, shard):
            rewards, counted = score(scorer, rows)
        kept = [row for row, value in zip(rows, rewards, strict=True) if settings.allows(value)]
        write_shard(shard / TABLE, kept)
        write_json(shard / BOUNDS, [min(rewards, default=None), max(rewards, default=None)])
        prompts = len({row["id"] for row in rows}) - len({row["id"] for row in kept})
        write_counts(shard, {"completions": len(rows), "kept": len(kept), "prompts_without": prompts} | counted)

    with finishing(scorer):
        yield compute


def run(config: FilterStage, entry: str) -> None:
    """Scores every completion and keeps those within the bounds."""
    settings = config.filter
    sample, reward = Path("artifacts/sample") / settings.sample, Path("artifacts/reward") / settings.reward
    with executing("filter", entry, config, [sample, reward], modules_of(reward)) as work, work.checkpoints() as checkpoints:
        prepare = partial(filtering, config, reward, f"{work.name} {work.key}")
        shards = by_shard(checkpoints, shard_paths(sample), prepare, None if asks_judge(reward) else config.engine)
        total = counts(shards)
        if not total["kept"]:
            bounds = [value for shard in shards for value in read_json(shard / BOUNDS) if value is not None]
            raise ValueError(
                f"filter: expected completions within the bounds, found none among {total['completions']}, whose rewards lie between "
                f"{min(bounds):.3g} and {max(bounds):.3g}. Change `least` or `most`"
            )
        as_table(shards, TABLE, work.output(f"artifacts/sample/{entry}"))
        completions, kept, without = (total.pop(name) for name in ("completions", "kept", "prompts_without"))
        figures = {"completions": completions, "kept": kept, "kept_fraction": kept / completions, "prompts_without": without}
        figures |= sorted(total.items())  # the outcomes of checks
        write_json(work.output(f"artifacts/figures/filter/{entry}.json"), figures)
        work.run.log_figures(figures)
        if ledger := spent(shards):
            work.log_timing(**ledger)


@hydra.main(version_base=None, config_path="../conf", config_name="filter")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("filter"))


if __name__ == "__main__":
    register("filter", FilterStage)
    main()
