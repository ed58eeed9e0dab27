"""GAE: values by hand, and what the critic is told."""

import math

import pytest
import torch
from helpers.exact import F64, close, few
from helpers.feedbacks import feedback, trajectories
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from grpo_pl.advantages import GAE
from grpo_pl.functional import generalized_advantages, outcome_rewards


def test_gae_by_hand() -> None:
    # gamma = lam = 1/2, one response of two tokens that pays 1 at the end, values 1/2 and 1/4:
    # A_2 = 1 - 1/4 = 3/4; A_1 = (1/2 * 1/4 - 1/2) + 1/4 * 3/4 = -3/16; returns 3/4 + 1/4 and -3/16 + 1/2
    rewards, values = (torch.tensor([row], dtype=F64) for row in ([0.0, 0.0, 1.0], [0.0, 0.5, 0.25]))
    mask = torch.tensor([[False, True, True]])
    credit = GAE(gamma=0.5, lam=0.5, lam_value=0.5, whiten=False)(feedback(rewards, mask, values=values))
    close(credit.advantages, [[0.0, -3 / 16, 3 / 4]])
    close(credit.returns, [[0.0, 5 / 16, 1.0]])


def test_returns_are_advantages_plus_values_before_whitening() -> None:
    rewards, values, mask, ids = trajectories()
    raw = generalized_advantages(rewards, values, mask, 0.9, 0.8)
    plain = GAE(gamma=0.9, lam=0.8, lam_value=0.8, whiten=False)(feedback(rewards, mask, ids, values=values))
    white = GAE(gamma=0.9, lam=0.8, lam_value=0.8, whiten=True)(feedback(rewards, mask, ids, values=values))
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
    credit = GAE(lam=0.8, whiten=whiten, lam_value=0.7)(
        feedback(rewards, mask, ids, scored=scored, values=values)
    )
    assert (credit.advantages[1] == 0).all()
    assert torch.equal(credit.returns[1], values[1])
    others = [0, 2, 3]
    alone = GAE(lam=0.8, whiten=whiten, lam_value=0.7)(
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


# ---------------------------------------------------------------------------- two lams, and one by the length


def long_response(tokens: int = 256) -> tuple[Tensor, Tensor]:
    """The rewards of a response that is paid 1 with its last token, and its mask."""
    mask = torch.ones(1, tokens, dtype=torch.bool)
    return outcome_rewards(torch.ones(1, dtype=F64), mask), mask


def test_a_critic_at_zero_is_told_the_reward_at_every_token_and_with_one_lam_next_to_nothing() -> None:
    """256 tokens with a reward of 1: with 0.95 the mean target is (1 - 0.95^256) / (0.05 * 256) = 0.078."""
    rewards, mask = long_response()
    given = feedback(rewards, mask, values=torch.zeros_like(rewards))
    close(GAE()(given).returns, mask.to(F64))
    close(GAE(lam=0.95)(given).returns, mask.to(F64))
    coupled = GAE(lam=0.95, lam_value=0.95, whiten=False)(given)
    assert coupled.returns is not None
    assert coupled.returns.mean().item() == pytest.approx((1 - 0.95**256) / (0.05 * 256), rel=1e-9)
    assert coupled.returns.mean().item() == pytest.approx(0.078, abs=5e-4)
    assert coupled.advantages[0, 0].item() == pytest.approx(0.95**255, rel=1e-9)
    last = coupled.advantages[0, -64:].sum() / coupled.advantages.sum()
    assert last.item() == pytest.approx(0.96, abs=5e-3)


def test_two_lams_by_hand() -> None:
    # gamma = 1, two tokens, reward 1 at the end, values 1/2 and 1/4: A_2 = 3/4, delta_1 = 1/4 - 1/2 = -1/4.
    # lam 1/2: A_1 = -1/4 + 1/2 * 3/4 = 1/8; lam_value 0: targets are r + V of the next token, 1/4 and 1.
    rewards, values = (torch.tensor([row], dtype=F64) for row in ([0.0, 0.0, 1.0], [0.0, 0.5, 0.25]))
    mask = torch.tensor([[False, True, True]])
    credit = GAE(lam=0.5, lam_value=0.0, whiten=False)(feedback(rewards, mask, values=values))
    close(credit.advantages, [[0.0, 1 / 8, 3 / 4]])
    close(credit.returns, [[0.0, 1 / 4, 1.0]])


@few
@given(st.floats(0, 1), st.floats(0, 1))
def test_neither_lam_moves_what_belongs_to_the_other(lam: float, lam_value: float) -> None:
    rewards, values, mask, ids = trajectories()
    given_values = feedback(rewards, mask, ids, values=values)
    both = GAE(lam=lam, lam_value=lam_value, whiten=False)(given_values)
    assert torch.equal(both.advantages, generalized_advantages(rewards, values, mask, 1.0, lam))
    of_critic = generalized_advantages(rewards, values, mask, 1.0, lam_value)
    assert torch.equal(both.returns, torch.where(mask, of_critic, 0.0) + values)


@few
@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from([None, 0.1, 2.0]))
def test_a_perfect_critic_has_no_advantage_and_nothing_to_learn(
    lam: float, lam_value: float, alpha: float | None
) -> None:
    rewards, _, mask, ids = trajectories()
    to_go = torch.where(mask, rewards.flip(-1).cumsum(-1).flip(-1), 0.0)
    estimator = GAE(lam=lam, lam_value=lam_value, whiten=False, length_adaptive_alpha=alpha)
    credit = estimator(feedback(rewards, mask, ids, values=to_go))
    close(credit.advantages, torch.zeros_like(rewards))
    close(credit.returns, to_go)


@pytest.mark.parametrize(
    ("alpha", "lams"),
    [
        (0.5, [1 - 1 / 2.5, 1 - 1 / 1.5, 0.0, 0.5]),  # 5, 3, 1 and 4 response tokens
        (1.0, [0.8, 2 / 3, 0.0, 0.75]),
        (0.05, [0.0, 0.0, 0.0, 0.0]),  # the paper's, for responses above 20 tokens
        (1e6, [1 - 1 / 5e6, 1 - 1 / 3e6, 1 - 1 / 1e6, 1 - 1 / 4e6]),
    ],
)
def test_each_response_has_the_lam_of_its_length(alpha: float, lams: list[float]) -> None:
    rewards, values, mask, ids = trajectories()
    credit = GAE(whiten=False, length_adaptive_alpha=alpha)(feedback(rewards, mask, ids, values=values))
    for row, lam in enumerate(lams):
        one = slice(row, row + 1)
        alone = generalized_advantages(rewards[one], values[one], mask[one], 1.0, lam)
        close(credit.advantages[one], alone)
    assert torch.equal(credit.returns, GAE()(feedback(rewards, mask, ids, values=values)).returns)


def test_the_sum_of_the_weights_of_a_length_adaptive_lam_is_alpha_times_the_length() -> None:
    """Which is how VAPO comes to its formula: 1 / (1 - lam) = alpha l."""
    _, mask = long_response(400)
    (lam,) = GAE(length_adaptive_alpha=0.05).lam_of_policy(feedback(mask.to(F64), mask))  # type: ignore[misc]
    assert (1 / (1 - lam)).item() == pytest.approx(0.05 * 400)


@pytest.mark.parametrize("alpha", [0.0, -0.1, math.inf, math.nan])
def test_an_alpha_that_gives_no_lam_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"^length_adaptive_alpha=.*: expected a number above 0, or null"):
        GAE(length_adaptive_alpha=alpha)
