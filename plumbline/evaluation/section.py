"""The schema of params.yaml's `evaluate` section, which answer, evaluate and report share."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from plumbline.pipeline.ranges import COUNT, POSITIVE, outside
from plumbline.reasoning import ALL, mark_problems

NONE = "none"
SPLITS = ("test", "validation")


@dataclass
class EvaluateSection:
    """Which policies are evaluated, on which prompts, against whom and by which means."""

    policies: list[str] = field(default_factory=list)
    against: str = MISSING  # the opponent of gains and win rates, and the reference of KL
    judge: str = MISSING  # conf/judge/<name>.yaml; none: no win rate
    reward: str = MISSING  # artifacts/reward/<name>; none: no reward
    split: str = "test"
    samples: int = 2
    temperature: float = 1.0
    max_new_tokens: int = 64
    thinking_marks: str = ALL  # which marks set reasoning apart from an answer: all | none | names in plumbline/reasoning.py

    def problems(self) -> list[str]:
        """What is wrong with the values; empty if nothing is."""
        complaints = []
        if self.split not in SPLITS:
            complaints.append(f"split: expected one of {', '.join(SPLITS)}, found {self.split!r}")
        if self.against not in self.policies:
            complaints.append(
                f"against: expected one of evaluate.policies ({', '.join(self.policies)}), found {self.against!r}; "
                "add it to the policies, so that it is evaluated too"
            )
        if len(set(self.policies)) != len(self.policies):
            complaints.append(f"policies: expected each policy once, found {', '.join(self.policies)}")
        return (
            complaints
            + outside(self, samples=COUNT, max_new_tokens=COUNT, temperature=POSITIVE)
            + mark_problems(self.thinking_marks)
        )
