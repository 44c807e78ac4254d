"""Makes a weighted sum of two rewards, such as a reward minus λ times a cost (Safe RLHF with a fixed λ, arXiv:2310.12773).

Reads `artifacts/reward/<first>` and `artifacts/reward/<second>`; writes `artifacts/reward/<entry>`, which names both and their digests, so that a
change of either reaches everything that learns from the sum. For more than two rewards, chain sums. It takes a second.
"""

from dataclasses import dataclass, field
from pathlib import Path

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.digests import input_digest
from plumbline.pipeline.execution import executing, launched
from plumbline.rewards.reward import describe, read_description

REWARDS = Path("artifacts/reward")


@dataclass
class RewardSumEntry:
    """One entry of params.yaml's `reward_sum`; values and their meaning: conf/reward_sum.yaml."""

    first: str = MISSING
    second: str = MISSING
    weight: float = MISSING
    second_weight: float = MISSING

    def problems(self) -> list[str]:
        """What does not fit; empty if all does."""
        return [f"second: expected a reward other than `first`, found {self.second} twice"] if self.first == self.second else []


@dataclass
class RewardSumStage:
    """The values that decide the reward."""

    seed: int = MISSING
    threads: int = MISSING
    reward_sum: RewardSumEntry = field(default_factory=RewardSumEntry)


def run(config: RewardSumStage, entry: str) -> None:
    """Writes the names, weights and digests of both parts."""
    settings = config.reward_sum
    weights = {settings.first: settings.weight, settings.second: settings.second_weight}
    with executing("reward_sum", entry, config, [REWARDS / name for name in weights]) as work:
        parts = []
        for name, weight in weights.items():
            read_description(REWARDS / name)
            parts.append({"reward": name, "weight": weight, "digest": input_digest(REWARDS / name)})
        describe(work.output(f"artifacts/reward/{entry}"), "sum", parts=parts)


@hydra.main(version_base=None, config_path="../conf", config_name="reward_sum")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("reward_sum"))


if __name__ == "__main__":
    register("reward_sum", RewardSumStage)
    main()
