"""Losses of tokens and their sums: tables by hand, gradients, and the identity of micro-batches."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo_pl.functional import balanced_partition, permutation
from grpo_pl.losses import (
    Aggregation,
    ClippedSurrogate,
    ClippedValueLoss,
    ConstantLength,
    SequenceMean,
    TokenMean,
)
from grpo_pl.types import Experience

F64 = torch.float64


def experience(mask: Tensor, **columns: Tensor | None) -> Experience:
    """An experience whose other columns are zero, of one optimizer step that it fills alone."""
    zeros = torch.zeros(mask.shape, dtype=F64)
    given_columns = {"sampling_logprobs": zeros, "old_logprobs": zeros, "advantages": zeros} | columns
    return Experience(
        token_ids=torch.zeros(mask.shape, dtype=torch.int64), loss_mask=mask, temperature=1.0,
        num_tokens=int(mask.sum()), num_sequences=len(mask), **given_columns,
    )  # fmt: skip


def close(actual: Tensor, expected: Tensor | Sequence | float) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------- ClippedSurrogate

# clip_low = 0.2 and clip_high = 0.4: the ratio is clipped to [0.8, 1.4]. Columns: A, ratio, loss,
# d loss / d logprob (-ratio * A where the token still pushes, else 0), whether the clip acts
TABLE = [
    (2.0, 0.5, -1.0, -1.0, 0),  # A > 0, below the lower bound: min(1.0, 1.6), pushes on
    (2.0, 1.0, -2.0, -2.0, 0),
    (2.0, 1.3, -2.6, -2.6, 0),  # above 1 + clip_low, but not above 1 + clip_high
    (2.0, 1.5, -2.8, 0.0, 1),  # min(3.0, 2.8)
    (-2.0, 0.5, 1.6, 0.0, 1),  # -min(-1.0, -1.6)
    (-2.0, 0.7, 1.6, 0.0, 1),  # below 1 - clip_low, though not below 1 - clip_high
    (-2.0, 0.9, 1.8, 1.8, 0),
    (-2.0, 1.5, 3.0, 3.0, 0),  # A < 0, above the upper bound: -min(-3.0, -2.8), pushes on
    (0.0, 0.5, 0.0, 0.0, 0),
    (0.0, 1.5, 0.0, 0.0, 0),
]


def test_the_clipped_surrogate_its_gradient_and_its_metrics_by_hand() -> None:
    advantages, ratio, loss, gradient, acts = torch.tensor(TABLE, dtype=F64).T[:, None]
    old = torch.full_like(ratio, -1.5)
    logprobs = (old + ratio.log()).requires_grad_()
    batch = experience(torch.ones(ratio.shape, dtype=torch.bool), old_logprobs=old, advantages=advantages)
    got = ClippedSurrogate(clip_low=0.2, clip_high=0.4)(logprobs, batch)
    close(got.loss.detach(), loss)
    got.loss.sum().backward()
    close(logprobs.grad, gradient)
    assert got.metrics.keys() == {"train/clip_fraction", "train/ratio_deviation"}
    assert torch.equal(got.metrics["train/clip_fraction"], acts.float())
    close(got.metrics["train/ratio_deviation"], (ratio - 1).abs())
    assert not any(value.requires_grad for value in got.metrics.values())


@pytest.mark.parametrize("clip", [0.2, 0.0])
def test_on_policy_the_loss_is_minus_a_and_the_gradient_is_reinforces(clip: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(
        4, 6, dtype=F64, generator=generator, requires_grad=True
    )  # state -> logits over 6 tokens
    states = torch.randint(4, (3, 5), generator=generator)
    actions = torch.randint(6, (3, 5, 1), generator=generator)
    advantages = torch.randn(3, 5, dtype=F64, generator=generator)
    logprobs = weights[states].log_softmax(-1).gather(-1, actions)[..., 0]
    batch = experience(
        torch.ones(3, 5, dtype=torch.bool), old_logprobs=logprobs.detach(), advantages=advantages
    )
    got = ClippedSurrogate(clip_low=clip, clip_high=clip)(logprobs, batch)
    assert torch.equal(got.loss.detach(), -advantages)
    assert not got.metrics["train/clip_fraction"].any()
    (ours,) = torch.autograd.grad(got.loss.sum(), weights, retain_graph=True)
    (reinforce,) = torch.autograd.grad(-(advantages * logprobs).sum(), weights)
    close(ours, reinforce)


def test_on_policy_the_expected_gradient_is_that_of_the_expected_reward() -> None:
    logits = torch.tensor([0.5, -1.0, 0.2, 1.3], dtype=F64, requires_grad=True)
    reward = torch.tensor([[1.0, 3.0, -2.0, 0.5]], dtype=F64)  # the baseline adds nothing to the expectation
    logp = logits.log_softmax(-1)[None]
    every_token = experience(
        torch.ones(1, 4, dtype=torch.bool), old_logprobs=logp.detach(), advantages=reward - 0.7
    )
    loss = (logp.detach().exp() * ClippedSurrogate()(logp, every_token).loss).sum()
    (ours,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (exact,) = torch.autograd.grad(-(logp.exp() * reward).sum(), logits)
    close(ours, exact)


# ------------------------------------------------------------------------------------------- ClippedValueLoss

# coefficient = 0.5, clip = 0.2, V_old = 1: V is clipped to [0.8, 1.2]. Columns: V, R, 0.5 / 2 * max(...),
# d loss / d V = 0.5 (V - R) where the unclipped error is the greater or V is inside, 1/2 (V - R)^2,
# whether the clip acts
VALUE_TABLE = [
    (1.5, 2.0, 0.16, 0.0, 0.125, 1),  # errors 0.25 and (1.2 - 2)^2 = 0.64
    (1.1, 2.0, 0.2025, -0.45, 0.405, 0),  # inside: 0.81 twice
    (1.5, 0.0, 0.5625, 0.75, 1.125, 0),  # 2.25 and 1.44
    (0.5, 0.0, 0.16, 0.0, 0.125, 1),  # 0.25 and 0.64
    (0.5, 2.0, 0.5625, -0.75, 1.125, 0),  # 2.25 and (0.8 - 2)^2 = 1.44
]


def test_the_clipped_value_loss_its_gradient_and_its_metrics_by_hand() -> None:
    values, returns, loss, gradient, plain, acts = torch.tensor(VALUE_TABLE, dtype=F64).T[:, None]
    values.requires_grad_()
    mask = torch.ones(values.shape, dtype=torch.bool)
    batch = experience(mask, returns=returns, old_values=torch.ones_like(returns))
    got = ClippedValueLoss(coefficient=0.5, clip=0.2)(values, batch)
    close(got.loss.detach(), loss)
    got.loss.sum().backward()
    close(values.grad, gradient)
    assert got.metrics.keys() == {"train/value_loss", "train/value_clip_fraction"}
    close(got.metrics["train/value_loss"], plain)
    assert torch.equal(got.metrics["train/value_clip_fraction"], acts.float())
    assert not any(value.requires_grad for value in got.metrics.values())


def test_at_the_old_values_the_value_loss_is_half_the_squared_error_times_the_coefficient() -> None:
    old, returns = torch.tensor([[0.3, -0.6]], dtype=F64), torch.tensor([[1.0, 0.4]], dtype=F64)
    batch = experience(torch.ones(1, 2, dtype=torch.bool), returns=returns, old_values=old)
    close(ClippedValueLoss(coefficient=2.0, clip=0.1)(old, batch).loss, [[0.7**2, 1.0**2]])


# ----------------------------------------------------------------------------------------------- aggregations

MASK = torch.tensor([[False, True, True, True], [False, True, False, False]])
LOSS = torch.tensor([[100.0, 1.0, 2.0, 3.0], [100.0, 5.0, 100.0, math.nan]], dtype=F64)
BY_HAND = [
    (TokenMean(), (1 + 2 + 3 + 5) / 4),
    (SequenceMean(), ((1 + 2 + 3) / 3 + 5 / 1) / 2),
    (ConstantLength(length=8), (1 + 2 + 3 + 5) / (2 * 8)),
]


@pytest.mark.parametrize(("aggregation", "expected"), BY_HAND)
def test_aggregations_by_hand(aggregation: Aggregation, expected: float) -> None:
    close(aggregation(LOSS, experience(MASK)), expected)


@pytest.mark.parametrize(("aggregation", "expected"), BY_HAND)
def test_the_size_of_the_step_and_not_that_of_the_micro_batch_divides(
    aggregation: Aggregation, expected: float
) -> None:
    batch = experience(MASK)
    batch.num_tokens, batch.num_sequences = 3 * batch.num_tokens, 3 * batch.num_sequences
    close(aggregation(LOSS, batch), expected / 3)


@pytest.mark.parametrize(("aggregation", "expected"), BY_HAND)
def test_columns_of_padding_change_nothing(aggregation: Aggregation, expected: float) -> None:
    wide = torch.cat([LOSS, torch.full((2, 3), 1e9, dtype=F64)], -1)
    mask = torch.cat([MASK, torch.zeros(2, 3, dtype=torch.bool)], -1)
    close(aggregation(wide, experience(mask)), expected)


@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMean(), ConstantLength(length=5)])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 6), min_size=4, max_size=9), st.integers(1, 4), st.integers(0, 9))
def test_the_shares_of_k_micro_batches_add_up_to_one_batch_and_so_do_their_gradients(
    aggregation: Aggregation, lengths: list[int], micro_batches: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(9) >= 1) & (torch.arange(9) <= torch.tensor(lengths)[:, None])
    old, advantages, drift = (torch.randn(mask.shape, dtype=F64, generator=generator) for _ in range(3))
    logprobs = (old + 0.3 * drift).requires_grad_()
    whole = experience(mask, old_logprobs=old, advantages=advantages)
    surrogate = ClippedSurrogate()

    objective = aggregation(surrogate(logprobs, whole).loss, whole)
    (gradient,) = torch.autograd.grad(objective, logprobs)

    order = permutation(len(lengths), seed)
    parts = [
        [order[i] for i in part] for part in balanced_partition([lengths[n] for n in order], micro_batches)
    ]
    shares = torch.zeros((), dtype=F64)
    for rows in parts:
        piece = whole.select(rows, num_tokens=whole.num_tokens, num_sequences=whole.num_sequences)
        shares = shares + aggregation(
            surrogate(logprobs[rows, : piece.loss_mask.shape[1]], piece).loss, piece
        )
    (summed,) = torch.autograd.grad(shares, logprobs)
    close(shares.detach(), objective.detach())
    close(summed, gradient)


def test_each_token_counts_the_same_or_each_response_does() -> None:
    loss = torch.ones(2, 4, dtype=F64, requires_grad=True)
    for aggregation, long, short in ((TokenMean(), 1 / 4, 1 / 4), (SequenceMean(), 1 / 6, 1 / 2)):
        (weight,) = torch.autograd.grad(aggregation(loss, experience(MASK)), loss)
        close(weight, [[0, long, long, long], [0, short, 0, 0]])


# -------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: ClippedSurrogate(clip_low=1.1),
            r"model\.loss\.clip_low=1\.1: expected a number in \[0, 1\]",
        ),
        (lambda: ClippedSurrogate(clip_low=-0.1), r"model\.loss\.clip_low=-0\.1: expected"),
        (lambda: ClippedSurrogate(clip_high=-0.1), r"model\.loss\.clip_high=-0\.1: expected 0 or more"),
        (
            lambda: ClippedValueLoss(coefficient=-1.0),
            r"model\.value_loss: coefficient=-1\.0, clip=0\.2: expected",
        ),
        (lambda: ClippedValueLoss(clip=0.0), r"model\.value_loss: coefficient=0\.5, clip=0\.0: expected"),
        (lambda: ConstantLength(length=0), r"model\.aggregation\.length=0: expected 1 or more"),
    ],
)
def test_a_bad_argument_is_refused_with_its_key_and_what_is_expected(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_the_limits_of_every_argument_are_legal() -> None:
    ClippedSurrogate(clip_low=0.0, clip_high=0.0)
    ClippedSurrogate(clip_low=1.0, clip_high=10.0)
    ClippedValueLoss(coefficient=0.0, clip=1e-3)
    ConstantLength(length=1)
