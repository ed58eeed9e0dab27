"""What compares the responses of a group: values by hand, identities, and loops."""

import math

import numpy as np
import pytest
import torch
from helpers.exact import F64, close, few
from helpers.feedbacks import IDS, REWARDS, assign, feedback, outcomes, rewards_of_two_groups
from hypothesis import given
from hypothesis import strategies as st

from grpo_pl.advantages import GDPO, GroupRelative, LeaveOneOut, PassAtK, WinRate
from grpo_pl.types import Feedback

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


# --------------------------------------------------------------------------------------------------- win rate


def test_win_rate_by_hand() -> None:
    got, _ = assign(WinRate(), [5.0, 1.0, 1.0, 100.0, 7.0], [9, 9, 9, 9, 2])
    close(got, [1 / 3, -2 / 3, -2 / 3, 1.0, 0.0])


@few
@given(rewards_of_two_groups)
def test_a_win_rate_sees_the_order_of_rewards_alone(rows: list[tuple[float, int, bool]]) -> None:
    rewards, ids, scored = (list(column) for column in zip(*rows, strict=True))
    got, _ = assign(WinRate(), rewards, ids, scored)
    stretched, _ = assign(WinRate(), [math.sinh(r) - 7 for r in rewards], ids, scored)
    assert torch.equal(got, stretched)
    for group in set(ids):
        assert abs(float(got[torch.tensor(ids) == group].sum())) < 1e-12, "what one wins another loses"


@few
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([3, 8]), st.booleans()), min_size=2, max_size=10))
def test_with_right_and_wrong_a_win_rate_is_leave_one_out(rows: list[tuple[bool, int, bool]]) -> None:
    rewards, ids, scored = [float(row[0]) for row in rows], [row[1] for row in rows], [row[2] for row in rows]
    close(assign(WinRate(), rewards, ids, scored)[0], assign(LeaveOneOut(), rewards, ids, scored)[0])
