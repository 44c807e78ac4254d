"""The schema of params.yaml's `evaluate` section, which answer, evaluate and report share."""

from dataclasses import dataclass, field

from omegaconf import MISSING

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
        complaints += [
            f"{key}: expected at least 1, found {getattr(self, key)}"
            for key in ("samples", "max_new_tokens")
            if getattr(self, key) < 1
        ]
        if self.temperature <= 0:
            complaints.append(f"temperature: expected a number above 0, found {self.temperature}")
        return complaints
