"""Batches whose rows are of similar length, so that little of them is padding."""

import math
from collections.abc import Iterator, Sequence
from typing import Any


def batches_by_length(lengths: Sequence[int], *, rows: float = math.inf, tokens: float = math.inf) -> list[list[int]]:
    """Cuts row indices into batches, the shortest rows first; rows of equal length keep their order.

    A batch is filled until one more row would exceed a limit, and holds at least one row.

    Args:
        lengths: the length of each row in tokens.
        rows: the most rows in a batch.
        tokens: the most tokens in a batch, padding included.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        count = len(batches[-1]) + 1 if batches else 1
        if not batches or count > rows or count * lengths[row] > tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def mixed_batches(trainer: Any) -> Any:
    """A trainer whose batches are drawn at random, and each sorted by length, so that its micro-batches hold little padding.

    Grouping all rows by length would save more padding and teach less, for each batch would be nearly of one kind. The order depends on seed
    and epoch alone, so that a resumed run goes on in it. A row's length is that of all its columns of ids.
    """
    import torch

    class Mixed(torch.utils.data.Sampler[int]):
        def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
            self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __len__(self) -> int:
            return len(self.lengths)

        def __iter__(self) -> Iterator[int]:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(len(self.lengths), generator=generator).tolist()
            for start in range(0, len(order), self.batch_size):
                yield from sorted(order[start : start + self.batch_size], key=self.lengths.__getitem__)

    def sampler(self: Any, dataset: Any = None) -> Mixed:
        rows = self.train_dataset if dataset is None else dataset
        ids = [rows[column] for column in rows.column_names if column.endswith("ids")]
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return Mixed([sum(map(len, row)) for row in zip(*ids, strict=True)], size, self.args.data_seed)

    return type(trainer.__name__, (trainer,), {"_get_train_sampler": sampler})
