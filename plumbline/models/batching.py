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


WINDOW = 8
"""The batches that share rows of all lengths out among them."""

MIXED = 4
"""The fewest micro-batches that make a batch of rows of similar length each and still mix all kinds of rows."""


def mixed_batches(trainer: Any) -> Any:
    """A trainer whose micro-batches hold rows of similar length, and little padding, while its batches hold rows of every length.

    Rows are drawn at random for `WINDOW` batches together and sorted by length; each batch gets a micro-batch of short rows, one of longer
    ones, and so on. Batches of similar rows would save as much padding and teach less, for each would be nearly of one kind. Where a batch has
    fewer than `MIXED` micro-batches, its rows are drawn for it alone. The order depends on seed and epoch only, so that a resumed run goes on in
    it. A row's length is that of all its columns of ids.
    """
    import torch

    class Mixed(torch.utils.data.Sampler[int]):
        def __init__(self, lengths: Sequence[int], micro_batch: int, accumulated: int, seed: int, trainer: Any) -> None:
            self.lengths, self.seed, self.epoch, self.trainer = lengths, seed, 0, trainer
            self.micro_batch, self.batch = micro_batch, micro_batch * accumulated
            self.window = self.batch * (WINDOW if accumulated >= MIXED else 1)

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __len__(self) -> int:
            return len(self.lengths)

        def __iter__(self) -> Iterator[int]:
            epoch = self.epoch
            if self.trainer.args.world_size > 1:  # accelerate's `set_epoch` does not reach the sampler of a resumed epoch
                epoch = int((self.trainer.state.epoch or 0) + 1e-6)
            generator = torch.Generator().manual_seed(self.seed + epoch)
            rows = torch.randperm(len(self.lengths), generator=generator).tolist()
            whole = len(rows) - len(rows) % self.window
            for window in [*_cut(rows[:whole], self.window), *_cut(rows[whole:], self.batch)]:
                window.sort(key=self.lengths.__getitem__)
                batches = math.ceil(len(window) / self.batch)
                levels = _cut(_cut(window, self.micro_batch), batches)  # micro-batches, one for each batch in a level
                orders = [torch.randperm(len(level), generator=generator).tolist() for level in levels]
                for batch in range(batches):
                    for level, order in zip(levels, orders, strict=True):
                        yield from level[order[batch]]

    def sampler(self: Any, dataset: Any = None) -> Mixed:
        from pyarrow.compute import list_value_length

        table = (self.train_dataset if dataset is None else dataset).with_format("arrow")[:]
        lengths = sum(list_value_length(table[column]).to_numpy() for column in table.column_names if column.endswith("ids"))
        micro_batches = self.args.gradient_accumulation_steps * self.args.world_size  # of all processes, which take turns
        return Mixed(lengths.tolist(), self.args.train_batch_size, micro_batches, self.args.data_seed, self)

    return type(trainer.__name__, (trainer,), {"_get_train_sampler": sampler})


def _cut(items: Sequence[Any], size: int) -> list[Any]:
    return [items[start : start + size] for start in range(0, len(items), size)]
