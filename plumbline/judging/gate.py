"""The gate: what is counted of a judge while it labels, held against limits before a label is written."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from plumbline.judging.aggregation import mean_kappa
from plumbline.judging.judges import GateLimits

EXAMPLES = 3
LONGEST_EXAMPLE = 300
TALLIES = ("unparsed", "inconsistent", "tied", "longer", "against_known")
"""The attributes of Quality that count cases."""


class GateError(ValueError):
    """The judge is outside its limits; the message has the numbers and examples."""


class Tally:
    """Counts how often something was the case, and keeps the first few cases as examples."""

    def __init__(self) -> None:
        self.count = self.total = 0
        self.examples: list[str] = []

    def add(self, case: bool, example: str) -> None:
        """Counts one observation, which is a case or not."""
        self.total += 1
        if case:
            self.count += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append(example[:LONGEST_EXAMPLE])

    def merge(self, later: "Tally") -> None:
        """Counts what was counted after this."""
        self.count += later.count
        self.total += later.total
        self.examples = (self.examples + later.examples)[:EXAMPLES]

    @property
    def fraction(self) -> float | None:
        """The fraction of cases among the observations; None if there are no observations."""
        return self.count / self.total if self.total else None


Case = tuple[tuple[str, str | float | None], ...]
"""Who said what of one case: (rater, opinion)."""


class Quality:
    """What is counted of a judge while it works. It takes the same room however much was judged."""

    def __init__(self) -> None:
        self.unparsed = Tally()
        self.inconsistent = Tally()
        self.tied = Tally()
        self.longer = Tally()
        self.against_known = Tally()
        self.raters: list[str] = []
        self.cases: Counter[Case] = Counter()

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Quality":
        """What `state` returned."""
        quality = cls()
        for name in TALLIES:
            vars(getattr(quality, name)).update(state[name])
        quality.raters = list(state["raters"])
        quality.cases = Counter({tuple((rater, opinion) for rater, opinion in case): times for case, times in state["cases"]})
        return quality

    def state(self) -> dict[str, Any]:
        """Everything that was counted, as JSON can hold it."""
        tallies = {name: vars(getattr(self, name)) for name in TALLIES}
        return {**tallies, "raters": self.raters, "cases": [[list(case), times] for case, times in self.cases.items()]}

    def merge(self, later: "Quality") -> None:
        """Counts what was counted after this, such as of a later shard."""
        for name in TALLIES:
            getattr(self, name).merge(getattr(later, name))
        self.raters += [rater for rater in later.raters if rater not in self.raters]
        self.cases.update(later.cases)

    def add_preference(self, first: str, second: str, difference: float | None, *, where: str) -> None:
        """Counts a pair of texts that a judge has scored: `difference` is the first's score minus the second's."""
        if difference is None or first == second:
            return
        example = f"{where}: {first!r} {'=' if difference == 0 else '>' if difference > 0 else '<'} {second!r}"
        self.tied.add(difference == 0, example)
        if difference != 0 and len(first) != len(second):
            self.longer.add((difference > 0) == (len(first) > len(second)), example)

    def add_known(self, difference: float | None, known: float, *, where: str) -> None:
        """Counts a judged pair against the known answer, both as the first text's advantage. A tie on either side is left out."""
        if difference and known:
            self.against_known.add((difference > 0) != (known > 0), where)

    def add_opinions(self, opinions: Mapping[str, str | float | None]) -> None:
        """Notes each rater's opinion of one case."""
        self.raters += [rater for rater in opinions if rater not in self.raters]
        self.cases[tuple(opinions.items())] += 1

    def columns(self) -> list[list[str | float | None]]:
        """Each rater's opinion of each distinct case; None if it has none."""
        return [[dict(case).get(rater) for case in self.cases] for rater in self.raters]

    def metrics(self) -> dict[str, float | int | None]:
        """The figures; None where nothing was counted."""
        disagreement = self.against_known.fraction
        numbers = any(isinstance(opinion, float) for case in self.cases for _, opinion in case)
        return {
            "unparsed_fraction": self.unparsed.fraction,
            "inconsistent_fraction": self.inconsistent.fraction,
            "tied_fraction": self.tied.fraction,
            "longer_fraction": self.longer.fraction,
            "known_agreement": None if disagreement is None else 1 - disagreement,
            "kappa": mean_kappa(self.columns(), ordered=numbers, times=[*self.cases.values()]) if len(self.raters) > 1 else None,
            "verdicts": self.unparsed.total,
            "pairs_compared": self.tied.total,
        }


def failures(quality: Quality, limits: GateLimits) -> list[str]:
    """Which figures are outside their limits, each with numbers and examples; empty if the judge may be trusted."""
    metrics = quality.metrics()
    upper: Sequence[tuple[str, Tally, float | None]] = (
        ("unparsed_fraction", quality.unparsed, limits.unparsed_fraction),
        ("inconsistent_fraction", quality.inconsistent, limits.inconsistent_fraction),
        ("tied_fraction", quality.tied, limits.tied_fraction),
        ("longer_fraction", quality.longer, limits.longer_fraction),
        ("known_agreement", quality.against_known, None if limits.known_agreement is None else 1 - limits.known_agreement),
    )
    complaints = []
    for name, tally, limit in upper:
        # If no verdict at all can be read, no sample is too small to tell.
        enough = tally.total >= limits.minimum or (name == "unparsed_fraction" and tally.count == tally.total)
        if limit is not None and tally.total and enough and tally.count / tally.total > limit:
            bound = f"at least {limits.known_agreement}" if name == "known_agreement" else f"at most {limit}"
            complaints.append(
                f"{name} is {metrics[name]:.3f} ({tally.count} of {tally.total}), expected {bound}. Examples:"
                + "".join(f"\n      {example}" for example in tally.examples)
            )
    kappa = metrics["kappa"]
    if limits.kappa is not None and kappa is not None and kappa < limits.kappa and quality.unparsed.total >= limits.minimum:
        complaints.append(
            f"kappa is {kappa:.3f}, expected at least {limits.kappa}: the judges do not agree.{_disagreements(quality)}"
        )
    return complaints


def _disagreements(quality: Quality) -> str:
    cases = [
        dict(zip(quality.raters, opinions, strict=True))
        for opinions in zip(*quality.columns(), strict=True)
        if len({opinion for opinion in opinions if opinion is not None}) > 1
    ]
    return " Examples:" + "".join(f"\n      {case}" for case in cases[:EXAMPLES])


def require(quality: Quality, limits: GateLimits, judge: str) -> None:
    """Requires that the judge is within its limits.

    Raises:
        GateError: a figure is outside its limit, so that no label of this judge should be written.
    """
    if complaints := failures(quality, limits):
        listed = "\n  - ".join(complaints)
        raise GateError(
            f"the judge {judge!r} is outside its limits, so no labels were written:\n  - {listed}\n"
            "Its verdicts are in artifacts/verdicts. Fix the judge or its prompt, or change the limits in judge.gate in conf/judge."
        )
