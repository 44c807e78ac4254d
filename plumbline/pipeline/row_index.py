"""Rows of a JSON Lines file by their position, for what has to be put into another order: only the order is in memory."""

import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class RowIndex:
    """Where each row of a file begins. It takes 8 bytes of memory a row, and a row is read when it is asked for.

    The file is one that `write_jsonl` wrote: a row a line, and no blank line.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._starts = array("Q")
        start = 0
        with file.open("rb") as lines:
            for line in lines:
                self._starts.append(start)
                start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def rows(self, positions: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The rows at these positions, from 0, in their order."""
        with self._file.open("rb") as lines:
            for position in positions:
                lines.seek(self._starts[position])
                yield json.loads(lines.readline())
