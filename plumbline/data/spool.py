"""The rows of a role while it is decided which are kept: the rows on disk, what is known of each in arrays, and the counts."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plumbline.data.duplicates import PERMUTATIONS
from plumbline.data.faults import Fault
from plumbline.data.plans import RolePlan

TRAIN = 0  # of SPLITS
CHUNK_ROWS = 1000
COLUMNS = np.dtype([("source", "i4"), ("split", "i1"), ("digest", "i8"), ("overlap", "?"), ("bytes", "i4")])
_EXAMPLES = 5


class Drop(NamedTuple):
    """A row that is not used: why, and where it is."""

    source: str
    reason: str
    detail: str
    file: str
    row: int


class Tally:
    """Rows in and rows dropped by source and reason, with the first examples of each."""

    def __init__(self, held_out: float = 0.0) -> None:
        self.held_out = held_out  # the fraction of all prompts that is evaluated
        self.rows_in: Counter[str] = Counter()
        self.dropped: Counter[tuple[str, str]] = Counter()
        self.examples: dict[tuple[str, str], list[Drop]] = {}
        self.noted: Counter[tuple[str, str]] = Counter()  # reported but kept: duplicates, personal data, cut prompts
        self.unused: Counter[tuple[str, str]] = Counter()  # keys of messages that nothing uses, by source and key

    def drop(self, drop: Drop) -> None:
        """Counts a dropped row."""
        self.dropped[(drop.source, drop.reason)] += 1
        self._add_example(drop)

    def note(self, drop: Drop) -> None:
        """Counts a row that the policy reports but keeps."""
        self.noted[(drop.source, drop.reason)] += 1
        self._add_example(drop)

    def _add_example(self, drop: Drop) -> None:
        examples = self.examples.setdefault((drop.source, drop.reason), [])
        if len(examples) < _EXAMPLES:
            examples.append(drop)


class Pool:
    """The rows of a role: lines of a spool file, and arrays of the same length."""

    def __init__(self, plan: RolePlan, spool: Path) -> None:
        self.role = plan.role
        self.sources = plan.sources
        self.formats = plan.formats
        self.unused = plan.unused
        self.spool = spool
        self.tally = Tally(plan.validation_fraction + plan.test_fraction)
        self.columns = np.zeros(0, dtype=COLUMNS)
        self.keep = np.zeros(0, dtype=bool)
        self.signatures = np.zeros((0, PERMUTATIONS), dtype=np.uint32)
        self.files: list[str] = []
        self.positions = np.zeros((0, 2), dtype=np.int64)  # index into `files`, row number there

    def lines(self, wanted: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """The wanted rows in order, as (index, line); `wanted` may change while they are read."""
        with self.spool.open("rb") as file:
            for index, size in enumerate(self.columns["bytes"].tolist()):
                line = file.read(size)
                if wanted[index]:
                    yield index, line

    def position(self, index: int) -> tuple[str, int]:
        """The file of a row and its number there."""
        file, row = self.positions[index]
        return self.files[file], int(row)

    def source_name(self, index: int) -> str:
        """The name of a row's source."""
        number = int(self.columns["source"][index])
        return self.sources[number].name

    def drop_of(self, index: int, fault: Fault) -> Drop:
        """A row of the pool as a drop."""
        return Drop(self.source_name(index), fault.reason, fault.detail, *self.position(index))
