"""A KL in the reward, placed by `AdvantageEstimator.credit`: its size, its gradient, and what is a signal."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers.exact import F64, close
from helpers.feedbacks import feedback, outcomes
from torch import Tensor
from typing_extensions import override

from grpo_pl.advantages import (
    GAE,
    GDPO,
    OPO,
    AdvantageEstimator,
    Credit,
    DirectPreference,
    Distillation,
    GroupRelative,
    Imitation,
    LeaveOneOut,
    MaxRL,
    PassAtK,
    ProcessGroupRelative,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ReMax,
    WinRate,
)
from grpo_pl.config.components import implementations
from grpo_pl.types import Feedback

AFTER = [
    GroupRelative(),
    GroupRelative(leave_one_out=True),
    ProcessGroupRelative(),
    GDPO(),
    WinRate(),
    PassAtK(2),
    MaxRL(),
]
"""They divide by the spread of a group or rank it: they see the rewards of the task alone."""
AMONG = [
    GroupRelative("none"),
    GroupRelative("batch"),
    LeaveOneOut(),
    OPO(),
    ReinforcePlusPlusBaseline(),
    ReinforcePlusPlus(),
    ReMax(),
    GAE(),
]
"""Linear in the rewards: the cost is taken off them."""


def name(estimator: AdvantageEstimator) -> str:
    return type(estimator).__name__


def twelve_groups_of_eight() -> tuple[Feedback, Tensor]:
    """Rewards of 0 and 1, half of the groups all right or all wrong, costs of 0.05 k1; and who is silent."""
    generator = torch.Generator().manual_seed(0)
    right = (torch.rand(12, 8, generator=generator) < 0.5).double()
    right[:6] = (torch.arange(6) % 2 == 0).double()[:, None]
    given_all = outcomes(right.flatten().tolist(), [n // 8 for n in range(96)], [16] * 96)
    log_ratios = 0.3 * torch.randn(given_all.rewards.shape, dtype=F64, generator=generator)
    given_all.kl_cost = 0.05 * log_ratios * given_all.loss_mask
    given_all.values = torch.zeros_like(given_all.rewards)
    given_all.greedy = torch.zeros(96, dtype=F64)
    return given_all, torch.arange(96) < 48


def share_of_silent_groups(advantages: Tensor, silent: Tensor) -> float:
    squares = advantages.square().sum(-1)
    return float(squares[silent].sum() / squares.sum())


# --------------------------------------------------------------------------------------------- H3: its size


@pytest.mark.parametrize("estimator", AFTER, ids=name)
def test_the_noise_of_the_kl_takes_no_part_of_the_advantages_from_groups_without_a_signal(
    estimator: AdvantageEstimator,
) -> None:
    given_all, silent = twelve_groups_of_eight()
    among = estimator(replace(given_all, rewards=given_all.rewards - given_all.kl_cost)).advantages
    if isinstance(estimator, GroupRelative):  # what was: about the half, as many groups are silent
        assert 0.35 < share_of_silent_groups(among, silent) < 0.65
    assert share_of_silent_groups(estimator.credit(given_all).advantages, silent) < 0.02


@pytest.mark.parametrize("estimator", AFTER, ids=name)
def test_after_normalisation_each_token_pays_the_cost_of_all_tokens_from_itself_on(
    estimator: AdvantageEstimator,
) -> None:
    given_all, _ = twelve_groups_of_eight()
    difference = estimator.credit(given_all).advantages - estimator(given_all).advantages
    to_go = torch.stack([given_all.kl_cost[:, t:].sum(-1) for t in range(difference.shape[1])], -1)
    close(difference, torch.where(given_all.loss_mask, -to_go, 0.0))


def test_group_relative_with_a_kl_by_hand() -> None:
    # rewards 1 and 0: +-1 / sqrt(2); the first pays 0.5 and 0.25, the second 0.125 with its only token
    given_two = outcomes([1.0, 0.0], [0, 0], [2, 1])
    given_two.kl_cost = torch.tensor([[0.0, 0.5, 0.25], [0.0, 0.125, 0.0]], dtype=F64)
    z = 1 / math.sqrt(2)
    got = GroupRelative(eps=0.0).credit(given_two).advantages
    close(got, [[0.0, z - 0.75, z - 0.25], [0.0, -z - 0.125, 0.0]])


@pytest.mark.parametrize("estimator", AMONG, ids=name)
def test_a_linear_estimator_gives_bit_for_bit_what_it_gives_for_rewards_less_the_cost(
    estimator: AdvantageEstimator,
) -> None:
    given_all, _ = twelve_groups_of_eight()
    expected = estimator(replace(given_all, rewards=given_all.rewards - given_all.kl_cost))
    got = estimator.credit(given_all)
    assert torch.equal(got.advantages, expected.advantages)
    assert (got.returns is None and expected.returns is None) or torch.equal(got.returns, expected.returns)


@pytest.mark.parametrize("estimator", [*AFTER, *AMONG], ids=name)
def test_without_a_kl_in_the_reward_nothing_is_added(estimator: AdvantageEstimator) -> None:
    given_all = replace(twelve_groups_of_eight()[0], kl_cost=None)
    assert torch.equal(estimator.credit(given_all).advantages, estimator(given_all).advantages)


@pytest.mark.parametrize("estimator", [*AFTER, *AMONG], ids=name)
def test_an_unscored_response_has_no_advantage_whatever_its_kl_costs(estimator: AdvantageEstimator) -> None:
    given_all, _ = twelve_groups_of_eight()
    given_all.scored = torch.arange(96) % 5 > 0
    given_all.kl_cost = torch.where(given_all.scored[:, None], given_all.kl_cost, math.nan)
    got = estimator.credit(given_all).advantages
    assert (got[~given_all.scored] == 0).all()
    assert got.isfinite().all()


def test_every_estimator_stands_in_one_of_the_two_lists() -> None:
    lists = {type(one) for one in [*AFTER, *AMONG]}
    taught = {Distillation, DirectPreference, Imitation}  # no reward of the task is measured against the KL
    assert lists == implementations(AdvantageEstimator) - taught
    assert not any(one.linear for one in AFTER)
    assert all(one.linear for one in AMONG)


@pytest.mark.parametrize("base", [*AFTER, *AMONG], ids=name)
def test_a_taught_estimator_pays_the_kl_as_its_base_does(base: AdvantageEstimator) -> None:
    given_all, _ = twelve_groups_of_eight()
    given_all.old_logprobs = given_all.ref_logprobs = torch.zeros_like(given_all.rewards)
    taught = Distillation(base).credit(given_all).advantages
    assert torch.equal(taught, base.credit(given_all).advantages)


class OfAUser(AdvantageEstimator):
    """Divides by the spread of a group and knows of no KL."""

    min_group_size = 2

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        return GroupRelative(eps=0.0)(feedback)


def test_an_estimator_that_says_nothing_of_the_kl_cannot_make_its_noise_large() -> None:
    given_all, silent = twelve_groups_of_eight()
    assert share_of_silent_groups(OfAUser().credit(given_all).advantages, silent) < 0.02
    assert not OfAUser().has_signal(given_all)[silent].any()


# ----------------------------------------------------------------------------------------- H3: its gradient


LOGITS = torch.tensor([[0.3, -0.2], [0.5, 0.1], [-0.4, 0.6]], dtype=F64)
REFERENCE = torch.tensor([[-0.1, 0.4], [0.2, -0.3], [0.0, 0.1]], dtype=F64).log_softmax(-1)
PAIRS = list(itertools.product((0, 1), repeat=2))
"""All responses of two tokens of a vocabulary of two."""


def logprobs_of(logits: Tensor) -> Tensor:
    """Of each token of each response, `[4, 2]`."""
    rows = logits.log_softmax(-1)
    return torch.stack([torch.stack([rows[0, a], rows[1 + a, b]]) for a, b in PAIRS])


def ascent(credit: Callable[[Feedback], Credit], size: int, rewards: Tensor, beta: float) -> Tensor:
    """The expected ascent of an iteration of one prompt over all groups of a size; k1 at cost `beta`."""
    logits = LOGITS.clone().requires_grad_()
    logprobs, reference = logprobs_of(logits), logprobs_of(REFERENCE)
    p, cost = logprobs.sum(-1).exp().detach(), beta * (logprobs.detach() - reference)
    total = torch.zeros((), dtype=F64)
    for group in itertools.product(range(4), repeat=size):
        rows = torch.tensor(group)
        paid = torch.zeros(size, 3, dtype=F64)
        paid[:, 2] = rewards[rows]
        given_all = feedback(paid, torch.tensor([[False, True, True]] * size))
        given_all.kl_cost = torch.nn.functional.pad(cost[rows], (1, 0))
        advantages = credit(given_all).advantages[:, 1:]
        total = total + p[rows].prod() * (advantages * logprobs[rows]).sum() / size
    return torch.autograd.grad(total, logits)[0]


def kl_gradient() -> Tensor:
    """The exact gradient of KL(policy || reference) of whole responses."""
    logits = LOGITS.clone().requires_grad_()
    logprobs = logprobs_of(logits)
    divergence = (logprobs.sum(-1).exp() * (logprobs - logprobs_of(REFERENCE)).sum(-1)).sum()
    return torch.autograd.grad(divergence, logits)[0]


@pytest.mark.parametrize(
    "estimator", [GroupRelative(), GDPO(), WinRate(), PassAtK(2), ProcessGroupRelative()], ids=name
)
def test_the_kl_after_normalisation_adds_its_exact_gradient(estimator: AdvantageEstimator) -> None:
    rewards = torch.tensor([0.0, 1.0, 1.0, 0.25], dtype=F64)
    added = ascent(estimator.credit, 2, rewards, 0.5) - ascent(estimator.credit, 2, rewards, 0.0)
    close(added, -0.5 * kl_gradient())


def test_among_the_rewards_of_a_group_that_is_divided_by_its_spread_the_gradient_was_another() -> None:
    """With equal rewards alone the direction is that of a KL times 1 / std, however small beta is."""

    def as_before(given_all: Feedback) -> Credit:
        return GroupRelative(eps=0.0)(replace(given_all, rewards=given_all.rewards - given_all.kl_cost))

    same = torch.ones(4, dtype=F64)
    tiny, large = (ascent(as_before, 2, same, beta) for beta in (1e-6, 1.0))
    close(tiny, large, 1e-6)
    assert tiny.norm() > 0.1
    close(ascent(GroupRelative(eps=0.0).credit, 2, same, 1e-6), -1e-6 * kl_gradient())


# ------------------------------------------------------------------------------------------------ has_signal


@pytest.mark.parametrize("estimator", [*AFTER, *AMONG], ids=name)
def test_a_kl_is_no_signal(estimator: AdvantageEstimator) -> None:
    given_all, _ = twelve_groups_of_eight()
    without = replace(given_all, kl_cost=None)
    assert torch.equal(estimator.has_signal(given_all), estimator.has_signal(without))


@pytest.mark.parametrize(
    "estimator", [*AFTER, *AMONG[:5], ReinforcePlusPlusBaseline("tokens"), GDPO(over="tokens")], ids=name
)
def test_a_group_whose_scored_responses_are_equally_good_has_no_signal(estimator: AdvantageEstimator) -> None:
    given_all, silent = twelve_groups_of_eight()
    given_all.scored[48:55] = False  # of the first of the others one is left
    got = estimator.has_signal(given_all).view(12, 8).any(-1)
    assert got.tolist() == [False] * 7 + [True] * 5
    assert not estimator.has_signal(given_all)[silent | ~given_all.scored].any()


def test_gdpo_has_a_signal_where_any_of_the_rewards_differs_though_the_sums_do_not() -> None:
    given_all = outcomes([1.0, 1.0, 1.0, 1.0], [0] * 4, [1] * 4)
    parts = {"a": [1.0, 0.0, 0.0, 1.0], "b": [0.0, 1.0, 0.0, 0.0], "c": [0.0, 0.0, 1.0, 0.0]}
    given_all.by_name = {key: torch.tensor(values, dtype=F64) for key, values in parts.items()}
    given_all.weights = dict.fromkeys(parts, 1.0)
    assert GDPO().has_signal(given_all).all()
    assert not GroupRelative().has_signal(given_all).any()
    got = GDPO().credit(given_all).advantages[:, 1]
    close(got.abs(), [math.sqrt(3) / 2] * 4, 1e-3)


def test_the_best_of_all_has_a_signal_only_where_one_response_is_best() -> None:
    given_all = outcomes([1.0, 1.0, 0.0, 1.0, 0.0, 0.0], [0] * 3 + [1] * 3, [1] * 6)
    assert PassAtK(3).has_signal(given_all).tolist() == [False] * 3 + [True] + [False] * 2


def test_truncated_responses_that_are_out_of_the_statistics_are_no_signal() -> None:
    given_all = outcomes([1.0, 1.0, 0.0], [0] * 3, [1] * 3)
    given_all.truncated = torch.tensor([False, False, True])
    assert not GroupRelative(truncated="out").has_signal(given_all).any()
    assert GroupRelative().has_signal(given_all).all()


def test_an_estimator_without_groups_has_a_signal_wherever_a_response_has_an_advantage() -> None:
    given_all = outcomes([1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1], [1] * 4)
    given_all.scored = torch.tensor([True, True, True, False])
    assert ReinforcePlusPlus().has_signal(given_all).tolist() == [True, True, True, False]
    equal = replace(given_all, rewards=torch.where(given_all.loss_mask, 1.0, 0.0).double())
    assert not ReinforcePlusPlus().has_signal(equal).any()
    assert GAE().has_signal(given_all).tolist() == [True, True, True, False]  # before the critic has spoken
    given_all.values = given_all.rewards.clone()  # it was right
    assert not GAE(whiten=False).has_signal(given_all).any()


def test_remax_compares_with_the_greedy_response_once_there_is_one() -> None:
    given_all = outcomes([1.0, 1.0, 1.0, 0.0], [0, 0, 1, 1], [1] * 4)
    assert ReMax().has_signal(given_all).tolist() == [False, False, True, True]
    given_all.greedy = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=F64)
    assert ReMax().has_signal(given_all).tolist() == [True, True, False, True]
