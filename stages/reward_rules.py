"""Makes a reward of named, weighted rules: the cheapest kind of reward, and the one that shows reward hacking best.

Reads nothing; writes `artifacts/reward/<entry>`. plumbline/rewards/rules.py lists the rules and how each is scored. It takes a second.
"""

from dataclasses import asdict, dataclass, field

import hydra
from omegaconf import MISSING, DictConfig

from plumbline.pipeline.composing import entry_name, register, typed
from plumbline.pipeline.execution import executing, launched
from plumbline.reasoning import mark_problems
from plumbline.rewards.reward import describe
from plumbline.rewards.rules import Rule


@dataclass
class RewardRulesEntry:
    """One entry of params.yaml's `reward_rules`; values and their meaning: conf/reward_rules.yaml."""

    rules: dict[str, Rule] = field(default_factory=dict)
    thinking_marks: str = MISSING

    def problems(self) -> list[str]:
        """What does not fit, besides the rules' own problems; empty if all does."""
        return ([] if self.rules else ["rules: expected at least one rule, found none"]) + mark_problems(self.thinking_marks)


@dataclass
class RewardRulesStage:
    """The values that decide the reward."""

    seed: int = MISSING
    threads: int = MISSING
    reward_rules: RewardRulesEntry = field(default_factory=RewardRulesEntry)


def run(config: RewardRulesStage, entry: str) -> None:
    """Writes the rules to the reward's folder."""
    with executing("reward_rules", entry, config, []) as work:
        rules = {name: asdict(rule) for name, rule in config.reward_rules.rules.items()}
        describe(
            work.output(f"artifacts/reward/{entry}"), "rules", rules=rules, thinking_marks=config.reward_rules.thinking_marks
        )


@hydra.main(version_base=None, config_path="../conf", config_name="reward_rules")
@launched
def main(config: DictConfig) -> None:
    run(typed(config), entry_name("reward_rules"))


if __name__ == "__main__":
    register("reward_rules", RewardRulesStage)
    main()
