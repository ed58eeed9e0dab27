"""Rows put together: values by hand, and brute force on small inputs."""

import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch
from helpers.exact import few
from hypothesis import given
from hypothesis import strategies as st

from grpo_pl.functional import balanced_partition, even_parts, pad_rows, rounds


def dearest(lists: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    return max(len(rows) * max(lengths[row] for row in rows) for rows in lists)


def set_partitions(rows: list[int], parts: int) -> Iterator[list[list[int]]]:
    """Every way to split the rows into exactly `parts` non-empty sets."""
    if not rows:
        if parts == 0:
            yield []
        return
    first, rest = rows[0], rows[1:]
    for split in set_partitions(rest, parts):
        for i in range(len(split)):
            yield [*split[:i], [first, *split[i]], *split[i + 1 :]]
    if parts:
        for split in set_partitions(rest, parts - 1):
            yield [[first], *split]


def test_balanced_partition_by_hand() -> None:
    # 8 | 4 4 | 1 1 1 costs 8, 8 and 3; nothing with the row of 8 can cost less than 8
    assert balanced_partition([8, 1, 1, 1, 4, 4], 3) == [[0], [4, 5], [1, 2, 3]]


@few
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.data())
def test_no_other_split_has_a_cheaper_dearest_list(lengths: list[int], data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, len(lengths)))
    lists = balanced_partition(lengths, parts)
    best = min(dearest(split, lengths) for split in set_partitions(list(range(len(lengths))), parts))
    assert dearest(lists, lengths) == best


@few
@given(st.lists(st.integers(1, 30), min_size=9, max_size=12), st.integers(1, 5))
def test_no_contiguous_cut_of_the_sorted_rows_is_cheaper(lengths: list[int], parts: int) -> None:
    order = sorted(lengths)
    cuts = itertools.combinations(range(1, len(order)), parts - 1)
    costs = [
        max((b - a) * order[b - 1] for a, b in itertools.pairwise([0, *cut, len(order)])) for cut in cuts
    ]
    assert dearest(balanced_partition(lengths, parts), lengths) == min(costs)


@few
@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.data())
def test_balanced_partition_has_exactly_so_many_non_empty_parts_and_every_row_once(
    lengths: list[int], data: st.DataObject
) -> None:
    parts = data.draw(st.integers(1, len(lengths)))
    lists = balanced_partition(lengths, parts)
    assert len(lists) == parts
    assert all(lists)
    assert sorted(row for rows in lists for row in rows) == list(range(len(lengths)))
    assert lists == balanced_partition(lengths, parts)


def test_rows_of_one_length_are_split_although_fewer_parts_would_be_as_cheap() -> None:
    lists = balanced_partition([100, 1, 1, 1, 1], 4)
    assert [0] in lists
    assert sorted(map(len, lists)) == [1, 1, 1, 2]


def test_more_parts_than_rows_is_a_programmers_error() -> None:
    with pytest.raises(AssertionError):
        balanced_partition([3, 4], 3)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64])
def test_pad_rows_fills_up_with_zeros_on_the_right_and_keeps_the_type(dtype: torch.dtype) -> None:
    out = pad_rows([torch.ones(2, dtype=dtype), torch.ones(0, dtype=dtype), torch.ones(4, dtype=dtype)], 5)
    assert out.dtype == dtype
    assert out.int().tolist() == [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]]


def test_ranks_take_their_shares_equally_often_and_none_takes_nothing() -> None:
    for size, ranks, at_once in itertools.product(range(1, 14), range(1, 5), range(1, 6)):
        if ranks > size:
            continue
        often = rounds(size, ranks, at_once=at_once)
        for rank in range(ranks):
            share = len(range(rank, size, ranks))
            parts = even_parts(share, often)
            assert len(parts) == often
            assert [row for part in parts for row in part] == list(range(share))
            assert min(map(len, parts)) >= 1
            assert max(map(len, parts)) <= max(at_once, 2)
