"""Pools the completions of two samples, so that one judge can compare them (Zephyr pools four models, arXiv:2310.16944, §3).

Reads `artifacts/sample/<first>` and `artifacts/sample/<second>`; writes `artifacts/sample/<entry>/completions.jsonl`: for each prompt the first
sample's completions, then the second's. A demonstration that is in both is kept once. For more than two samples, chain pools.
"""

from dataclasses import dataclass, field
from pathlib import Path

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.records import read_jsonl, write_jsonl
from plumbline.rows import by_prompt

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


def run(config: PoolStage, entry: str) -> None:
    """Reads both samples and writes their rows, prompt by prompt."""
    folders = [SAMPLES / config.pool.first, SAMPLES / config.pool.second]
    with executing("pool", entry, config, folders) as work:
        first, second = (read_jsonl(folder / "completions.jsonl") for folder in folders)
        rows = by_prompt(first, second)
        write_jsonl(work.output(f"artifacts/sample/{entry}") / "completions.jsonl", rows)
        work.run.log_figures({"completions": len(rows), "prompts": len({row["id"] for row in rows})})


@hydra.main(version_base=None, config_path="../conf", config_name="pool")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("pool"))


if __name__ == "__main__":
    register("pool", PoolStage)
    main()
