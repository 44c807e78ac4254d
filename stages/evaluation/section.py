"""The schema of params.yaml's `evaluate` section, which answer, evaluate and report share."""

from dataclasses import dataclass, field

from omegaconf import MISSING

NONE = "none"
SPLITS = ("test", "validation")


@dataclass
class EvaluateSection:
    """Who is evaluated, on what, against whom and by which means."""

    policies: list[str] = field(default_factory=list)
    against: str = MISSING  # the opponent of gains and win rates, and the reference of KL
    judge: str = MISSING  # conf/judge/<name>.yaml; none: no win rate
    reward: str = MISSING  # artifacts/reward/<name>; none: no reward
    split: str = "test"
    samples: int = 2
    temperature: float = 1.0
    max_new_tokens: int = 64


def check_section(section: EvaluateSection) -> None:
    """Refuses values that no stage could act on.

    Raises:
        ValueError: naming the key, what was expected and found.
    """
    if section.split not in SPLITS:
        raise ValueError(f"evaluate.split: expected one of {', '.join(SPLITS)}, found {section.split!r}")
    if section.against not in section.policies:
        raise ValueError(
            f"evaluate.against: expected one of evaluate.policies ({', '.join(section.policies)}), found "
            f"{section.against!r}; add it to the policies, so that it is answered and shown too"
        )
    if len(set(section.policies)) != len(section.policies):
        raise ValueError(f"evaluate.policies: expected each policy once, found {', '.join(section.policies)}")
    for key, least in (("samples", 1), ("max_new_tokens", 1), ("temperature", 0.0)):
        value = getattr(section, key)
        if value < least or (key == "temperature" and value == 0):
            raise ValueError(f"evaluate.{key}: expected {'more than 0' if key == 'temperature' else 'at least 1'}, found {value}")
