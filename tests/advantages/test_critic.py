"""GAE: values by hand, and what the critic is told."""

import math

import pytest
import torch
from helpers.exact import F64, close, few
from helpers.feedbacks import feedback, trajectories
from hypothesis import assume, given
from hypothesis import strategies as st

from grpo_pl.advantages import GAE
from grpo_pl.functional import generalized_advantages


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
