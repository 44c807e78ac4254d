"""Batches of rows of similar length: their order, their limits, and what is computed from them."""

import random

import pytest

from plumbline.models.batching import batches_by_length


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
