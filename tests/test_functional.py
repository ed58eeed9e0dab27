"""The pure functions: values by hand, identities, and brute force on small inputs."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_pl.functional import (
    balanced_partition,
    derive_seed,
    divide_by_std,
    generalized_advantages,
    group_is_constant,
    group_mean,
    group_normalize,
    group_size,
    group_std,
    kl_k3,
    majority_at_k,
    masked_mean,
    max_at_k_gains,
    mean_and_std,
    others_mean,
    others_std,
    outcome_rewards,
    pad_rows,
    pass_at_k,
    permutation,
    whiten,
    wilson_interval,
)
from grpo_pl.types import only_here

F64 = torch.float64
few = settings(max_examples=40, deadline=None, derandomize=True)
eighths = st.integers(-40, 40).map(lambda i: i / 8)  # exact in binary, so that sums are exact


def f64(values: Sequence) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def close(actual: torch.Tensor, expected: Sequence | np.ndarray, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(
        actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=tolerance, atol=tolerance
    )


# ------------------------------------------------------------------------------------------------- randomness


def test_derive_seed_never_changes_from_one_release_to_the_next() -> None:
    # blake2b-64 of "(17, 'update', 3)", read little-endian, without its lowest bit
    assert derive_seed(17, "update", 3) == 2674847994683189782


def test_derive_seed_depends_on_every_part_on_their_order_and_on_their_types() -> None:
    calls = [
        (1, 2),
        (2, 1),
        (1,),
        (2,),
        (1, 2, 0),
        (12,),
        (1, "2"),
        ("1", 2),
        ("a", "b"),
        ("ab",),
        ("b", "a"),
    ]
    assert len({derive_seed(*parts) for parts in calls}) == len(calls)


@few
@given(st.lists(st.one_of(st.integers(), st.sampled_from(["", "update", "ü"])), max_size=4))
def test_derive_seed_is_a_seed_that_torch_takes(parts: list[int | str]) -> None:
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)


def test_derived_seeds_fill_the_whole_range() -> None:
    seeds = [derive_seed("range", i) for i in range(256)]
    assert min(seeds) < 2**63 // 16
    assert max(seeds) > 2**63 - 2**63 // 16
    assert 80 < sum(seed % 2 for seed in seeds) < 176  # odd ones: 128 expected, 8 is one standard deviation


def test_permutation_has_every_row_once_and_is_a_function_of_its_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    order = permutation(50, 7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert permutation(50, 7) == order
    assert permutation(50, 8) != order
    assert sorted(order) == list(range(50))


def test_permutation_gives_each_order_equally_often() -> None:
    counts = Counter(tuple(permutation(3, derive_seed("uniform", i))) for i in range(1200))
    assert len(counts) == 6
    assert all(
        abs(count - 200) < 65 for count in counts.values()
    )  # sqrt(1200 * 1/6 * 5/6) = 13, five times that


# ------------------------------------------------------------------------------------------------- reductions


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


# ---------------------------------------------------------------------------------------------------- returns


def test_outcome_reward_stands_on_the_last_response_token_also_behind_a_hole_in_the_mask() -> None:
    mask = torch.tensor(
        [[0, 1, 1, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], dtype=torch.bool
    )
    out = outcome_rewards(f64([2.0, 3.0, 5.0, -1.0]), mask)
    close(out, [[0, 0, 2, 0, 0], [0, 0, 0, 0, 3], [0, 0, 0, 0, 0], [0, -1, 0, 0, 0]])


def test_generalized_advantages_by_hand() -> None:
    # gamma = lam = 1/2. delta_3 = 1 - 1/2 = 1/2                       A_3 = 1/2
    #                    delta_2 = 0 + 1/2 * 1/2 - 1/4 = 0             A_2 = 0 + 1/4 * 1/2 = 1/8
    #                    delta_1 = 0 + 1/2 * 1/4 - 1/2 = -3/8          A_1 = -3/8 + 1/4 * 1/8 = -11/32
    rewards, values = f64([[0.0, 0.0, 0.0, 1.0]]), f64([[9.0, 0.5, 0.25, 0.5]])
    mask = torch.tensor([[False, True, True, True]])
    close(generalized_advantages(rewards, values, mask, 0.5, 0.5), [[0.0, -11 / 32, 1 / 8, 1 / 2]])


def random_trajectories(seed: int, holes: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(5, 9, dtype=F64, generator=generator) for _ in range(2))
    length = torch.tensor([[8], [5], [1], [3], [8]])
    mask = (torch.arange(9) >= 1) & (torch.arange(9) <= length)
    if holes:
        mask &= torch.rand(5, 9, generator=generator) < 0.6
    return rewards, values, mask


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (0.8, 1.0), (0.7, 0.0), (0.0, 0.5)])
def test_generalized_advantages_equal_the_sum_over_deltas_of_each_sequence_on_its_own(
    gamma: float, lam: float, holes: bool
) -> None:
    rewards, values, mask = random_trajectories(3, holes)
    expected = np.zeros((5, 9))
    for n in range(5):
        steps = mask[n].nonzero()[:, 0].tolist()
        r, v = rewards[n, steps].numpy(), np.append(values[n, steps].numpy(), 0.0)
        delta = r + gamma * v[1:] - v[:-1]
        for i, t in enumerate(steps):
            expected[n, t] = sum((gamma * lam) ** j * d for j, d in enumerate(delta[i:]))
    close(generalized_advantages(rewards, values, mask, gamma, lam), expected)


def test_with_gamma_and_lam_1_the_advantage_is_return_to_go_minus_value() -> None:
    rewards, values, mask = random_trajectories(4, holes=True)
    paid = torch.where(mask, rewards, 0.0)
    to_go = paid.flip(-1).cumsum(-1).flip(-1)
    close(generalized_advantages(rewards, values, mask, 1.0, 1.0), torch.where(mask, to_go - values, 0.0))


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_a_perfect_critic_leaves_no_advantage(lam: float) -> None:
    gamma = 0.9
    rewards, values, mask = random_trajectories(5, holes=True)
    for n in range(5):
        worth = 0.0
        for t in reversed(mask[n].nonzero()[:, 0].tolist()):
            worth = rewards[n, t].item() + gamma * worth
            values[n, t] = worth
    close(generalized_advantages(rewards, values, mask, gamma, lam), torch.zeros(5, 9))


def test_masked_tokens_in_the_middle_are_stepped_over_as_if_their_columns_did_not_exist() -> None:
    rewards, values, _ = random_trajectories(6, holes=False)
    keep = [1, 2, 5, 6, 8]
    mask = torch.zeros(5, 9, dtype=torch.bool)
    mask[:, keep] = True
    whole = generalized_advantages(rewards, values, mask, 0.9, 0.8)
    kept = generalized_advantages(rewards[:, keep], values[:, keep], mask[:, keep], 0.9, 0.8)
    assert torch.equal(whole[:, keep], kept)
    assert (whole[~mask] == 0).all()


# ------------------------------------------------------------------------------------------------ divergences


def test_k3_by_hand() -> None:
    # d = ln 2: exp(d) - d - 1 = 2 - ln 2 - 1; d = -ln 2: 1/2 + ln 2 - 1
    ln2 = math.log(2)
    close(kl_k3(f64([-3.0, -1.0]), f64([-3.0 + ln2, -1.0 - ln2])), [1 - ln2, ln2 - 0.5])


@few
@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=8))
def test_k3_is_never_negative_and_zero_where_the_policies_agree(pairs: list[tuple[float, float]]) -> None:
    logprobs, ref = torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])
    assert (kl_k3(logprobs, ref) >= 0).all()
    assert (kl_k3(logprobs, logprobs) == 0).all()


def test_k3_is_accurate_in_float32_for_policies_that_are_nearly_equal() -> None:
    # d = 2^-10: d^2 / 2 + d^3 / 6, a millionth of exp(d), which therefore must not be computed
    d = 2.0**-10
    got = kl_k3(torch.tensor([-1.0]), torch.tensor([-1.0 + d])).item()
    assert got == pytest.approx(d**2 / 2 + d**3 / 6, rel=1e-3)


def small_vocabulary() -> tuple[torch.Tensor, torch.Tensor]:
    logits = f64([0.3, -1.2, 2.0, 0.5, -0.4]).requires_grad_()
    return logits, f64([1.0, 0.2, -0.7, 0.9, 0.1]).log_softmax(-1)


def test_the_expectation_of_k3_under_the_policy_is_the_exact_kl() -> None:
    logits, ref = small_vocabulary()
    logp = logits.detach().log_softmax(-1)
    exact = (logp.exp() * (logp - ref)).sum()
    close((logp.exp() * kl_k3(logp, ref)).sum(), exact)


def test_the_expected_gradient_of_k3_is_that_of_the_forward_kl_and_not_of_the_reverse_one() -> None:
    logits, ref = small_vocabulary()
    logp = logits.log_softmax(-1)
    expected_k3 = (
        logp.detach().exp() * kl_k3(logp, ref)
    ).sum()  # the samples' probabilities carry no gradient
    forward = (ref.exp() * (ref - logp)).sum()  # KL(reference || policy)
    reverse = (logp.exp() * (logp - ref)).sum()  # KL(policy || reference)
    of_k3, of_forward, of_reverse = (
        torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (expected_k3, forward, reverse)
    )
    close(of_k3, of_forward)
    assert (of_k3 - of_reverse).abs().max() > 0.1


# ------------------------------------------------------------------------------------------------- evaluation


def test_pass_at_k_by_hand() -> None:
    # 2 of 4 are right: 1 - C(2, 2) / C(4, 2) = 1 - 1 / 6
    assert pass_at_k([True, False, True, False], 2) == pytest.approx(5 / 6)
    assert pass_at_k([True, False, True, False], 1) == 0.5
    assert pass_at_k([True, False, False, False], 4) == 1.0
    assert pass_at_k([False, False, False], 2) == 0.0


@few
@given(st.lists(st.booleans(), min_size=1, max_size=7))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_response(correct: list[bool]) -> None:
    for k in range(1, len(correct) + 1):
        subsets = [any(chosen) for chosen in itertools.combinations(correct, k)]
        assert pass_at_k(correct, k) == pytest.approx(sum(subsets) / len(subsets))


def majority_by_enumeration(answers: Sequence[str | None], right: set[str], k: int) -> float:
    wins = []
    for chosen in itertools.combinations(answers, k):
        votes = Counter(answer for answer in chosen if answer is not None)
        tied = [answer for answer, count in votes.items() if count == max(votes.values())]
        wins.append(sum(answer in right for answer in tied) / len(tied) if tied else 0.0)
    return sum(wins) / len(wins)


def test_majority_at_k_by_hand() -> None:
    # pairs of [5, 5, 7, None]: {5,5} 1; {5,7} twice, by lot 1/2; {5,None} twice 1; {7,None} 0
    answers, correct = ["5", "5", "7", None], [True, True, False, False]
    assert majority_at_k(answers, correct, 2) == pytest.approx(4 / 6)
    assert majority_at_k(answers, correct, 4) == pytest.approx(1.0)
    assert majority_at_k([None, None], [False, False], 2) == 0.0


@pytest.mark.parametrize("right", [{"a"}, {"a", "b"}])
def test_majority_at_k_is_the_mean_over_all_subsets_with_ties_drawn_by_lot(right: set[str]) -> None:
    for size in range(1, 7):
        for answers in itertools.combinations_with_replacement([None, "a", "b", "c"], size):
            correct = [answer in right for answer in answers]
            for k in range(1, size + 1):
                expected = majority_by_enumeration(answers, right, k)
                assert majority_at_k(answers, correct, k) == pytest.approx(expected), (answers, k)


def test_majority_at_k_does_not_depend_on_the_order_of_the_responses() -> None:
    answers = ["b", None, "a", "b", "a", "c", None, "a"]
    backwards = answers[::-1]
    for k in range(1, 9):
        one, other = (majority_at_k(some, [a == "a" for a in some], k) for some in (answers, backwards))
        assert one == pytest.approx(other)
        assert one == pytest.approx(majority_by_enumeration(answers, {"a"}, k))


def test_majority_of_one_is_pass_of_one() -> None:
    answers, correct = ["a", "b", "a", None, "c"], [True, False, True, False, False]
    assert majority_at_k(answers, correct, 1) == pytest.approx(pass_at_k(correct, 1))


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
NEWCOMBE = [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
]


@pytest.mark.parametrize(("successes", "trials", "low", "high"), NEWCOMBE)
def test_wilson_interval_is_that_of_the_published_table(
    successes: int, trials: int, low: float, high: float
) -> None:
    assert wilson_interval(float(successes), trials) == pytest.approx((low, high), abs=5.1e-5)


@few
@given(st.integers(1, 60), st.data())
def test_the_ends_of_wilsons_interval_are_where_the_score_test_just_rejects(
    trials: int, data: st.DataObject
) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_interval(float(successes), trials, z=1.5)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1
    for end in (low, high):
        assert (successes / trials - end) ** 2 == pytest.approx(1.5**2 * end * (1 - end) / trials, abs=1e-12)
    mirrored = wilson_interval(float(trials - successes), trials, z=1.5)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_interval_of_no_trials_is_everything() -> None:
    assert wilson_interval(0.0, 0) == (0.0, 1.0)


# ----------------------------------------------------------------------------------------------- partitioning


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
