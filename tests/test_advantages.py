"""Credit assignment: values by hand, invariances, and what a degenerate group gets."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo_pl.advantages import GAE, AdvantageEstimator, Credit, GroupRelative, LeaveOneOut
from grpo_pl.functional import generalized_advantages
from grpo_pl.types import Feedback

F64 = torch.float64
few = settings(max_examples=25, deadline=None, derandomize=True)
eighths = st.integers(-40, 40).map(lambda i: i / 8)


def feedback(rewards: Tensor, scored: Tensor, values: Tensor | None, mask: Tensor, ids: Tensor) -> Feedback:
    return Feedback(
        rewards=rewards,
        step_ends=torch.zeros_like(mask),
        scored=scored,
        loss_mask=mask,
        group_ids=ids,
        truncated=torch.zeros_like(scored),
        values=values,
    )


def assign(
    estimator: AdvantageEstimator,
    rewards: Sequence[float],
    group_ids: Sequence[int],
    scored: Sequence[bool] | None = None,
    lengths: Sequence[int] | None = None,
    dtype: torch.dtype = F64,
) -> tuple[Tensor, Credit]:
    """The advantage of each response, after a check that all its tokens and no others have it."""
    lengths = lengths or [1 + n % 3 for n in range(len(rewards))]
    mask, paid = torch.zeros(len(rewards), 6, dtype=torch.bool), torch.zeros(len(rewards), 6, dtype=dtype)
    for n, (length, reward) in enumerate(zip(lengths, rewards, strict=True)):
        mask[n, 2 : 2 + length] = True
        paid[n, 1 + length] = reward
    known = torch.ones(len(rewards), dtype=torch.bool) if scored is None else torch.tensor(scored)
    credit = estimator(feedback(paid, known, None, mask, torch.tensor(group_ids)))
    first = credit.advantages[:, 2]
    assert torch.equal(credit.advantages, torch.where(mask, first[:, None], 0.0).to(dtype))
    assert credit.returns is None
    return first, credit


def close(actual: Tensor, expected: Sequence[float] | Tensor, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------------------------------------- GroupRelative

REWARDS, IDS = [2.0, 1.0, 4.0, 3.0, 6.0], [9, 2, 9, 2, 9]
# group 9: 2, 4, 6, mean 4, squared deviations 4 + 0 + 4 = 8
# group 2: 1, 3, mean 2, squared deviations 1 + 1 = 2
# everyone: mean 16 / 5 = 3.2, squared deviations 1.44 + 4.84 + 0.64 + 0.04 + 7.84 = 14.8
CENTRED = [-2.0, -1.0, 0.0, 1.0, 2.0]
NINE, TWO = [0, 2, 4], [1, 3]


@pytest.mark.parametrize(
    ("scale", "ddof", "std_nine", "std_two"),
    [
        ("group", 1, math.sqrt(8 / 2), math.sqrt(2 / 1)),
        ("group", 0, math.sqrt(8 / 3), math.sqrt(2 / 2)),
        ("batch", 1, math.sqrt(14.8 / 4), math.sqrt(14.8 / 4)),
        ("batch", 0, math.sqrt(14.8 / 5), math.sqrt(14.8 / 5)),
    ],
)
@pytest.mark.parametrize("eps", [0.0, 0.5])
def test_group_relative_by_hand(scale: str, ddof: int, std_nine: float, std_two: float, eps: float) -> None:
    got, _ = assign(GroupRelative(scale=scale, ddof=ddof, eps=eps), REWARDS, IDS)
    close(got[NINE], [-2 / (std_nine + eps), 0.0, 2 / (std_nine + eps)])
    close(got[TWO], [-1 / (std_two + eps), 1 / (std_two + eps)])


def test_without_scale_the_advantage_is_the_centred_reward_whatever_eps_and_ddof() -> None:
    for ddof in (0, 1):
        close(assign(GroupRelative(scale="none", ddof=ddof, eps=7.0), REWARDS, IDS)[0], CENTRED)


def test_the_defaults_of_group_relative_are_those_of_trl() -> None:
    got, _ = assign(GroupRelative(), REWARDS, IDS)
    close(got[NINE], [-2 / (2 + 1e-4), 0.0, 2 / (2 + 1e-4)])  # sqrt(8 / (3 - 1)) = 2


def test_rewards_of_several_tokens_of_a_response_add_up_to_its_outcome() -> None:
    mask = torch.tensor([[False, True, True, True], [False, True, True, False]])
    rewards = torch.tensor(
        [[0.0, 1.0, 0.5, 2.5], [0.0, 0.5, 1.5, 0.0]], dtype=F64
    )  # outcomes 4 and 2, mean 3
    scored, ids = torch.tensor([True, True]), torch.tensor([0, 0])
    for estimator, size in ((GroupRelative(scale="none"), 1.0), (LeaveOneOut(), 2.0)):
        close(
            estimator(feedback(rewards, scored, None, mask, ids)).advantages,
            torch.tensor([[0.0, size, size, size], [0.0, -size, -size, 0.0]]),
        )


ESTIMATORS = [
    *(
        GroupRelative(scale=scale, ddof=ddof, eps=0.0)
        for scale in ("group", "batch", "none")
        for ddof in (0, 1)
    ),
    LeaveOneOut(),
]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e-8, 16777217.3])
@pytest.mark.parametrize("size", [2, 3, 7, 11])
def test_a_group_without_variance_gets_exactly_0_in_float32_whatever_rounding_says(
    estimator: AdvantageEstimator, reward: float, size: int
) -> None:
    rewards, ids = [reward] * size + [0.0, 1.0], [4] * size + [5, 5]
    got, _ = assign(estimator, rewards, ids, dtype=torch.float32)
    assert (got[:size] == 0).all()
    assert (got[size:] != 0).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_group_with_one_scored_response_gets_0(estimator: AdvantageEstimator) -> None:
    got, _ = assign(estimator, [3.0, 9.0, 1.0, 2.0], [0, 0, 1, 1], scored=[True, False, True, True])
    assert got[:2].tolist() == [0.0, 0.0]
    assert (got[2:] != 0).all()
    assert assign(estimator, [5.0], [0])[0].tolist() == [0.0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("unknown", [0.0, 1e6, math.nan])
def test_an_unscored_response_gets_0_and_the_others_what_they_would_get_without_it(
    estimator: AdvantageEstimator, unknown: float
) -> None:
    rewards, ids = [unknown, *REWARDS[:3], unknown, *REWARDS[3:]], [9, *IDS[:3], 2, *IDS[3:]]
    scored = [False, True, True, True, False, True, True]
    got, _ = assign(estimator, rewards, ids, scored)
    assert got[[0, 4]].tolist() == [0.0, 0.0]
    close(got[[1, 2, 3, 5, 6]], assign(estimator, REWARDS, IDS)[0])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_iteration_without_a_single_scored_response_has_no_advantages(
    estimator: AdvantageEstimator,
) -> None:
    assert (assign(estimator, [math.nan, 1.0, 2.0], [0, 0, 1], scored=[False] * 3)[1].advantages == 0).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@few
@given(st.permutations(range(4)), st.lists(eighths, min_size=4, max_size=4))
def test_permuting_a_group_permutes_its_advantages_and_changes_nothing_else(
    estimator: AdvantageEstimator, order: list[int], group: list[float]
) -> None:
    other, ids, lengths = [1.0, 5.0, 2.0], [1, 1, 1, 1, 0, 0, 0], [1, 2, 3, 4, 1, 2, 3]
    straight, _ = assign(estimator, group + other, ids, lengths=lengths)
    permuted, _ = assign(estimator, [group[i] for i in order] + other, ids, lengths=lengths)
    close(permuted[:4], straight[:4][order])
    close(permuted[4:], straight[4:])


rewards_of_two_groups = st.lists(
    st.tuples(eighths, st.sampled_from([3, 8]), st.booleans()), min_size=2, max_size=10
)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@few
@given(rewards_of_two_groups, st.integers(-50, 50))
def test_a_constant_added_to_all_rewards_changes_nothing(
    estimator: AdvantageEstimator, rows: list[tuple[float, int, bool]], shift: int
) -> None:
    rewards, ids, scored = map(list, zip(*rows, strict=True))
    shifted, _ = assign(estimator, [reward + shift for reward in rewards], ids, scored)
    close(shifted, assign(estimator, rewards, ids, scored)[0], tolerance=1e-9)


@few
@given(rewards_of_two_groups, st.sampled_from([1e-3, 0.3, 7.0, 1e4]), st.sampled_from([0, 1]))
def test_with_scale_group_and_eps_0_the_unit_of_the_reward_does_not_matter(
    rows: list[tuple[float, int, bool]], unit: float, ddof: int
) -> None:
    rewards, ids, scored = map(list, zip(*rows, strict=True))
    estimator = GroupRelative(scale="group", ddof=ddof, eps=0.0)
    scaled, _ = assign(estimator, [unit * reward for reward in rewards], ids, scored)
    close(scaled, assign(estimator, rewards, ids, scored)[0], tolerance=1e-9)


@few
@given(rewards_of_two_groups, st.sampled_from([0, 1]))
def test_group_relative_equals_a_numpy_loop(rows: list[tuple[float, int, bool]], ddof: int) -> None:
    rewards, ids, scored = map(list, zip(*rows, strict=True))
    for scale in ("group", "batch", "none"):
        everyone = np.array([reward for reward, _, ok in rows if ok])
        expected = []
        for reward, own, ok in rows:
            group = np.array([r for r, g, s in rows if g == own and s])
            divisor = {"group": group, "batch": everyone}.get(scale)
            if not ok or len(set(group)) < 2:
                expected.append(0.0)
            else:
                std = 1.0 if divisor is None else divisor.std(ddof=ddof) + 0.01
                expected.append((reward - group.mean()) / std)
        close(assign(GroupRelative(scale=scale, ddof=ddof, eps=0.01), rewards, ids, scored)[0], expected)


# ------------------------------------------------------------------------------------------------ LeaveOneOut


def test_leave_one_out_by_hand() -> None:
    # 1 - (2 + 6) / 2 = -3; 2 - (1 + 6) / 2 = -1.5; 6 - (1 + 2) / 2 = 4.5; and 10 - 4, 4 - 10
    got, _ = assign(LeaveOneOut(), [1.0, 10.0, 2.0, 6.0, 4.0], [7, 3, 7, 7, 3])
    close(got, [-3.0, 6.0, -1.5, 4.5, -6.0])


@few
@given(rewards_of_two_groups)
def test_leave_one_out_subtracts_the_mean_of_the_other_scored_responses(
    rows: list[tuple[float, int, bool]],
) -> None:
    rewards, ids, scored = map(list, zip(*rows, strict=True))
    expected = []
    for n, (reward, own, ok) in enumerate(rows):
        others = [r for m, (r, g, s) in enumerate(rows) if g == own and s and m != n]
        expected.append(reward - sum(others) / len(others) if ok and others else 0.0)
    close(assign(LeaveOneOut(), rewards, ids, scored)[0], expected, tolerance=1e-6)


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_leave_one_out_is_mean_centring_times_g_over_g_minus_1(size: int) -> None:
    rewards = torch.randn(size, dtype=F64, generator=torch.Generator().manual_seed(size)).tolist()
    centred, _ = assign(GroupRelative(scale="none"), rewards, [0] * size)
    close(assign(LeaveOneOut(), rewards, [0] * size)[0], centred * size / (size - 1), tolerance=1e-6)


# -------------------------------------------------------------------------------------------------------- GAE


def trajectories() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards, values (zero outside of the mask), mask and group ids of four responses."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(7) >= 2) & (torch.arange(7) < torch.tensor([[7], [5], [3], [6]]))
    rewards, values = (
        torch.where(mask, torch.randn(4, 7, dtype=F64, generator=generator), 0.0) for _ in range(2)
    )
    return rewards, values, mask, torch.tensor([0, 0, 1, 1])


def test_gae_by_hand() -> None:
    # gamma = lam = 1/2, one response of two tokens that pays 1 at the end, values 1/2 and 1/4:
    # A_2 = 1 - 1/4 = 3/4; A_1 = (1/2 * 1/4 - 1/2) + 1/4 * 3/4 = -3/16; returns 3/4 + 1/4 and -3/16 + 1/2
    rewards, values = (torch.tensor([row], dtype=F64) for row in ([0.0, 0.0, 1.0], [0.0, 0.5, 0.25]))
    mask, scored = torch.tensor([[False, True, True]]), torch.tensor([True])
    credit = GAE(gamma=0.5, lam=0.5, whiten=False)(feedback(rewards, scored, values, mask, torch.tensor([0])))
    close(credit.advantages, [[0.0, -3 / 16, 3 / 4]])
    close(credit.returns, [[0.0, 5 / 16, 1.0]])


def test_returns_are_advantages_plus_values_before_whitening() -> None:
    rewards, values, mask, ids = trajectories()
    scored = torch.ones(4, dtype=torch.bool)
    raw = generalized_advantages(rewards, values, mask, 0.9, 0.8)
    plain = GAE(gamma=0.9, lam=0.8, whiten=False)(feedback(rewards, scored, values, mask, ids))
    white = GAE(gamma=0.9, lam=0.8, whiten=True)(feedback(rewards, scored, values, mask, ids))
    assert torch.equal(plain.advantages, raw)
    close(plain.returns, raw + values)
    close(white.returns, raw + values)
    inside = raw[mask].numpy()
    close(white.advantages[mask], (inside - inside.mean()) / inside.std(ddof=1), tolerance=1e-6)
    assert (white.advantages[~mask] == 0).all()


def test_with_lam_1_the_returns_do_not_depend_on_the_critic() -> None:
    rewards, values, mask, ids = trajectories()
    scored = torch.ones(4, dtype=torch.bool)
    for critic in (values, torch.zeros_like(values)):
        credit = GAE(gamma=1.0, lam=1.0)(feedback(rewards, scored, critic, mask, ids))
        close(credit.returns, torch.where(mask, rewards.flip(-1).cumsum(-1).flip(-1), 0.0))


@pytest.mark.parametrize("whiten", [False, True])
def test_an_unscored_response_has_no_advantage_and_asks_the_critic_for_no_change(whiten: bool) -> None:
    rewards, values, mask, ids = trajectories()
    rewards[1] = math.nan
    scored = torch.tensor([True, False, True, True])
    credit = GAE(lam=0.8, whiten=whiten)(feedback(rewards, scored, values, mask, ids))
    assert (credit.advantages[1] == 0).all()
    assert torch.equal(credit.returns[1], values[1])
    others = [0, 2, 3]
    alone = GAE(lam=0.8, whiten=whiten)(
        feedback(rewards[others], scored[others], values[others], mask[others], ids[others])
    )
    close(credit.advantages[others], alone.advantages)
    close(credit.returns[others], alone.returns)


@few
@given(st.permutations(range(4)))
def test_gae_looks_at_no_group(order: list[int]) -> None:
    assume(order != [0, 1, 2, 3])
    rewards, values, mask, ids = trajectories()
    scored = torch.ones(4, dtype=torch.bool)
    straight, regrouped = (
        GAE()(feedback(rewards, scored, values, mask, groups)) for groups in (ids, torch.tensor(order))
    )
    assert torch.equal(straight.advantages, regrouped.advantages)


# --------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GroupRelative(ddof=2), r"model\.advantage\.ddof=2: expected 0 .* or 1"),
        (lambda: GroupRelative(eps=-0.5), r"model\.advantage\.eps=-0\.5: expected 0 or more"),
        (lambda: GAE(gamma=1.5), r"model\.advantage\.gamma=1\.5: expected a number in \[0, 1\]"),
        (lambda: GAE(gamma=-0.1), r"model\.advantage\.gamma=-0\.1: expected"),
        (lambda: GAE(lam=1.01), r"model\.advantage\.lam=1\.01: expected"),
        (lambda: GAE(lam=-1.0), r"model\.advantage\.lam=-1\.0: expected"),
    ],
)
def test_a_bad_argument_is_refused_with_its_key_and_what_is_expected(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_only_gae_needs_a_critic_and_only_gae_takes_groups_of_one() -> None:
    assert [(kind.needs_critic, kind.min_group_size) for kind in (GroupRelative, LeaveOneOut, GAE)] == [
        (False, 2), (False, 2), (True, 1),
    ]  # fmt: skip


def test_the_limits_of_every_argument_are_legal() -> None:
    GroupRelative(ddof=0, eps=0.0)
    GAE(gamma=0.0, lam=0.0)
    GAE(gamma=1.0, lam=1.0)
