"""The value loss, sums of losses, and what the arguments of losses may be: by hand, and by identities."""

import math
from collections.abc import Callable

import pytest
import torch
from helpers.exact import F64, close
from helpers.experiences import experience
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo_pl.functional import balanced_partition, permutation, prompt_weights
from grpo_pl.losses import (
    CISPO,
    GMPO,
    GSPO,
    SAPO,
    Aggregation,
    ClippedSurrogate,
    ClippedValueLoss,
    ConstantLength,
    PromptMean,
    SequenceMean,
    TokenMean,
)
from grpo_pl.minibatches import micro_batches

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


def test_at_the_old_values_the_loss_is_half_the_squared_error_times_the_coefficient() -> None:
    old, returns = torch.tensor([[0.3, -0.6]], dtype=F64), torch.tensor([[1.0, 0.4]], dtype=F64)
    batch = experience(torch.ones(1, 2, dtype=torch.bool), returns=returns, old_values=old)
    close(ClippedValueLoss(coefficient=2.0, clip=0.1)(old, batch).loss, [[0.7**2, 1.0**2]])


def test_without_a_clip_the_loss_is_the_squared_error_and_nothing_is_clipped() -> None:
    values, returns = torch.tensor(VALUE_TABLE, dtype=F64).T[:2, None]
    values.requires_grad_()
    mask = torch.ones(values.shape, dtype=torch.bool)
    batch = experience(mask, returns=returns, old_values=torch.ones_like(returns))
    got = ClippedValueLoss(coefficient=0.5, clip=None)(values, batch)
    close(got.loss.detach(), 0.25 * (values.detach() - returns) ** 2)
    got.loss.sum().backward()
    close(values.grad, 0.5 * (values.detach() - returns))
    assert (got.metrics["train/value_clip_fraction"] == 0).all()
    wide = ClippedValueLoss(coefficient=0.5, clip=math.inf)(values, batch)
    assert torch.equal(wide.loss, got.loss)


# ----------------------------------------------------------------------------------------------- aggregations

MASK = torch.tensor([[False, True, True, True], [False, True, False, False]])
LOSS = torch.tensor([[100.0, 1.0, 2.0, 3.0], [100.0, 5.0, 100.0, math.nan]], dtype=F64)
BY_HAND = [
    (TokenMean(), (1 + 2 + 3 + 5) / 4),
    (SequenceMean(), ((1 + 2 + 3) / 3 + 5 / 1) / 2),
    (ConstantLength(length=8), (1 + 2 + 3 + 5) / (2 * 8)),
    (PromptMean(), (1 + 2 + 3 + 5) / 4),  # both answer one prompt
]


@pytest.mark.parametrize(("aggregation", "expected"), BY_HAND)
def test_aggregations_by_hand(aggregation: Aggregation, expected: float) -> None:
    close(aggregation(LOSS, experience(MASK)), expected)


@pytest.mark.parametrize(("aggregation", "expected"), BY_HAND)
def test_the_size_of_the_step_and_not_that_of_the_micro_batch_divides(
    aggregation: Aggregation, expected: float
) -> None:
    batch = experience(MASK)
    for size in ("num_tokens", "num_sequences", "all_sequences"):
        setattr(batch, size, 3 * getattr(batch, size))
    close(aggregation(LOSS, batch), expected / 3)


@pytest.mark.parametrize(("aggregation", "expected"), BY_HAND)
def test_columns_of_padding_change_nothing(aggregation: Aggregation, expected: float) -> None:
    wide = torch.cat([LOSS, torch.full((2, 3), 1e9, dtype=F64)], -1)
    mask = torch.cat([MASK, torch.zeros(2, 3, dtype=torch.bool)], -1)
    close(aggregation(wide, experience(mask)), expected)


@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMean(), ConstantLength(length=5), PromptMean()])
@settings(max_examples=15, derandomize=True)
@given(st.lists(st.integers(1, 6), min_size=4, max_size=9), st.integers(1, 4), st.integers(0, 9))
def test_the_shares_of_k_micro_batches_add_up_to_one_batch_and_so_do_their_gradients(
    aggregation: Aggregation, lengths: list[int], micro_batches: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(9) >= 1) & (torch.arange(9) <= torch.tensor(lengths)[:, None])
    old, advantages, drift = (torch.randn(mask.shape, dtype=F64, generator=generator) for _ in range(3))
    logprobs = (old + 0.3 * drift).requires_grad_()
    of_prompts = prompt_weights(torch.tensor(lengths), torch.arange(len(lengths)) // 3, lambda x: x)
    whole = experience(mask, old_logprobs=old, advantages=advantages, prompt_weights=of_prompts)
    surrogate = ClippedSurrogate()

    objective = aggregation(surrogate(logprobs, whole).loss, whole)
    (gradient,) = torch.autograd.grad(objective, logprobs)

    order = permutation(len(lengths), seed)
    parts = [
        [order[i] for i in part] for part in balanced_partition([lengths[n] for n in order], micro_batches)
    ]
    shares = torch.zeros((), dtype=F64)
    for rows in parts:
        piece = whole.select(rows)
        shares = shares + aggregation(
            surrogate(logprobs[rows, : piece.loss_mask.shape[1]], piece).loss, piece
        )
    (summed,) = torch.autograd.grad(shares, logprobs)
    close(shares.detach(), objective.detach())
    close(summed, gradient)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        (ConstantLength(length=6), (1 + 2 + 3) / (2 * 6)),  # half of what both would give, each with 6
        (TokenMean(), (1 + 2 + 3) / 3),
        (SequenceMean(), (1 + 2 + 3) / 3),
        (PromptMean(), (1 + 2 + 3) / 3),
    ],
)
def test_a_response_that_a_mask_leaves_out_still_divides_by_a_constant_length_alone(
    aggregation: Aggregation, expected: float
) -> None:
    whole = experience(MASK, kept=torch.tensor([[True] * 4, [False] * 4]), num_tokens=3, num_sequences=1)
    whole.prompt_weights = prompt_weights(torch.tensor([3, 0]), torch.zeros(2, dtype=torch.long), lambda x: x)
    close(aggregation(LOSS, whole), expected, 1e-7)


def test_masking_half_of_the_responses_halves_the_loss_of_a_constant_length() -> None:
    loss, mask = torch.ones(8, 5, dtype=F64), torch.ones(8, 5, dtype=torch.bool)
    whole = experience(mask)
    half = experience(mask, kept=(torch.arange(8) < 4)[:, None].expand(8, 5))
    (piece,) = micro_batches(half, [[list(range(8))]], lambda local: local)
    close(ConstantLength(5)(loss, whole), 1.0)
    close(ConstantLength(5)(loss, piece), 0.5)


def test_each_token_counts_the_same_or_each_response_does() -> None:
    loss = torch.ones(2, 4, dtype=F64, requires_grad=True)
    for aggregation, long, short in ((TokenMean(), 1 / 4, 1 / 4), (SequenceMean(), 1 / 6, 1 / 2)):
        (weight,) = torch.autograd.grad(aggregation(loss, experience(MASK)), loss)
        close(weight, [[0, long, long, long], [0, short, 0, 0]])


RAGGED = torch.tensor([[3, 1], [2, 2], [0, 5], [0, 0]])  # counted tokens of two responses to each prompt


def mean_over_prompts(loss: Tensor, mask: Tensor) -> Tensor:
    """By the definition, from the rows of `RAGGED`: the last prompt has no token and does not count."""
    sums = torch.where(mask, loss, 0.0).sum(-1).view(4, 2).sum(-1)
    return (sums[:3] / RAGGED[:3].sum(-1)).mean()


def prompt_mean_of_rank(loss: Tensor, mask: Tensor, weights: Tensor, rows: slice) -> Tensor:
    batch = experience(mask[rows], prompt_weights=weights)
    batch.num_sequences = int((RAGGED > 0).sum())  # of all ranks
    return PromptMean()(loss[rows], batch)


def test_the_mean_over_prompts_is_that_of_its_definition_on_one_rank_and_on_two() -> None:
    tokens, group_ids = RAGGED.flatten(), torch.arange(8) // 2
    mask = torch.arange(6) < tokens[:, None]
    loss = torch.randn(8, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    expected = mean_over_prompts(loss, mask)
    alone = prompt_weights(tokens, group_ids, lambda local: local)
    in_float32 = {"rtol": 1e-6, "atol": 0.0}
    torch.testing.assert_close(prompt_mean_of_rank(loss, mask, alone, slice(8)), expected, **in_float32)

    ranks, asked = (slice(0, 4), slice(4, 8)), []
    for rows in ranks:
        prompt_weights(tokens[rows], group_ids[rows], lambda local: asked.append(local) or local)
    shares = [
        prompt_mean_of_rank(
            loss, mask, prompt_weights(tokens[rows], group_ids[rows], lambda _: sum(asked)), rows
        )
        for rows in ranks
    ]
    assert shares[1] != 0
    torch.testing.assert_close(sum(shares), expected, **in_float32)


# -------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: ClippedSurrogate(clip_low=1.1),
            r"^clip_low=1\.1: expected a number in \[0, 1\]",
        ),
        (lambda: ClippedSurrogate(clip_low=-0.1), r"^clip_low=-0\.1: expected"),
        (lambda: ClippedSurrogate(clip_high=-0.1), r"^clip_high=-0\.1: expected 0 or more"),
        (lambda: ClippedSurrogate(clip_high=math.nan), r"^clip_high=nan: expected 0 or more"),
        (lambda: ClippedSurrogate(dual_clip=1.0), r"^dual_clip=1\.0: expected a number above 1"),
        (lambda: GSPO(clip_low=2.0), r"^clip_low=2\.0: expected a number in \[0, 1\]"),
        (lambda: CISPO(high=0.2), r"^low=0\.0, high=0\.2: expected 0 <= low <= 1 <= high"),
        (lambda: SAPO(tau_negative=0.0), r"^tau_negative=0\.0: expected a number above 0"),
        (lambda: GMPO(clip_low=-0.4), r"^clip_low=-0\.4: expected 0 or more, in nats"),
        (
            lambda: ClippedValueLoss(coefficient=-1.0),
            r"^coefficient=-1\.0, clip=0\.5: expected",
        ),
        (lambda: ClippedValueLoss(clip=0.0), r"^coefficient=0\.5, clip=0\.0: expected .* null for no clip"),
        (lambda: ConstantLength(length=0), r"^length=0: expected 1 or more"),
    ],
)
def test_a_bad_argument_is_refused_with_its_key_and_what_is_expected(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_the_limits_of_every_argument_are_legal() -> None:
    ClippedSurrogate(clip_low=0.0, clip_high=0.0)
    ClippedSurrogate(clip_low=1.0, clip_high=10.0, dual_clip=1.01)
    CISPO(low=1.0, high=1.0)
    GMPO(clip_low=0.0, clip_high=0.0)
    ClippedValueLoss(coefficient=0.0, clip=1e-3)
    ConstantLength(length=1)
