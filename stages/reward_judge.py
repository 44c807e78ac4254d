"""Makes a judge's rating a reward: direct RLAIF (arXiv:2309.00267), without a reward model to train or to go stale.

Reads conf/judge. Writes `artifacts/reward/<entry>` with the judge's configuration and the digest of its template, so that an edit of either
reaches everything that learns from the reward, and `artifacts/figures/reward_judge/<entry>.json`. The stage asks nobody:
plumbline/rewards/judged.py asks the judge when something is scored.
"""

from dataclasses import dataclass, field
from typing import Any

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.judging.judges import uses_gold
from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.execution import executing, launched
from plumbline.pipeline.records import write_json
from plumbline.rewards.judged import described, unsuitable
from plumbline.rewards.reward import describe


@dataclass
class RewardJudgeEntry:
    """One entry of params.yaml's `reward_judge`; values and their meaning: conf/reward_judge.yaml."""

    judge: str = MISSING


@dataclass
class RewardJudgeStage:
    """The values that decide the reward."""

    seed: int = MISSING
    threads: int = MISSING
    reward_judge: RewardJudgeEntry = field(default_factory=RewardJudgeEntry)
    judge: Any = MISSING

    def problems(self) -> list[str]:
        """The complaint about a judge that cannot be a reward; empty if it can."""
        return [complaint] if (complaint := unsuitable(self.judge)) else []


def run(config: RewardJudgeStage, entry: str) -> None:
    """Describes which judge to ask, and how."""
    with executing("reward_judge", entry, config, []) as work:
        values = described(config.judge, config.reward_judge.judge, config.seed)
        describe(work.output(f"artifacts/reward/{entry}"), "judge", **values)
        write_json(work.output(f"artifacts/figures/reward_judge/{entry}.json"), {"uses_gold": uses_gold(config.judge)})


@hydra.main(version_base=None, config_path="../conf", config_name="reward_judge")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("reward_judge"))


if __name__ == "__main__":
    register("reward_judge", RewardJudgeStage)
    main()
