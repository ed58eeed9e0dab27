"""Statistics of groups: values by hand, and loops over the groups."""

import itertools
import math

import numpy as np
import torch
from helpers.exact import close, eighths, f64, few
from hypothesis import given
from hypothesis import strategies as st

from grpo_pl.functional import (
    group_is_constant,
    group_mean,
    group_normalize,
    group_size,
    group_std,
    groups_with,
    max_at_k_gains,
    others_mean,
    others_std,
)

IDS = torch.tensor([9, -3, 9, 500, -3, 9, 500])
X = f64([1.0, 10.0, 2.0, 7.0, 30.0, 6.0, 8.0])
VALID = torch.tensor([True, True, True, False, True, True, False])


def test_group_statistics_by_hand_with_scattered_ids_and_a_group_without_valid_rows() -> None:
    # group 9: 1, 2, 6, mean 3, squared deviations 4 + 1 + 9 = 14; group -3: 10, 30, mean 20, 100 + 100
    close(group_mean(X, IDS, VALID), [3.0, 20.0, 3.0, 0.0, 20.0, 3.0, 0.0])
    assert group_size(IDS, VALID).tolist() == [3, 2, 3, 0, 2, 3, 0]
    nine, three = math.sqrt(14 / 2), math.sqrt(200 / 1)
    close(group_std(X, IDS, VALID, 1), [nine, three, nine, 0.0, three, nine, 0.0])
    nine, three = math.sqrt(14 / 3), math.sqrt(200 / 2)
    close(group_std(X, IDS, VALID, 0), [nine, three, nine, 0.0, three, nine, 0.0])


def test_group_std_of_a_single_row_is_zero_with_either_ddof() -> None:
    for ddof in (0, 1):
        close(group_std(f64([5.0]), torch.tensor([3]), torch.tensor([True]), ddof), [0.0])


def test_a_nan_in_an_invalid_row_reaches_no_statistic() -> None:
    x, ids, valid = f64([1.0, math.nan, 3.0]), torch.tensor([0, 0, 0]), torch.tensor([True, False, True])
    close(group_mean(x, ids, valid), [2.0, 2.0, 2.0])
    close(group_std(x, ids, valid, 0), [1.0, 1.0, 1.0])
    assert not group_is_constant(x, ids, valid).any()


rows_of_groups = st.lists(
    st.tuples(eighths, st.sampled_from([-7, 0, 3, 41]), st.booleans()), min_size=1, max_size=14
)


@few
@given(rows_of_groups, st.sampled_from([0, 1]))
def test_group_statistics_equal_those_of_a_loop_over_groups(
    rows: list[tuple[float, int, bool]], ddof: int
) -> None:
    x, ids, valid = (
        f64([r[0] for r in rows]),
        torch.tensor([r[1] for r in rows]),
        torch.tensor([r[2] for r in rows]),
    )
    mean, std, size, constant = [], [], [], []
    for _, own, _ in rows:
        some = np.array([value for value, group, ok in rows if group == own and ok])
        mean.append(some.mean() if len(some) else 0.0)
        std.append(some.std(ddof=ddof) if len(some) > 1 else 0.0)
        size.append(len(some))
        constant.append(len(set(some)) <= 1)
    close(group_mean(x, ids, valid), mean)
    close(group_std(x, ids, valid, ddof), std)
    assert group_size(ids, valid).tolist() == size
    assert group_is_constant(x, ids, valid).tolist() == constant


def test_group_normalize_by_hand() -> None:
    # group 9: 1, 2, 6, mean 3, std sqrt(7); group -3: 10, 30, mean 20, std sqrt(200); group 500 has no rows
    nine, three = math.sqrt(7) + 0.5, math.sqrt(200) + 0.5
    got = group_normalize(X, IDS, VALID, 1, 0.5)
    close(got, [-2 / nine, -10 / three, -1 / nine, 0.0, 10 / three, 3 / nine, 0.0])


@few
@given(rows_of_groups, st.sampled_from([0, 1]))
def test_statistics_of_the_others_equal_those_of_a_loop(
    rows: list[tuple[float, int, bool]], ddof: int
) -> None:
    x, ids, valid = f64([r[0] for r in rows]), torch.tensor([r[1] for r in rows]), [r[2] for r in rows]
    mean, std = [], []
    for n, (_, own, _) in enumerate(rows):
        some = np.array([v for m, (v, group, ok) in enumerate(rows) if group == own and ok and m != n])
        mean.append(some.mean() if len(some) else 0.0)
        std.append(some.std(ddof=ddof) if len(some) > 1 else 0.0)
    close(others_mean(x, ids, torch.tensor(valid)), mean)
    close(others_std(x, ids, torch.tensor(valid), ddof), std)


def test_others_that_are_equal_have_a_std_of_exactly_0_beside_an_outlier() -> None:
    x, ids = torch.tensor([1e6] + [0.3] * 6), torch.zeros(7, dtype=torch.long)
    assert x[1:].sum() / 6 != x[1]
    assert others_std(x, ids, torch.ones(7, dtype=torch.bool), 0)[0] == 0


def test_a_nan_in_an_invalid_row_reaches_no_statistic_of_the_others() -> None:
    x, ids, valid = (
        f64([1.0, math.nan, 3.0, 7.0]),
        torch.tensor([0] * 4),
        torch.tensor([True, False, True, True]),
    )
    close(others_mean(x, ids, valid), [5.0, 11 / 3, 4.0, 2.0])
    close(others_std(x, ids, valid, 0)[0], 2.0)


@few
@given(st.lists(eighths, min_size=2, max_size=6), st.data())
def test_max_at_k_gains_are_the_mean_over_all_choices_of_others(
    rewards: list[float], data: st.DataObject
) -> None:
    k = data.draw(st.integers(2, len(rewards)))
    expected = []
    for n, own in enumerate(rewards):
        others = rewards[:n] + rewards[n + 1 :]
        choices = [max(some) for some in itertools.combinations(others, k - 1)]
        expected.append(k * sum(max(own - best, 0.0) for best in choices) / len(choices))
    close(max_at_k_gains(f64(rewards), k), expected)


def test_a_group_is_constant_only_if_all_its_valid_entries_are_the_very_same_number() -> None:
    just_above = 0.1 + 2**-54 * 2
    x = f64([0.1, 0.1, 0.1, 0.1, just_above, 5.0, 6.0])
    ids, valid = (
        torch.tensor([0, 0, 0, 1, 1, 2, 2]),
        torch.tensor([True, True, True, True, True, True, False]),
    )
    assert just_above != 0.1
    assert group_is_constant(x, ids, valid).tolist() == [True, True, True, False, False, True, True]


def test_a_group_counts_as_marked_if_any_of_its_rows_is_in_ascending_order_of_ids() -> None:
    marked = torch.tensor([False, False, True, False, False, True, False])
    assert groups_with(marked, IDS).tolist() == [False, True, False]
    assert groups_with(torch.arange(7) == 6, IDS).tolist() == [False, False, True]
    assert groups_with(torch.ones(7, dtype=torch.bool), IDS).tolist() == [True] * 3
    assert not groups_with(torch.zeros(7, dtype=torch.bool), IDS).any()


@few
@given(st.lists(st.tuples(st.booleans(), st.integers(-2, 2)), min_size=1, max_size=9))
def test_marked_groups_equal_a_loop_over_groups(rows: list[tuple[bool, int]]) -> None:
    marked, ids = (torch.tensor(column) for column in zip(*rows, strict=True))
    expected = [any(it for it, group in rows if group == one) for one in sorted({id for _, id in rows})]
    assert groups_with(marked, ids).tolist() == expected
