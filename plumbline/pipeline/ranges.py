"""The ranges that numbers of a config must lie in, and the complaint about one that does not."""

from collections.abc import Callable
from typing import Any, NamedTuple

from omegaconf import MISSING


class Range(NamedTuple):
    """A range, in the words of a complaint and as a test. NaN is in no range."""

    expected: str
    holds: Callable[[float], bool]


POSITIVE = Range("above 0", lambda value: value > 0)
NOT_NEGATIVE = Range("0 or above", lambda value: value >= 0)
COUNT = Range("at least 1", lambda value: value >= 1)
FRACTION = Range("a fraction from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_ONE = Range("at least 0 and less than 1", lambda value: 0 <= value < 1)
SEED = Range("a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32)  # what numpy's generator takes


def outside(config: Any, **ranges: Range) -> list[str]:
    """`key: expected …, found …` for each value that is not in the range of its key; null, and a value that is still missing, is in every range."""
    values = {key: getattr(config, key) for key in ranges}
    return [
        f"{key}: expected {ranges[key].expected}, found {value}"
        for key, value in values.items()
        if value is not None and value != MISSING and not ranges[key].holds(value)
    ]
