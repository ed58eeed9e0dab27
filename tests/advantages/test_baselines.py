"""Other baselines: values by hand."""

import math

import pytest
import torch
from helpers.exact import F64, close
from helpers.feedbacks import feedback, outcomes, trajectories

from grpo_pl.advantages import (
    GAE,
    OPO,
    AdvantageEstimator,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ReMax,
)


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
