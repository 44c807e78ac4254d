"""Batches of rows of similar length: their order, their limits, and what is computed from them."""

import itertools
import random
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from plumbline.models.batching import WINDOW, batches_by_length, mixed_batches


def test_rows_are_sorted_by_length_and_rows_of_equal_length_keep_their_order() -> None:
    assert batches_by_length([3, 1, 2, 1, 3], rows=2) == [[1, 3], [2, 0], [4]]


def test_a_batch_holds_as_many_tokens_with_padding_as_the_limit_allows_and_at_least_one_row() -> None:
    assert batches_by_length([2, 2, 3, 9], tokens=6) == [[0, 1], [2], [3]]


def test_without_rows_there_are_no_batches() -> None:
    assert batches_by_length([], rows=2) == []


@pytest.mark.parametrize("limits", [{"rows": 4}, {"tokens": 40}, {"rows": 3, "tokens": 25}])
def test_every_row_is_in_one_batch_that_keeps_the_limits(limits: dict[str, int]) -> None:
    generator = random.Random(1)
    lengths = [generator.randint(1, 30) for _ in range(50)]
    batches = batches_by_length(lengths, **limits)
    assert sorted(row for batch in batches for row in batch) == list(range(50))
    for batch in batches:
        assert len(batch) <= limits.get("rows", 50)
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= limits.get("tokens", 10**6)


class OnlyRows:
    """What `mixed_batches` needs of a trainer."""

    def __init__(self, rows: list[dict[str, list[int]]], micro_batch: int, accumulated: int, seed: int = 1) -> None:
        self.train_dataset = Dataset.from_list(rows)
        self.args = SimpleNamespace(
            train_batch_size=micro_batch, gradient_accumulation_steps=accumulated, data_seed=seed, world_size=1
        )


def order(rows: list[dict[str, list[int]]], epoch: int = 0, seed: int = 1, accumulated: int = 4) -> list[int]:
    trainer: Any = mixed_batches(OnlyRows)(rows, 4, accumulated, seed)
    sampler = trainer._get_train_sampler()
    sampler.set_epoch(epoch)
    assert len(sampler) == len(rows)
    return list(sampler)


def of_two_kinds(count: int) -> list[dict[str, list[int]]]:
    """Rows of one kind are all shorter than those of the other."""
    generator = random.Random(2)
    return [{"input_ids": [0] * (generator.randint(1, 9) + 20 * (row % 2)), "labels": [0]} for row in range(count)]


def test_mixed_batches_hold_rows_of_every_kind_and_their_micro_batches_little_padding() -> None:
    rows = of_two_kinds(16 * WINDOW * 2)
    drawn = order(rows)
    assert sorted(drawn) == list(range(len(rows)))
    lengths = [len(rows[row]["input_ids"]) for row in drawn]
    for start in range(0, len(rows), 16):
        batch = lengths[start : start + 16]
        assert 2 <= sum(length > 20 for length in batch) <= 14, "a batch of one kind"
        micro_batches = [batch[first : first + 4] for first in range(0, 16, 4)]
        assert all(max(lower) <= min(higher) for lower, higher in itertools.pairwise(micro_batches))
    widest = [max(lengths[start : start + 4]) * 4 for start in range(0, len(rows), 4)]
    assert sum(widest) < 1.06 * sum(lengths)


@pytest.mark.parametrize(("count", "accumulated"), [(16 * WINDOW + 37, 4), (40, 4), (3, 4), (50, 2), (50, 1)])
def test_rows_that_fill_no_window_are_mixed_for_each_batch_alone(count: int, accumulated: int) -> None:
    rows = of_two_kinds(count)
    drawn = order(rows, accumulated=accumulated)
    assert sorted(drawn) == list(range(count))
    alone = count % (16 * WINDOW) if accumulated == 4 else count
    lengths = [len(rows[row]["input_ids"]) for row in drawn[-alone:]]
    batches = [lengths[start : start + 4 * accumulated] for start in range(0, alone, 4 * accumulated)]
    assert batches == [sorted(batch) for batch in batches]
    assert len(batches) < 3 or lengths != sorted(lengths)


def test_the_order_of_mixed_batches_depends_on_seed_and_epoch_alone() -> None:
    rows = of_two_kinds(40)
    assert order(rows, epoch=1) == order(rows, epoch=1)
    assert order(rows, epoch=1) != order(rows, epoch=0)
    assert order(rows, seed=2) != order(rows, seed=1)


def test_the_length_of_a_pair_is_that_of_its_prompt_and_both_completions() -> None:
    rows = [
        {"prompt_ids": [0] * a, "chosen_ids": [0] * b, "rejected_ids": [0] * c} for a, b, c in ((1, 9, 9), (9, 1, 1), (2, 2, 2))
    ]
    assert order(rows) == [2, 1, 0]
