"""Returns and advantages: values by hand, identities, and sums over each sequence on its own."""

import numpy as np
import pytest
import torch
from helpers.exact import F64, close, f64

from grpo_pl.functional import generalized_advantages, outcome_rewards


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
