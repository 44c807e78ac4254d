"""Several verdicts made into one, and how far judges agree."""

from collections import Counter
from collections.abc import Sequence

from plumbline.judging.verdicts import TIE, A, B

INCONSISTENT, UNPARSED = "inconsistent", "unparsed"
WINS = {A: 1.0, B: 0.0, TIE: 0.5, INCONSISTENT: 0.5}
"""What an outcome is worth to the first answer. An unparsed comparison is worth nothing known, so it is not listed."""


def both_orders(first: str | None, second: str | None) -> str:
    """The outcome of a comparison asked in both orders; both verdicts are in terms of the first order, None if unreadable.

    Two different verdicts are inconsistent: a judge that says `A` whichever answer is shown as A has said nothing.
    """
    if first is None or second is None:
        return UNPARSED
    return first if first == second else INCONSISTENT


def majority(outcomes: Sequence[str]) -> str:
    """The outcome that more judges gave than any other, or a tie if there is no such outcome.

    Unparsed outcomes have no vote; if all are unparsed, so is the majority.
    """
    counts = Counter(outcome for outcome in outcomes if outcome != UNPARSED)
    if not counts:
        return UNPARSED
    (top, votes), *others = counts.most_common()
    return TIE if others and others[0][1] == votes else top


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are no such values."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def cohen_kappa(
    first: Sequence[str | float], second: Sequence[str | float], *, ordered: bool = False, times: Sequence[int] | None = None
) -> float | None:
    """Cohen's kappa: 1 for full agreement, 0 for agreement by chance; None if there is no case, or one answer throughout.

    ordered: weigh a disagreement by the square of its size, as suits ratings. times: how often each case occurred; None: once.
    """
    if not first or len({*first, *second}) < 2:
        return None
    from sklearn.metrics import cohen_kappa_score

    if ordered:
        scale = {value: rank for rank, value in enumerate(sorted({*first, *second}, key=float))}
        pairs = [scale[value] for value in first], [scale[value] for value in second]
        return float(cohen_kappa_score(*pairs, weights="quadratic", sample_weight=times))
    return float(cohen_kappa_score([str(value) for value in first], [str(value) for value in second], sample_weight=times))


def mean_kappa(
    raters: Sequence[Sequence[str | float | None]], *, ordered: bool = False, times: Sequence[int] | None = None
) -> float | None:
    """The mean of Cohen's kappa over all pairs of raters, each over the cases that both rated.

    times: how often each case occurred; None: once.
    """
    kappas = []
    weights = times or [1] * (len(raters[0]) if raters else 0)
    for position, first in enumerate(raters):
        for second in raters[position + 1 :]:
            both = [(a, b, n) for a, b, n in zip(first, second, weights, strict=True) if a is not None and b is not None]
            columns = [a for a, _, _ in both], [b for _, b, _ in both]
            kappas.append(cohen_kappa(*columns, ordered=ordered, times=[n for _, _, n in both]))
    return mean(kappas)
