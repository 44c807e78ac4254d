"""Drops the completions of a sample whose reward is out of bounds: a hard limit, which no other quality makes up for.

Reads `artifacts/sample/<sample>` and `artifacts/reward/<reward>`; writes the rows that are left, unchanged, to
`artifacts/sample/<entry>/completions.jsonl`, and their counts to `artifacts/figures/filter/<entry>.json`. With a cost model and `most: 0`, only
completions are left that the model finds safe (Safe RLHF's constraint, arXiv:2310.12773).
"""

from dataclasses import dataclass, field
from pathlib import Path

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.records import read_jsonl, write_json, write_jsonl
from plumbline.rewards.reward import finish, load_reward, outcomes
from plumbline.rows import text_of


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
    filter: FilterEntry = field(default_factory=FilterEntry)


def run(config: FilterStage, entry: str) -> None:
    """Scores every completion and keeps those within the bounds."""
    settings = config.filter
    sample, reward = Path("artifacts/sample") / settings.sample, Path("artifacts/reward") / settings.reward
    with executing("filter", entry, config, [sample, reward]) as work:
        from plumbline.models.determinism import make_deterministic

        make_deterministic(config.seed, config.threads)
        rows = read_jsonl(sample / "completions.jsonl")
        scorer = load_reward(reward, f"{work.name} {work.key}")
        rewards = scorer([row["prompt"] for row in rows], [text_of(row["completion"]) for row in rows])
        kept = [row for row, value in zip(rows, rewards, strict=True) if settings.allows(value)]
        if not kept:
            raise ValueError(
                f"filter: expected completions within the bounds, found none among {len(rows)}, whose rewards lie between {min(rewards):.3g} "
                f"and {max(rewards):.3g}. Change `least` or `most`"
            )
        write_jsonl(work.output(f"artifacts/sample/{entry}") / "completions.jsonl", kept)
        figures = {
            "completions": len(rows),
            "kept": len(kept),
            "kept_fraction": len(kept) / len(rows),
            "prompts_without": len({row["id"] for row in rows}) - len({row["id"] for row in kept}),
            **outcomes(scorer),
        }
        write_json(work.output(f"artifacts/figures/filter/{entry}.json"), figures)
        work.run.log_figures(figures)
        if ledger := finish(scorer):
            work.log_timing(**ledger)


@hydra.main(version_base=None, config_path="../conf", config_name="filter")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("filter"))


if __name__ == "__main__":
    register("filter", FilterStage)
    main()
