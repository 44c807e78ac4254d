"""One entry of params.yaml's `label`: which completions are judged, how, and which of them become training data."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from plumbline.pipeline.ranges import BELOW_ONE, NOT_NEGATIVE, outside

ANNOTATIONS = Path("data/annotations")
"""The folder of what people said, on which labels depend."""
WAYS = ("rating", "pairwise", "ranking", "principle", "agreement")
"""How completions can be judged: the functions of opinions.py."""
PAIRS = ("best_vs_worst", "best_vs_random", "all_pairs", "compared", "strong_vs_weak", "unpaired")
"""How pairs can be made of judged completions (pairs.py); `unpaired`: labelled completions for KTO."""


@dataclass
class LabelEntry:
    """The values of an entry; their meaning: conf/label.yaml."""

    sample: str = MISSING
    judge: str = MISSING
    way: str = MISSING
    pairs: str = MISSING
    min_margin: float = MISSING
    keep_ties: bool = MISSING
    pairs_per_prompt: int = MISSING
    opponents: int = MISSING
    prompts: int = MISSING
    strong: str | None = MISSING
    weak: str | None = MISSING
    known: str = MISSING
    validation_fraction: float = MISSING

    def problems(self) -> list[str]:
        """What does not fit among the entry's own values; empty if all does."""
        complaints = [
            f"{key}: expected one of {', '.join(choices)}, found {getattr(self, key)!r}"
            for key, choices in (("way", WAYS), ("pairs", PAIRS))
            if getattr(self, key) not in choices
        ]
        if self.pairs == "strong_vs_weak" and not (self.strong and self.weak):
            complaints.append(
                f"strong, weak: expected two policies with pairs: strong_vs_weak, found {self.strong} and {self.weak}"
            )
        if self.pairs == "compared" and self.way != "pairwise":
            complaints.append(f"way: expected pairwise with pairs: compared, found {self.way}")
        if self.way == "agreement" and self.pairs == "strong_vs_weak":
            complaints.append(
                "way: expected a way other than agreement with pairs: strong_vs_weak, which looks at the policies alone"
            )
        if self.way == "agreement" and self.min_margin >= 1:
            complaints.append(
                f"min_margin: expected less than 1 with way: agreement, which scores from 0 to 1, found {self.min_margin}"
            )
        complaints += outside(
            self,
            min_margin=NOT_NEGATIVE,
            pairs_per_prompt=NOT_NEGATIVE,
            opponents=NOT_NEGATIVE,
            prompts=NOT_NEGATIVE,
            validation_fraction=BELOW_ONE,
        )
        if self.known not in ("none", "gold"):
            complaints += outside_annotations("known", self.known)
        return complaints


def outside_annotations(key: str, path: str) -> list[str]:
    """A complaint about a path that is missing, or that DVC would not see change; empty if it is in the folder that labels depend on."""
    if not Path(path).resolve().is_relative_to(ANNOTATIONS.resolve()):
        return [f"{key}: expected a path in {ANNOTATIONS}, which labels depend on, found {path}: DVC would not see it change"]
    return [] if Path(path).exists() else [f"{key}: expected a file or folder, found none at {path}"]
