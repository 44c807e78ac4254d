"""Pools the completions of two samples, so that one judge can compare them (Zephyr pools four models, arXiv:2310.16944, §3).

Reads `artifacts/sample/<first>` and `artifacts/sample/<second>`; writes `artifacts/sample/<entry>`: for each prompt the first sample's
completions, then the second's, in shards of as many prompts as the first sample's largest. A demonstration that is in both is
kept once. For more than two samples, chain pools.

Memory holds a shard of each. Where a prompt's completions stand in the second sample is looked up in an index on disk, for the two need not have the
same prompts in the same order.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.shard_files import count_rows, groups_of, read_groups, read_shard, read_shards, shard_paths, write_table
from plumbline.rows import Row, by_prompt

SAMPLES = Path("artifacts/sample")


@dataclass
class PoolEntry:
    """One entry of params.yaml's `pool`."""

    first: str = MISSING
    second: str = MISSING

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        return [f"second: expected a sample other than `first`, found {self.second} twice"] if self.first == self.second else []


@dataclass
class PoolStage:
    """The values that decide a pool."""

    seed: int = MISSING
    threads: int = MISSING
    pool: PoolEntry = field(default_factory=PoolEntry)


class Index:
    """Where each prompt's completions stand in a sample. `take` returns those of a prompt, `left` those of the prompts that were not taken."""

    def __init__(self, sample: Path, file: Path) -> None:
        self.shards = shard_paths(sample)
        self.read = lru_cache(maxsize=1)(lambda shard: [*groups_of(read_shard(self.shards[shard]))])
        self.database = sqlite3.connect(file)
        self.database.execute("PRAGMA journal_mode=OFF")
        self.database.execute("PRAGMA synchronous=OFF")  # the index is made anew in each run
        self.database.execute(
            "CREATE TABLE prompts (id TEXT PRIMARY KEY, shard INTEGER, number INTEGER, taken INTEGER DEFAULT 0)"
        )
        for shard in range(len(self.shards)):
            rows = [(str(group[0]["id"]), shard, number) for number, group in enumerate(self.read(shard))]
            self.database.executemany("INSERT INTO prompts (id, shard, number) VALUES (?, ?, ?)", rows)

    def take(self, prompt_id: str) -> list[Row]:
        """The completions of a prompt; empty if the sample has none."""
        position = self.database.execute("SELECT shard, number FROM prompts WHERE id = ?", (prompt_id,)).fetchone()
        if position is None:
            return []
        self.database.execute("UPDATE prompts SET taken = 1 WHERE id = ?", (prompt_id,))
        shard, number = position
        return self.read(shard)[number]

    def left(self) -> Iterator[list[Row]]:
        """The completions of the prompts that were not taken, in the sample's order."""
        for shard, number in self.database.execute("SELECT shard, number FROM prompts WHERE NOT taken ORDER BY shard, number"):
            yield self.read(shard)[number]


def pooled(first: Path, second: Index) -> Iterator[Row]:
    """The rows of both samples, prompt by prompt."""
    for group in read_groups(first):
        yield from by_prompt(group, second.take(str(group[0]["id"])))
    for group in second.left():
        yield from by_prompt([], group)


def run(config: PoolStage, entry: str) -> None:
    """Reads both samples and writes their rows, prompt by prompt."""
    first, second = SAMPLES / config.pool.first, SAMPLES / config.pool.second
    with executing("pool", entry, config, [first, second]) as work, TemporaryDirectory() as scratch:
        index = Index(second, Path(scratch) / "index.sqlite")
        shard_prompts = max(sum(1 for _ in groups_of(rows)) for rows in read_shards(first))  # a filter leaves some almost empty
        output = work.output(f"artifacts/sample/{entry}")
        write_table(output, pooled(first, index), max(1, shard_prompts))
        prompts = sum(1 for _ in read_groups(output))
        work.run.log_figures({"completions": count_rows(output), "prompts": prompts})


@hydra.main(version_base=None, config_path="../conf", config_name="pool")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("pool"))


if __name__ == "__main__":
    register("pool", PoolStage)
    main()
