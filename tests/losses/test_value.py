"""The critic learns from every response token, whatever the masks say."""

import pytest
import torch
from helpers.commands import Fit
from helpers.exact import F64, close
from helpers.experiences import experience
from helpers.run_results import NO_VALIDATION, column, saved
from torch import Tensor

from grpo_pl.functional import prompt_weights
from grpo_pl.losses import (
    Aggregation,
    ClippedValueLoss,
    ConstantLength,
    PromptMean,
    Reinforce,
    SequenceMean,
    TokenMean,
)
from grpo_pl.losses.objective import Objective
from grpo_pl.minibatches import micro_batches
from grpo_pl.types import Experience, TokenScores

MASK = torch.tensor([[False, True, True, True], [False, True, False, False], [False, True, True, False]])
KEPT = torch.tensor([[True, True, False, False], [False, False, False, False], [True, True, True, True]])
RETURNS = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 5.0, 0.0, 0.0], [0.0, 7.0, 8.0, 0.0]], dtype=F64)
PPO = ("--model.critic", "ValueHead", "--model.advantage", "GAE")


def masked(kept: Tensor | None) -> Experience:
    """Three responses to two prompts, in which the critic says 0 and is to learn `RETURNS`."""
    ids = torch.tensor([0, 0, 1])
    counted = MASK if kept is None else MASK & kept
    return experience(
        MASK,
        returns=RETURNS,
        old_values=torch.zeros_like(RETURNS),
        advantages=torch.ones_like(RETURNS),
        kept=kept,
        prompt_weights=prompt_weights(counted.sum(-1), ids, lambda x: x),
        all_prompt_weights=None if kept is None else prompt_weights(MASK.sum(-1), ids, lambda x: x),
    )


def gradients(batch: Experience, aggregation: Aggregation, micro: list[list[int]]) -> dict[str, Tensor]:
    """The gradient of each token's value and log-probability, over one step of these micro-batches."""
    value_loss = ClippedValueLoss(coefficient=1.0, clip=None)
    objective = Objective({"policy": Reinforce(), "value": value_loss}, aggregation)
    values, logprobs = (torch.zeros_like(RETURNS, requires_grad=True) for _ in range(2))
    for rows, piece in zip(micro, micro_batches(batch, [micro], lambda local: local), strict=True):
        width = piece.loss_mask.shape[1]
        scores = TokenScores(logprobs=logprobs[rows, :width], values=values[rows, :width])
        objective(scores, piece).total.backward()
    assert values.grad is not None
    assert logprobs.grad is not None
    return {"values": values.grad, "logprobs": logprobs.grad}


AGGREGATIONS = [TokenMean(), SequenceMean(), ConstantLength(length=8), PromptMean()]


@pytest.mark.parametrize("micro", [[[0, 1, 2]], [[1], [2, 0]], [[2], [1], [0]]], ids=len)
@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=lambda a: type(a).__name__)
def test_masks_change_nothing_for_the_critic_however_the_step_is_cut(
    aggregation: Aggregation, micro: list[list[int]]
) -> None:
    alone, whole = (gradients(masked(kept), aggregation, micro) for kept in (KEPT, None))
    close(alone["values"], whole["values"])
    assert (alone["values"][MASK] != 0).all()
    assert ((alone["logprobs"] != 0) == (MASK & KEPT)).all()


def test_the_means_over_tokens_of_two_terms_have_the_denominators_of_their_own_tokens() -> None:
    got = gradients(masked(KEPT), TokenMean(), [[0], [1, 2]])
    close(got["values"], -RETURNS / 6)  # 6 response tokens
    close(got["logprobs"], -(MASK & KEPT).to(F64) / 3)  # 3 kept ones


@pytest.mark.parametrize(
    ("mask", "aggregation"),
    [("{class_path: TopEntropy, init_args: {share: 0.2}}", "PromptMean"), ("WithoutTruncated", "TokenMean")],
    ids=["top_entropy", "without_truncated"],
)
def test_a_critic_learns_the_same_with_a_mask_as_without(mask: str, aggregation: str, fit: Fit) -> None:
    """Here every response is truncated; the critic's own trunk sees nothing of the policy's steps."""
    one = (*PPO, "--model.aggregation", aggregation, "--trainer.max_epochs", "1", *NO_VALIDATION)
    with_mask, without = fit(*one, "--model.masks", f"[{mask}]"), fit(*one)
    critic = {k: v for k, v in saved(without)["state_dict"].items() if k.startswith("critic.")}
    assert all(torch.equal(saved(with_mask)["state_dict"][name], weight) for name, weight in critic.items())
    assert column(with_mask, "train/critic_grad_norm") == column(without, "train/critic_grad_norm")
    assert column(with_mask, "train/critic_grad_norm")[0] > 0
    assert column(with_mask, "train/grad_norm") != column(without, "train/grad_norm")
