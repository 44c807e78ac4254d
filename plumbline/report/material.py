"""What the report is made from, and which of its policies learned from the verifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plumbline.evaluation.comparisons import OVERALL
from plumbline.graph import Node, ancestors, maker, nodes

if TYPE_CHECKING:
    from plumbline.evaluation.comparisons import Comparisons
    from plumbline.models.decoding_values import Decoding
    from plumbline.report.charts import Share
    from plumbline.report.tables import Figures
    from plumbline.rows import Row

Curve = Mapping[str, Sequence[tuple[float, float]]]
"""Metric → (step, value), without the steps that have no value."""


@dataclass(frozen=True)
class Material:
    """Everything that the page is made from, as read from files."""

    recipe: Mapping[str, Any]  # params.yaml's sections
    policies: Sequence[str]
    against: str
    decoding: Decoding  # of the answers that all figures are about
    figures: Mapping[str, Figures]  # policy → its figures
    answers: Mapping[str, Sequence[Row]]  # policy → its scored answers
    comparisons: Sequence[Comparisons]  # of all policies with each other, by each measure, the most telling first
    curves: Mapping[str, Curve]  # node → its training curves
    stage_figures: Mapping[str, Figures]  # node → the figures in which it measured its own work
    calibration: Mapping[str, Sequence[Share]]  # reward model → how often it is right by how confident it is
    data_section: str  # trusted HTML that prepare wrote, or empty
    prompts: int  # how many prompts to show with their answers
    listed: int  # how many to list below them, those first where the policies differ most
    optimisations: Mapping[str, Sequence[Mapping[str, float]]] = field(
        default_factory=dict
    )  # entry of overoptimisation → its points

    @property
    def overall(self) -> Comparisons | None:
        """The comparisons by what sums up an answer: gold, or else the judge. None if not every policy has that, or if there is a single policy."""
        by_measure = {one.measure: one for one in self.comparisons}
        return next((by_measure[measure] for measure in OVERALL if measure in by_measure), None)

    @property
    def decisive(self) -> Sequence[Comparisons]:
        """The comparisons that say which policy is better: by what sums up an answer if there is that, else by every measure but the reward."""
        return [self.overall] if self.overall else [one for one in self.comparisons if one.measure != "reward"]

    def verdicts(self, policy: str) -> dict[str, str]:
        """Measure → whether a policy is `better` or `worse` than the opponent, or empty; without the measures by which the two were not compared."""
        verdicts = {one.measure: one.verdict(policy, self.against) for one in self.comparisons}
        return {measure: verdict for measure, verdict in verdicts.items() if verdict is not None}

    def number(self, policy: str) -> int | None:
        """A policy's number among the colours, the same in every chart; None for the opponent, which is grey."""
        others = [name for name in self.policies if name != self.against]
        return None if policy == self.against else others.index(policy)


def shown_nodes(recipe: Mapping[str, Any]) -> list[Node]:
    """The nodes that make policies, and those that they build on."""
    return [node for node in nodes(recipe) if node.stage not in ("prepare", "answer", "evaluate")]


def learns_from_gold(stage_figures: Mapping[str, Figures], nodes: list[Node], policy: str) -> bool:
    """Whether anything that a policy was made from used the verifier (`uses_gold` in that node's figures)."""
    above = ancestors(nodes, maker(nodes, f"policy/{policy}") or "")
    return any(stage_figures.get(name, {}).get("uses_gold") for name in above)
