"""The gate: what a labelling run says about its judge, held against limits before a label is written."""

from collections.abc import Mapping, Sequence

from stages.judging.aggregation import mean_kappa
from stages.judging.config import GateLimits

EXAMPLES = 3
LONGEST_EXAMPLE = 300


class GateError(ValueError):
    """The judge is outside its limits; the message has the numbers and examples."""


class Tally:
    """Counts cases of one kind and keeps the first few as examples."""

    def __init__(self) -> None:
        self.count = self.of = 0
        self.examples: list[str] = []

    def add(self, case: bool, example: str) -> None:
        """Counts one, as a case or not."""
        self.of += 1
        if case:
            self.count += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append(example[:LONGEST_EXAMPLE])

    @property
    def fraction(self) -> float | None:
        """The fraction of cases; None if nothing was counted."""
        return self.count / self.of if self.of else None


class Quality:
    """What is counted of a judge while it works."""

    def __init__(self) -> None:
        self.unparsed = Tally()
        self.inconsistent = Tally()
        self.tied = Tally()
        self.longer = Tally()
        self.against_known = Tally()
        self.raters: dict[str, list[str | float | None]] = {}
        self._cases = 0

    def add_preference(self, first: str, second: str, difference: float | None, *, where: str) -> None:
        """Counts a pair of texts that a judge has scored: `difference` is the first's score minus the second's."""
        if difference is None or first == second:
            return
        example = f"{where}: {first!r} {'=' if difference == 0 else '>' if difference > 0 else '<'} {second!r}"
        self.tied.add(difference == 0, example)
        if difference != 0 and len(first) != len(second):
            self.longer.add((difference > 0) == (len(first) > len(second)), example)

    def add_known(self, difference: float | None, known: float, *, where: str) -> None:
        """Counts a judged pair against the known answer, both as the first's advantage; ties on either side are left out."""
        if difference and known:
            self.against_known.add((difference > 0) != (known > 0), where)

    def add_opinions(self, opinions: Mapping[str, str | float | None]) -> None:
        """Notes what each judge said of one case."""
        for rater in opinions:
            self.raters.setdefault(rater, [None] * self._cases)
        for rater, column in self.raters.items():
            column.append(opinions.get(rater))
        self._cases += 1

    def metrics(self) -> dict[str, float | int | None]:
        """The figures, null where nothing was counted."""
        known = self.against_known.fraction
        numbers = any(isinstance(opinion, float) for opinions in self.raters.values() for opinion in opinions)
        return {
            "unparsed_fraction": self.unparsed.fraction,
            "inconsistent_fraction": self.inconsistent.fraction,
            "tied_fraction": self.tied.fraction,
            "longer_fraction": self.longer.fraction,
            "known_agreement": None if known is None else 1 - known,
            "kappa": mean_kappa([*self.raters.values()], ordered=numbers) if len(self.raters) > 1 else None,
            "verdicts": self.unparsed.of,
            "pairs_compared": self.tied.of,
        }


def failures(quality: Quality, limits: GateLimits) -> list[str]:
    """What is outside its limit, each with numbers and examples; empty if the judge may be trusted."""
    metrics = quality.metrics()
    upper: Sequence[tuple[str, Tally, float | None]] = (
        ("unparsed_fraction", quality.unparsed, limits.unparsed_fraction),
        ("inconsistent_fraction", quality.inconsistent, limits.inconsistent_fraction),
        ("tied_fraction", quality.tied, limits.tied_fraction),
        ("longer_fraction", quality.longer, limits.longer_fraction),
        ("known_agreement", quality.against_known, None if limits.known_agreement is None else 1 - limits.known_agreement),
    )
    found = []
    for name, tally, limit in upper:
        # Where nothing at all can be read there is no sample too small to say so.
        enough = tally.of >= limits.minimum or (name == "unparsed_fraction" and tally.count == tally.of)
        if limit is not None and tally.of and enough and tally.count / tally.of > limit:
            said = "at least" if name == "known_agreement" else "at most"
            bound = limits.known_agreement if name == "known_agreement" else limit
            found.append(
                f"{name} is {metrics[name]:.3f} ({tally.count} of {tally.of}), expected {said} {bound}. Examples:"
                + "".join(f"\n      {example}" for example in tally.examples)
            )
    kappa = metrics["kappa"]
    if limits.kappa is not None and kappa is not None and kappa < limits.kappa and quality.unparsed.of >= limits.minimum:
        found.append(f"kappa is {kappa:.3f}, expected at least {limits.kappa}: the judges do not agree.{_disagreements(quality)}")
    return found


def _disagreements(quality: Quality) -> str:
    rows = [
        dict(zip(quality.raters, opinions, strict=True))
        for opinions in zip(*quality.raters.values(), strict=True)
        if len({opinion for opinion in opinions if opinion is not None}) > 1
    ]
    return " Examples:" + "".join(f"\n      {row}" for row in rows[:EXAMPLES])


def require(quality: Quality, limits: GateLimits, judge: str) -> None:
    """Requires that the judge is within its limits.

    Raises:
        GateError: it is not; no label of it should be written.
    """
    if found := failures(quality, limits):
        listed = "\n  - ".join(found)
        raise GateError(
            f"the judge {judge!r} is outside its limits, so no labels were written:\n  - {listed}\n"
            "Its verdicts are kept in verdicts.jsonl. Mend the judge or its prompt, or raise judge.gate's limits in conf/judge."
        )
