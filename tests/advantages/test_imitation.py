"""Imitation by hand; DPO's advantages give the gradient of its own loss."""

import math

import pytest
import torch
from helpers.exact import F64, close
from helpers.feedbacks import assign, outcomes

from grpo_pl.advantages import DirectPreference, Imitation
from grpo_pl.system.refusal import ArgumentError

REWARDS, IDS = [0.0, 1.0, 1.0, 0.5, 0.0, 0.0], [0, 0, 0, 0, 1, 1]


def test_all_responses_are_learned_whatever_their_reward() -> None:
    close(assign(Imitation(), REWARDS, IDS)[0], [1.0] * 6)
    assert not Imitation().needs_rewards
    unknown = [True, False, True, False, True, False]
    close(assign(Imitation(), [math.nan] * 6, IDS, scored=unknown)[0], [1.0] * 6)


@pytest.mark.parametrize(
    ("estimator", "chosen"),
    [
        (Imitation(best=1), [0, 1, 0, 0, 1, 0]),
        (Imitation(best=3), [0, 1, 1, 1, 1, 1]),
        (Imitation(best=2, above=0.0), [0, 1, 1, 0, 0, 0]),
        (Imitation(above=0.25), [0, 1, 1, 1, 0, 0]),
    ],
    ids=["best", "best-three", "best-two-above-0", "above-a-quarter"],
)
def test_the_best_and_those_above_a_reward_are_chosen(estimator: Imitation, chosen: list[float]) -> None:
    assert estimator.needs_rewards
    close(assign(estimator, REWARDS, IDS)[0], chosen)


def test_an_unscored_response_is_not_among_the_best() -> None:
    known = [True, False, True, True, True, False]
    close(
        assign(Imitation(best=1), [0.0, 9.0, 1.0, 0.5, -1.0, 9.0], IDS, scored=known)[0], [0, 0, 1, 0, 1, 0]
    )


@pytest.mark.parametrize("rewards", [[1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 1.0, 0.0, 0.0], [3.0, 3.0]])
def test_dpo_has_the_gradient_of_its_loss(rewards: list[float]) -> None:
    """The mean over all pairs with unequal rewards, of two groups of which the second has one pair."""
    generator, beta = torch.Generator().manual_seed(3), 0.7
    ids = [0] * len(rewards) + [1, 1]
    group = outcomes([*rewards, 0.0, 1.0], ids, [1 + n % 3 for n in range(len(ids))])
    logprobs = torch.randn(group.loss_mask.shape, generator=generator, dtype=F64).requires_grad_()
    group.old_logprobs = logprobs.detach()
    group.ref_logprobs = torch.randn(group.loss_mask.shape, generator=generator, dtype=F64)
    advantages = DirectPreference(beta)(group).advantages
    (ours,) = torch.autograd.grad(-(advantages * logprobs).sum(), logprobs)

    h = torch.where(group.loss_mask, logprobs - group.ref_logprobs, 0.0).sum(-1)
    outcome, loss = group.outcome, torch.zeros((), dtype=F64)
    for each in (0, 1):
        rows = [n for n, one in enumerate(ids) if one == each]
        pairs = [(i, j) for i in rows for j in rows if outcome[i] > outcome[j]]
        loss = loss - sum(torch.nn.functional.logsigmoid(beta * (h[i] - h[j])) for i, j in pairs) / max(
            1, len(pairs)
        )
    (theirs,) = torch.autograd.grad(loss, logprobs)
    close(ours, theirs)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf])
def test_a_beta_that_is_no_number_above_0_is_refused(beta: float) -> None:
    with pytest.raises(ArgumentError, match="beta="):
        DirectPreference(beta)


def test_no_best_response_is_refused() -> None:
    with pytest.raises(ArgumentError, match="best=0: expected 1 or more"):
        Imitation(best=0)
