"""Credit assignment: values by hand, invariances, and what a degenerate group gets."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
import torch
from feedbacks import feedback, outcomes
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo_pl.advantages import (
    GAE,
    GDPO,
    OPO,
    AdvantageEstimator,
    Credit,
    GroupRelative,
    LeaveOneOut,
    PassAtK,
    ProcessGroupRelative,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ReMax,
)
from grpo_pl.advantages.base import check_choice
from grpo_pl.functional import generalized_advantages
from grpo_pl.module import check_advantage_sources
from grpo_pl.regularizers import KLInLoss, KLInReward
from grpo_pl.rewards.base import ProcessReward
from grpo_pl.rewards.rules import Format
from grpo_pl.rewards.transforms import Clip
from grpo_pl.types import Feedback

F64 = torch.float64
few = settings(max_examples=25, deadline=None, derandomize=True)
eighths = st.integers(-40, 40).map(lambda i: i / 8)


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
    credit = estimator(feedback(paid, mask, torch.tensor(group_ids), scored=known))
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
    for estimator, size in ((GroupRelative(scale="none"), 1.0), (LeaveOneOut(), 2.0)):
        close(
            estimator(feedback(rewards, mask)).advantages,
            torch.tensor([[0.0, size, size, size], [0.0, -size, -size, 0.0]]),
        )


ESTIMATORS = [
    *(
        GroupRelative(scale=scale, ddof=ddof, eps=0.0)
        for scale in ("group", "batch", "none")
        for ddof in (0, 1)
    ),
    GroupRelative(leave_one_out=True, eps=0.0),
    LeaveOneOut(),
    OPO(),
    ReinforcePlusPlusBaseline(),
    GDPO(eps=0.0, batch_eps=0.0),
    ProcessGroupRelative(eps=0.0),
    PassAtK(2),
]
"""Those that compare the responses of a group."""


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e-8, 16777217.3])
@pytest.mark.parametrize("size", [2, 3, 7, 11])
def test_a_group_without_variance_gets_exactly_0_in_float32_whatever_rounding_says(
    estimator: AdvantageEstimator, reward: float, size: int
) -> None:
    rewards, ids = [reward] * size + [0.1, 0.2, 0.4], [4] * size + [5, 5, 5]
    got, _ = assign(estimator, rewards, ids, dtype=torch.float32)
    assert (got[:size] == 0).all()
    assert (got[size:] != 0).any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_group_with_one_scored_response_gets_0(estimator: AdvantageEstimator) -> None:
    got, _ = assign(estimator, [3.0, 9.0, 1.0, 2.0], [0, 0, 1, 1], scored=[True, False, True, True])
    assert got[:2].tolist() == [0.0, 0.0]
    assert (got[2:] != 0).any()
    assert assign(estimator, [5.0], [0])[0].tolist() == [0.0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("unknown", [0.0, 1e6, math.nan])
def test_an_unscored_response_gets_0_and_the_others_what_they_would_get_without_it(
    estimator: AdvantageEstimator, unknown: float
) -> None:
    rewards, ids = [unknown, *REWARDS[:3], unknown, *REWARDS[3:]], [9, *IDS[:3], 2, *IDS[3:]]
    scored, lengths = [False, True, True, True, False, True, True], [3, 1, 2, 3, 1, 4, 2]
    got, _ = assign(estimator, rewards, ids, scored, lengths)
    assert got[[0, 4]].tolist() == [0.0, 0.0]
    close(got[[1, 2, 3, 5, 6]], assign(estimator, REWARDS, IDS, lengths=[1, 2, 3, 4, 2])[0])


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
    moved = [lengths[i] for i in order] + lengths[4:]
    permuted, _ = assign(estimator, [group[i] for i in order] + other, ids, lengths=moved)
    close(permuted[:4], straight[:4][order], tolerance=1e-9)
    close(permuted[4:], straight[4:], tolerance=1e-9)


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


def test_leave_one_out_statistics_are_those_of_the_others() -> None:
    # group 9: 2, 4, 6; of 2 the others are 4 and 6: mean 5, std sqrt(2); of 4: 4, sqrt(8); of 6: 3, sqrt(2)
    # group 2: 1, 3; one other has no spread, so nothing is divided
    got, _ = assign(GroupRelative(leave_one_out=True, eps=0.5), REWARDS, IDS)
    close(got[NINE], [-3 / (math.sqrt(2) + 0.5), 0.0, 3 / (math.sqrt(2) + 0.5)])
    close(got[TWO], [-2.0, 2.0])
    got, _ = assign(GroupRelative(leave_one_out=True, eps=0.5, ddof=0), REWARDS, IDS)
    close(got[NINE], [-3 / 1.5, 0.0, 3 / 1.5])


def test_where_the_others_do_not_vary_the_centred_reward_is_not_divided() -> None:
    # of 1 the others are 0, 0, 0; of each 0 they are 1, 0, 0: mean 1/3, squared deviations 4/9 + 1/9 + 1/9
    got, _ = assign(GroupRelative(leave_one_out=True, eps=0.0), [1.0, 0.0, 0.0, 0.0], [0] * 4)
    close(got, [1.0, *[-1 / 3 / math.sqrt(1 / 3)] * 3])


@few
@given(rewards_of_two_groups)
def test_leave_one_out_without_scale_is_the_estimator_of_that_name(
    rows: list[tuple[float, int, bool]],
) -> None:
    rewards, ids, scored = map(list, zip(*rows, strict=True))
    plain = GroupRelative(scale="none", leave_one_out=True)
    close(assign(plain, rewards, ids, scored)[0], assign(LeaveOneOut(), rewards, ids, scored)[0])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_truncated_responses_are_left_out_as_if_they_were_not_there(scale: str) -> None:
    estimator = GroupRelative(scale=scale, truncated="out")
    given_all = outcomes([*REWARDS, 50.0, -7.0], [*IDS, 9, 2], [2] * 7)
    given_all.truncated = torch.tensor([False] * 5 + [True, True])
    got = estimator(given_all).advantages
    close(got[:5], estimator(outcomes(REWARDS, IDS, [2] * 5)).advantages)
    assert (got[5:] == 0).all()
    assert (GroupRelative(scale=scale)(given_all).advantages[5:, 1:] != 0).all()


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
    close(assign(LeaveOneOut(), rewards, ids, scored)[0], expected)


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_leave_one_out_is_mean_centring_times_g_over_g_minus_1(size: int) -> None:
    rewards = torch.randn(size, dtype=F64, generator=torch.Generator().manual_seed(size)).tolist()
    centred, _ = assign(GroupRelative(scale="none"), rewards, [0] * size)
    close(assign(LeaveOneOut(), rewards, [0] * size)[0], centred * size / (size - 1))


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
    mask = torch.tensor([[False, True, True]])
    credit = GAE(gamma=0.5, lam=0.5, whiten=False)(feedback(rewards, mask, values=values))
    close(credit.advantages, [[0.0, -3 / 16, 3 / 4]])
    close(credit.returns, [[0.0, 5 / 16, 1.0]])


def test_returns_are_advantages_plus_values_before_whitening() -> None:
    rewards, values, mask, ids = trajectories()
    raw = generalized_advantages(rewards, values, mask, 0.9, 0.8)
    plain = GAE(gamma=0.9, lam=0.8, whiten=False)(feedback(rewards, mask, ids, values=values))
    white = GAE(gamma=0.9, lam=0.8, whiten=True)(feedback(rewards, mask, ids, values=values))
    assert torch.equal(plain.advantages, raw)
    close(plain.returns, raw + values)
    close(white.returns, raw + values)
    inside = raw[mask].numpy()
    close(white.advantages[mask], (inside - inside.mean()) / inside.std(ddof=1), tolerance=1e-6)
    assert (white.advantages[~mask] == 0).all()


def test_with_lam_1_the_returns_do_not_depend_on_the_critic() -> None:
    rewards, values, mask, ids = trajectories()
    for critic in (values, torch.zeros_like(values)):
        credit = GAE(gamma=1.0, lam=1.0)(feedback(rewards, mask, ids, values=critic))
        close(credit.returns, torch.where(mask, rewards.flip(-1).cumsum(-1).flip(-1), 0.0))


@pytest.mark.parametrize("whiten", [False, True])
def test_an_unscored_response_has_no_advantage_and_asks_the_critic_for_no_change(whiten: bool) -> None:
    rewards, values, mask, ids = trajectories()
    rewards[1] = math.nan
    scored = torch.tensor([True, False, True, True])
    credit = GAE(lam=0.8, whiten=whiten)(feedback(rewards, mask, ids, scored=scored, values=values))
    assert (credit.advantages[1] == 0).all()
    assert torch.equal(credit.returns[1], values[1])
    others = [0, 2, 3]
    alone = GAE(lam=0.8, whiten=whiten)(
        feedback(rewards[others], mask[others], ids[others], values=values[others])
    )
    close(credit.advantages[others], alone.advantages)
    close(credit.returns[others], alone.returns)


@few
@given(st.permutations(range(4)))
def test_gae_looks_at_no_group(order: list[int]) -> None:
    assume(order != [0, 1, 2, 3])
    rewards, values, mask, ids = trajectories()
    straight, regrouped = (
        GAE()(feedback(rewards, mask, groups, values=values)) for groups in (ids, torch.tensor(order))
    )
    assert torch.equal(straight.advantages, regrouped.advantages)


# ------------------------------------------------------------------------------------------- other baselines


def test_remax_by_hand_and_a_group_of_one() -> None:
    given_one = outcomes([3.0, 1.0, 1.0], [0, 1, 2], [2, 1, 2])
    given_one.greedy = torch.tensor([1.0, 2.5, 1.0], dtype=F64)
    close(ReMax()(given_one).advantages, [[0.0, 2.0, 2.0], [0.0, -1.5, 0.0], [0.0, 0.0, 0.0]])


def test_remax_gives_0_where_the_response_or_the_greedy_one_is_unscored() -> None:
    given_all = outcomes([3.0, math.nan, 4.0], [0, 0, 1], [2, 2, 2])
    given_all.greedy = torch.tensor([1.0, 1.0, math.nan], dtype=F64)
    given_all.scored = torch.tensor([True, False, True])
    close(ReMax()(given_all).advantages, [[0.0, 2.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


def test_opo_by_hand() -> None:
    # (1 * 2 + 3 * 1 + 2 * 4) / (1 + 3 + 2) = 13 / 6; where lengths are equal the baseline is the mean, 2
    got = OPO()(outcomes([2.0, 1.0, 4.0, 1.0, 3.0], [0, 0, 0, 1, 1], [1, 3, 2, 2, 2])).advantages
    close(got[:, 1], [2 - 13 / 6, 1 - 13 / 6, 4 - 13 / 6, -1.0, 1.0])


def test_reinforce_plus_plus_by_hand() -> None:
    # gamma 1/2: a response of two tokens that pays 4 has returns 2 and 4, one of a token that pays 0 has 0;
    # mean 2, squared deviations 0 + 4 + 4, over 3 - 1 tokens: variance 4; over 3: 8 / 3
    given_two = outcomes([4.0, 0.0], [0, 1], [2, 1])
    close(ReinforcePlusPlus(gamma=0.5)(given_two).advantages, [[0.0, 0.0, 1.0], [0.0, -1.0, 0.0]], 1e-8)
    of_three = 2 / math.sqrt(8 / 3)
    got = ReinforcePlusPlus(gamma=0.5, ddof=0)(given_two).advantages
    close(got, [[0.0, 0.0, of_three], [0.0, -of_three, 0.0]], 1e-8)


def test_reinforce_plus_plus_takes_rewards_of_tokens_as_the_return_to_go() -> None:
    rewards, _, mask, ids = trajectories()
    returns = rewards.flip(-1).cumsum(-1).flip(-1)[mask]
    got = ReinforcePlusPlus()(feedback(rewards, mask, ids)).advantages
    close(got[mask], (returns - returns.mean()) / returns.std(), 1e-7)
    assert (got[~mask] == 0).all()


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e-8, 16777217.3])
@pytest.mark.parametrize("estimator", [ReinforcePlusPlus(), GAE(lam=1.0)], ids=["returns", "gae"])
def test_whitening_an_iteration_of_equal_returns_gives_exactly_0_in_float32(
    estimator: AdvantageEstimator, reward: float
) -> None:
    same = outcomes([reward] * 7, [0] * 7, [1, 2, 3, 4, 5, 6, 7])
    same.rewards = same.rewards.float()
    same.values = torch.zeros_like(same.rewards)
    assert (estimator(same).advantages == 0).all()


def test_reinforce_plus_plus_baseline_by_hand() -> None:
    # centred -1, 1 and 0, 0; four responses: mean 0, variance 2 / 3; the silent group counts and stays 0
    rewards, ids, lengths = [1.0, 3.0, 5.0, 5.0], [0, 0, 1, 1], [1, 3, 1, 1]
    got = ReinforcePlusPlusBaseline()(outcomes(rewards, ids, lengths)).advantages
    close(got[:, 1], [-1 / math.sqrt(2 / 3), 1 / math.sqrt(2 / 3), 0.0, 0.0], 1e-7)
    # six tokens: -1, three times 1, 0, 0; mean 1 / 3, squared deviations 16/9 + 12/9 + 2/9 = 10/3, over 5
    got = ReinforcePlusPlusBaseline(over="tokens")(outcomes(rewards, ids, lengths)).advantages
    std = math.sqrt(2 / 3)
    close(got[:, 1], [-4 / 3 / std, 2 / 3 / std, -1 / 3 / std, -1 / 3 / std], 1e-7)
    close(got[1], [0.0, *[2 / 3 / std] * 3], 1e-7)


# ---------------------------------------------------------------------------------------------------- PassAtK


def test_pass_at_k_by_hand() -> None:
    # rewards 1, 0, 0, 0 and k = 2: the right one beats whichever other it is paired with, times k
    close(assign(PassAtK(2), [1.0, 0.0, 0.0, 0.0], [0] * 4)[0], [2.0, 0.0, 0.0, 0.0])
    # two right ones of four: one of three partners is right too, so that 2/3 of the pairs are won
    close(assign(PassAtK(2), [1.0, 0.0, 1.0, 0.0], [0] * 4)[0], [4 / 3, 0.0, 4 / 3, 0.0])
    # 5 leads (1, 2) by 3, (1, 4) and (2, 4) by 1; 4 leads (1, 2) by 2, 5 is in the other two; times 3 / 3
    close(assign(PassAtK(3), [1.0, 5.0, 2.0, 4.0], [0] * 4)[0], [0.0, 5.0, 0.0, 2.0])


@pytest.mark.parametrize("size", [2, 3, 5])
def test_with_k_equal_to_the_group_only_the_best_has_an_advantage_its_lead(size: int) -> None:
    rewards = [0.5 * i * i for i in range(size)]
    got, _ = assign(PassAtK(size), rewards, [0] * size)
    close(got, [0.0] * (size - 1) + [size * (rewards[-1] - rewards[-2])])


def test_a_group_with_fewer_than_k_scored_responses_gets_0() -> None:
    scored = [True, True, False, True, True, True]
    got, _ = assign(PassAtK(3), [1.0, 2.0, 3.0, 0.0, 0.0, 1.0], [0, 0, 0, 1, 1, 1], scored)
    close(got, [0.0, 0.0, 0.0, 0.0, 0.0, 3.0])


def test_pass_at_k_needs_groups_of_k() -> None:
    assert PassAtK(5).min_group_size == 5


# ------------------------------------------------------------------------------------------------------- GDPO


def named(by_name: dict[str, list[float]], weights: dict[str, float], ids: list[int]) -> Feedback:
    """Responses of one token with several rewards, given unweighted."""
    weighted = {name: weights[name] * torch.tensor(scores, dtype=F64) for name, scores in by_name.items()}
    total = sum(weighted.values(), torch.zeros(len(ids), dtype=F64))
    given_all = outcomes(total.tolist(), ids, [1] * len(ids))
    given_all.by_name, given_all.weights = weighted, weights
    return given_all


def test_gdpo_by_hand() -> None:
    # right: -1, 1 and 0, 0 in units of its std; short: -1, 1 and 1, -1; weights 1 and 1/2
    by_name = {"right": [0.0, 1.0, 1.0, 1.0], "short": [10.0, 30.0, 7.0, 5.0]}
    given_all = named(by_name, {"right": 1.0, "short": 0.5}, [0, 0, 1, 1])
    # over 2 - 1 the std of a and b is |a - b| / sqrt(2), so that each z is +-1 / sqrt(2)
    total = torch.tensor([-1.5, 1.5, 0.5, -0.5], dtype=F64) / math.sqrt(2)
    close(GDPO(eps=0.0, batch_eps=0.0)(given_all).advantages[:, 1], total / total.std())
    got = GDPO(ddof=0, eps=0.5, batch_eps=0.25)(given_all).advantages[:, 1]
    right, short, other = 0.5 / (0.5 + 0.5), 10 / (10 + 0.5), 1 / (1 + 0.5)
    total = torch.tensor([-right - short / 2, right + short / 2, other / 2, -other / 2], dtype=F64)
    close(got, total / (total.std(correction=0) + 0.25))


def test_gdpo_tells_apart_what_a_sum_of_rewards_does_not() -> None:
    # the sums are 1, 1, 0, but the first reward varies less than the second in its group
    by_name = {"a": [1.0, 0.0, 0.0, 0.0], "b": [0.0, 1.0, 0.0, 1.0]}
    given_all = named(by_name, {"a": 1.0, "b": 1.0}, [0] * 4)
    first, second = GroupRelative()(given_all).advantages[:2, 1]
    assert first == second
    first, second = GDPO()(given_all).advantages[:2, 1]
    assert first > second + 0.1


def test_a_negative_weight_punishes_in_gdpo() -> None:
    up, down = (
        GDPO()(named({"a": [0.0, 2.0, 1.0, 5.0]}, {"a": weight}, [0] * 4)).advantages
        for weight in (1.0, -1.0)
    )
    close(up, -down)


def test_gdpo_over_tokens_is_the_whitened_sum_of_normalised_rewards() -> None:
    given_all = outcomes([1.0, 3.0, 5.0, 5.0], [0, 0, 1, 1], [1, 3, 1, 1])
    got = GDPO(eps=0.0, batch_eps=0.0, over="tokens")(given_all).advantages
    z = 1 / math.sqrt(2)
    tokens = torch.tensor([-z, z, z, z, 0.0, 0.0], dtype=F64)
    close(got[given_all.loss_mask], (tokens - tokens.mean()) / tokens.std())


# ----------------------------------------------------------------------------------------------- step rewards


def test_process_rewards_by_hand() -> None:
    # steps of the group: 1, 3 and 2; mean 2, std 1; z = -1, 1 and 0
    given_two = feedback(
        torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0], [0.0, 0.0, 2.0, 0.0, 0.0]], dtype=F64),
        torch.tensor([[False, True, True, True, True], [False, True, True, True, False]]),
    )
    given_two.step_ends = given_two.rewards != 0
    got = ProcessGroupRelative(eps=0.0)(given_two).advantages
    close(got, [[0.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    # in another group the same numbers are nobody's: a group of equal steps adds 0
    alone = replace(given_two, group_ids=torch.tensor([0, 1]))
    alone.rewards = torch.where(given_two.rewards == 3, 1.0, given_two.rewards)
    assert (ProcessGroupRelative()(alone).advantages == 0).all()


def test_a_step_with_score_0_counts_in_the_statistics() -> None:
    given_two = feedback(
        torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0]], dtype=F64),
        torch.tensor([[False, True, True]] * 2),
    )
    given_two.step_ends = given_two.loss_mask
    # steps 0, 1, 0, 2: mean 3/4, squared deviations 9/16 + 1/16 + 9/16 + 25/16 = 11/4, over 4: 11/16
    std = math.sqrt(11 / 16)
    got = ProcessGroupRelative(ddof=0, eps=0.0)(given_two).advantages
    close(got, [[0.0, -0.5 / std, 0.25 / std], [0.0, 0.5 / std, 1.25 / std]])


def test_what_is_earned_outside_of_steps_is_an_outcome_for_all_tokens() -> None:
    given_two = feedback(
        torch.tensor([[0.0, 1.0, 0.0, 6.0], [0.0, 3.0, 0.0, 2.0]], dtype=F64),
        torch.tensor([[False, True, True, True]] * 2),
    )
    given_two.step_ends[:, 1] = True
    # steps 1 and 3, outcomes 6 and 2: each +-1 / sqrt(2), and the step's share on the first token alone
    z = 1 / math.sqrt(2)
    got = ProcessGroupRelative(eps=0.0)(given_two).advantages
    close(got, [[0.0, 0.0, z, z], [0.0, 0.0, -z, -z]])


@few
@given(rewards_of_two_groups, st.sampled_from([0, 1]))
def test_one_step_at_the_end_of_each_response_is_an_outcome(
    rows: list[tuple[float, int, bool]], ddof: int
) -> None:
    rewards, ids, scored = map(list, zip(*rows, strict=True))
    given_all = outcomes(rewards, ids, [1 + n % 3 for n in range(len(rows))])
    given_all.scored = torch.tensor(scored)
    expected = GroupRelative(ddof=ddof)(given_all).advantages
    close(ProcessGroupRelative(ddof=ddof)(given_all).advantages, expected)
    last = torch.tensor([1 + n % 3 for n in range(len(rows))])
    given_all.step_ends[torch.arange(len(rows)), last] = True
    close(ProcessGroupRelative(ddof=ddof)(given_all).advantages, expected)


def test_the_steps_of_an_unscored_response_enter_no_statistic() -> None:
    rewards, _, mask, _ = trajectories()
    scored = torch.tensor([True, False, True, True])
    rewards[1] = math.nan
    given_all = feedback(rewards, mask, scored=scored, step_ends=mask)
    alone = feedback(rewards[scored], mask[scored], step_ends=mask[scored])
    got = ProcessGroupRelative()(given_all).advantages
    assert (got[1] == 0).all()
    close(got[scored], ProcessGroupRelative()(alone).advantages)


# ------------------------------------------------------------------------------------------------ many ranks


def on_two_ranks(estimator: AdvantageEstimator, given_all: Feedback, cut: int) -> Tensor:
    """The advantages of the rows before and after `cut`, each on a rank (a thread) of its own."""
    barrier, slots = Barrier(2), [torch.zeros(()), torch.zeros(())]

    def run(rank: int) -> Tensor:
        def sum_over_ranks(values: Tensor) -> Tensor:
            slots[rank] = values
            barrier.wait(timeout=10)
            total = slots[0] + slots[1]
            barrier.wait(timeout=10)
            return total

        rows = slice(None, cut) if rank == 0 else slice(cut, None)
        of_rows = {
            name: value[rows] if isinstance(value, Tensor) else value
            for name, value in vars(given_all).items()
        }
        of_rows["by_name"] = {name: value[rows] for name, value in given_all.by_name.items()}
        return estimator(Feedback(**of_rows | {"sum_over_ranks": sum_over_ranks})).advantages

    with ThreadPoolExecutor(2) as pool:
        return torch.cat(list(pool.map(run, (0, 1))))


@pytest.mark.parametrize(
    "estimator",
    [
        *ESTIMATORS,
        ReinforcePlusPlus(gamma=0.9),
        ReinforcePlusPlusBaseline(over="tokens"),
        GDPO(over="tokens"),
        GAE(),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_two_ranks_give_the_advantages_of_one(estimator: AdvantageEstimator) -> None:
    given_all = outcomes([1.0, 4.0, 2.0, 7.0, 7.5, 3.0], [0, 0, 1, 1, 2, 2], [1, 4, 2, 3, 3, 1])
    given_all.scored = torch.tensor([True, True, True, True, True, False])
    given_all.values = torch.where(given_all.loss_mask, 0.25, 0.0).double()
    close(on_two_ranks(estimator, given_all, 2), estimator(given_all).advantages)


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
        (lambda: check_choice("over", "all", "a", "b"), r"model\.advantage\.over=all: expected one of a, b"),
        (lambda: GDPO(batch_eps=-1.0), r"model\.advantage\.batch_eps=-1\.0: expected 0 or more"),
        (
            lambda: ReinforcePlusPlus(gamma=2.0),
            r"model\.advantage\.gamma=2\.0: expected a number in \[0, 1\]",
        ),
        (lambda: ProcessGroupRelative(ddof=3), r"model\.advantage\.ddof=3: expected 0 .* or 1"),
        (lambda: PassAtK(1), r"model\.advantage\.k=1: expected 2 or more; .* LeaveOneOut"),
    ],
)
def test_a_bad_argument_is_refused_with_its_key_and_what_is_expected(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_what_each_estimator_needs() -> None:
    kinds = AdvantageEstimator.__subclasses__()
    assert {kind for kind in kinds if kind.needs_critic} == {GAE}
    assert {kind for kind in kinds if kind.needs_greedy} == {ReMax}
    assert {kind for kind in kinds if kind.needs_steps} == {ProcessGroupRelative}
    assert {kind for kind in kinds if kind.reads_named_rewards} == {GDPO}
    alone = {GAE, ReMax, ReinforcePlusPlus}
    assert {kind for kind in kinds if kind.min_group_size == 1} - {PassAtK} == alone


def test_the_limits_of_every_argument_are_legal() -> None:
    GroupRelative(ddof=0, eps=0.0)
    GAE(gamma=0.0, lam=0.0)
    GAE(gamma=1.0, lam=1.0)
    ReinforcePlusPlus(gamma=0.0)
    PassAtK(2)


class HalfSteps(ProcessReward):
    def score_steps(self, samples: Sequence[object]) -> list[list[object]]:
        return [[] for _ in samples]


def test_process_supervision_without_a_process_reward_is_refused() -> None:
    rule = Format(pattern="x")
    message = r"model\.advantage ProcessGroupRelative needs rewards of steps: .* model\.rewards"
    for rewards in ({"rule": rule}, {"rule": rule, "steps": HalfSteps(weight=0.0)}):
        with pytest.raises(ValueError, match=message):
            check_advantage_sources(ProcessGroupRelative(), rewards, None, [])
    check_advantage_sources(ProcessGroupRelative(), {"rule": rule, "steps": HalfSteps()}, None, [])


def test_what_changes_the_sum_of_the_rewards_is_refused_where_each_is_read_on_its_own() -> None:
    rewards = {"rule": Format(pattern="x")}
    with pytest.raises(ValueError, match=r"model\.reward_transforms change the sum .* GDPO"):
        check_advantage_sources(GDPO(), rewards, None, [Clip()])
    with pytest.raises(ValueError, match=r"model\.kl KLInReward changes the sum .* GDPO"):
        check_advantage_sources(GDPO(), rewards, KLInReward(), [])
    check_advantage_sources(GDPO(), rewards, KLInLoss(), [])
    check_advantage_sources(GroupRelative(), rewards, KLInReward(), [Clip()])
