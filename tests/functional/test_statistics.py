"""Means and deviations over a mask: values by hand, and what a degenerate mask gets."""

import math

import numpy as np
import pytest
import torch
from helpers.exact import close, eighths, f64, few
from hypothesis import given
from hypothesis import strategies as st

from grpo_pl.functional import divide_by_std, masked_mean, mean_and_std, whiten
from grpo_pl.types import only_here


def test_masked_mean_ignores_whatever_stands_outside_of_the_mask() -> None:
    x = f64([[1.0, math.nan, 4.0], [math.inf, 7.0, -99.0]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert masked_mean(x, mask).item() == (1 + 4 + 7) / 3


def test_masked_mean_of_nothing_is_zero() -> None:
    assert masked_mean(f64([math.nan, 3.0]), torch.tensor([False, False])).item() == 0.0


def test_whiten_by_hand() -> None:
    # mean 2, squared deviations 1 + 0 + 1, divided by 3 - 1: variance 1
    x, mask = f64([1.0, 99.0, 2.0, 3.0]), torch.tensor([True, False, True, True])
    close(whiten(x, mask, only_here, eps=0.0), [-1.0, 0.0, 0.0, 1.0])
    # squared deviations 4 + 4 over 2 - 1 gives 8; with eps = 1 the divisor is sqrt(9) = 3
    close(whiten(f64([1.0, 5.0]), torch.tensor([True, True]), only_here, eps=1.0), [-2 / 3, 2 / 3])


@few
@given(st.lists(st.tuples(eighths, st.booleans()), min_size=2, max_size=12))
def test_whitened_entries_have_mean_0_and_variance_1_and_the_others_are_0(
    rows: list[tuple[float, bool]],
) -> None:
    x, mask = f64([r[0] for r in rows]), torch.tensor([r[1] for r in rows])
    out = whiten(x, mask, only_here)
    assert (out[~mask] == 0).all()
    inside = x[mask].numpy()
    if len(set(inside)) > 1:
        got = out[mask].numpy()
        assert abs(got.mean()) < 1e-6
        assert abs(got.var(ddof=1) - 1) < 1e-5
        np.testing.assert_allclose(got, (inside - inside.mean()) / inside.std(ddof=1), rtol=1e-5, atol=1e-9)


def test_whiten_of_one_entry_is_zero_and_not_nan() -> None:
    close(whiten(f64([5.0, 3.0]), torch.tensor([True, False]), only_here), [0.0, 0.0])


def test_whiten_with_ddof_0_divides_by_the_count() -> None:
    # mean 2, squared deviations 4 + 4 over 2 gives 4
    close(whiten(f64([0.0, 4.0]), torch.tensor([True, True]), only_here, eps=0.0, ddof=0), [-1.0, 1.0])


def test_mean_and_std_by_hand_are_those_of_all_ranks() -> None:
    # here 1 and 3; the other rank adds 5 and 3: sum 8, count 2, squared deviations from the mean 3: 4 + 0
    x, mask = f64([1.0, math.nan, 3.0]), torch.tensor([True, False, True])
    elsewhere = iter([f64([8.0, 2.0]), f64(4.0)])
    mean, std = mean_and_std(x, mask, 1, lambda here: here + next(elsewhere))
    close(mean, 3.0)
    close(std, math.sqrt(8 / 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", [0.1, -1 / 3, 1e-30, 16777217.3, 0.0])
@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_equal_numbers_have_a_std_of_exactly_0_and_are_whitened_to_exactly_0(
    dtype: torch.dtype, number: float, count: int
) -> None:
    x, mask = torch.full((count,), number, dtype=dtype), torch.ones(count, dtype=torch.bool)
    mean, std = mean_and_std(x, mask, 1, only_here)
    assert std == 0
    assert mean.dtype == std.dtype == dtype
    torch.testing.assert_close(mean, x[0])
    white = whiten(x, mask, only_here)
    assert white.dtype == dtype
    assert (white == 0).all()


def test_a_small_spread_around_a_large_mean_is_a_spread() -> None:
    x = f64([1e6, 1e6 + 1e-6])
    assert whiten(x, torch.tensor([True, True]), only_here, eps=0.0)[1] > 0.7


def test_divide_by_std_leaves_alone_what_does_not_vary() -> None:
    close(divide_by_std(f64([2.0, 3.0]), f64([0.0, 1.0]), 0.5), [2.0, 2.0])
