"""The schema of params.yaml's `evaluate` section, which answer, evaluate and report share."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from plumbline.models.decoding_values import DecodingFields
from plumbline.pipeline.ranges import COUNT, NOT_NEGATIVE, outside
from plumbline.reasoning import ALL, mark_problems

NONE = "none"
COMPLETIONS, COMPLETIONS_AT_1 = "completions", "completions_at_1"
"""The tables of artifacts/answer/<policy>: the answers that every figure is about, and, if those are not of the whole distribution at temperature 1,
answers that are."""

SPLITS = ("test", "validation")


@dataclass
class EvaluateSection(DecodingFields):
    """Which policies are evaluated, on which prompts, against whom and by which means.

    The decoding (plumbline/models/decoding_values.py) is that of the answers which the judge and the reward see.
    """

    policies: list[str] = field(default_factory=list)
    against: str = MISSING  # the opponent of gains and win rates, and the reference of KL
    judge: str = MISSING  # conf/judge/<name>.yaml; none: no win rate
    reward: str = MISSING  # artifacts/reward/<name>; none: no reward
    split: str = "test"
    samples: int = 2
    samples_at_1: int = 1  # answers to each prompt at temperature 1, if the decoding is narrower; 0: no KL and no figures at 1
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
            + outside(self, samples=COUNT, samples_at_1=NOT_NEGATIVE, max_new_tokens=COUNT)
            + self.decoding_problems(samples=self.samples)
            + mark_problems(self.thinking_marks)
        )
