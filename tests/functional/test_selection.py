"""The largest of numbers on several ranks."""

import math

import pytest
import torch
from helpers.exact import few
from helpers.thread_ranks import on_ranks
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo_pl.functional import largest
from grpo_pl.types import only_here

numbers = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, 1e-45, -1e-45])


def threshold(values: Tensor, among: Tensor, count: int) -> float:
    """By sorting."""
    ordered = values[among].sort(descending=True).values.tolist()
    return ordered[min(count, len(ordered)) - 1] if count and ordered else math.inf


@few
@given(st.lists(st.tuples(numbers, st.booleans()), min_size=1, max_size=30), st.integers(0, 12))
def test_they_are_those_that_sorting_finds_and_all_that_equal_the_least(
    drawn: list[tuple[float, bool]], count: int
) -> None:
    values, among = torch.tensor([v for v, _ in drawn]), torch.tensor([b for _, b in drawn])
    expected = among & (values >= threshold(values, among, count))
    assert torch.equal(largest(values, among, count, only_here), expected)


@pytest.mark.parametrize("count", [0, 1, 7, 20, 41])
def test_ranks_together_choose_what_one_rank_chooses_alone(count: int) -> None:
    values = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    among = values > -1.0
    alone = largest(values, among, count, only_here)
    assert alone.sum() == min(count, int(among.sum()))
    rows = [slice(0, 1), slice(1, 4), slice(4, 5)]
    shared = on_ranks(3, lambda rank, total: largest(values[rows[rank]], among[rows[rank]], count, total))
    assert torch.equal(torch.cat(shared), alone)


def test_a_rank_without_a_candidate_takes_part() -> None:
    values, among = torch.tensor([[3.0, 1.0], [9.0, 9.0]]), torch.tensor([[True, True], [False, False]])
    shared = on_ranks(2, lambda rank, total: largest(values[rank], among[rank], 1, total))
    assert [chosen.tolist() for chosen in shared] == [[True, False], [False, False]]
