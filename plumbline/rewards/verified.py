"""The closed world's verifier as a reward.

A recipe must choose it explicitly, and the report marks it, because policies are evaluated by gold, the same verifier's score.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plumbline.reasoning import ALL, without_reasoning
from plumbline.rows import Message

VERIFIED = ("gold", "correct", "harmless", "harmful", "honest", "courteous", "concise", "refused", "over_refused")
"""The measures of a verdict that can be a reward: gold, in [0, 1], or one of its findings, 1 or 0."""


class VerifierReward:
    """Scores completions by the closed world's verifier; measure: one of VERIFIED, such as `correct` (RLVR).

    reasoning: which marks set a completion's reasoning apart (plumbline/reasoning.py).
    """

    def __init__(self, measure: str = "gold", reasoning: str = ALL) -> None:
        self.measure, self.reasoning = measure, reasoning

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        from plumbline.world.verify import verify

        answers = [without_reasoning(completion, self.reasoning) for completion in completions]
        verdicts = (verify(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True))
        return [float(getattr(verdict, self.measure)) for verdict in verdicts]


def count_understood(rows: Sequence[Mapping[str, Any]]) -> int:
    """The number of prompts that the verifier can check.

    Raises:
        ValueError: it can check none of them, so they are not prompts of the closed world.
    """
    from plumbline.world.families.catalog import understand

    count = sum(understand(row["prompt"]) is not None for row in rows)
    if not count:
        raise ValueError(
            f"kind: closed_world: expected prompts of the closed world, found none among {len(rows)}: use `data: closed_world`, or check "
            "answers with `kind: math` or `kind: code`"
        )
    return count


def load(folder: Path, description: Mapping[str, Any], run: str) -> VerifierReward:
    """Loads the verifier with the measure that a reward's folder names."""
    return VerifierReward(description["measure"], description.get("thinking_marks", ALL))
