"""Losses of tokens and their sums: tables by hand, gradients, and the identity of micro-batches."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from helpers.exact import F64, close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo_pl.config.components import implementations
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
    PolicyLoss,
    PromptMean,
    Reinforce,
    SequenceMean,
    TokenMean,
)
from grpo_pl.types import Experience


def experience(mask: Tensor, **columns: Tensor | None) -> Experience:
    """An experience whose other columns are zero, of one optimizer step that it fills alone."""
    zeros = torch.zeros(mask.shape, dtype=F64)
    one_prompt = prompt_weights(mask.sum(-1), torch.zeros(len(mask), dtype=torch.int64), lambda x: x)
    given_columns = {
        "sampling_logprobs": zeros, "old_logprobs": zeros, "advantages": zeros, "prompt_weights": one_prompt,
    } | columns  # fmt: skip
    return Experience(
        token_ids=torch.zeros(mask.shape, dtype=torch.int64), loss_mask=mask, temperature=1.0,
        num_tokens=int(mask.sum()), num_sequences=len(mask), **given_columns,
    )  # fmt: skip


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


def by_sign(advantages: Tensor) -> list[tuple[str, Tensor]]:
    """The ends of the clip fractions' names, and the tokens that each of them is about."""
    return [("", advantages == advantages), ("_positive", advantages > 0), ("_negative", advantages < 0)]


def test_the_clipped_surrogate_its_gradient_and_its_metrics_by_hand() -> None:
    advantages, ratio, loss, gradient, acts = torch.tensor(TABLE, dtype=F64).T[:, None]
    old = torch.full_like(ratio, -1.5)
    logprobs = (old + ratio.log()).requires_grad_()
    batch = experience(torch.ones(ratio.shape, dtype=torch.bool), old_logprobs=old, advantages=advantages)
    got = ClippedSurrogate(clip_low=0.2, clip_high=0.4)(logprobs, batch)
    close(got.loss.detach(), loss)
    got.loss.sum().backward()
    close(logprobs.grad, gradient)
    clipped = {f"train/clip_fraction{sign}": acts.float() * where for sign, where in by_sign(advantages)}
    assert got.metrics.keys() == {"train/ratio_deviation", *clipped}
    assert all(torch.equal(got.metrics[name], expected) for name, expected in clipped.items())
    close(got.metrics["train/ratio_deviation"], (ratio - 1).abs())
    assert not any(value.requires_grad for value in got.metrics.values())


ALL = [
    *(cls() for cls in sorted(implementations(PolicyLoss), key=lambda cls: cls.__name__)),
    ClippedSurrogate(clip_low=0.0, clip_high=0.0),
    ClippedSurrogate(dual_clip=3.0),
]
"""Every policy loss in a file of losses/."""


def test_the_policy_losses_are_found_in_their_folder() -> None:
    assert {ClippedSurrogate, GSPO, CISPO, SAPO, GMPO, Reinforce} <= {*map(type, ALL)}


by_name = pytest.mark.parametrize("policy_loss", ALL, ids=lambda loss: type(loss).__name__)


@by_name
def test_on_policy_the_gradient_is_reinforces(policy_loss: PolicyLoss) -> None:
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
    got = policy_loss(logprobs, batch)
    assert not got.metrics["train/ratio_deviation"].any()
    assert not got.metrics.get("train/clip_fraction", torch.zeros(())).any()
    (ours,) = torch.autograd.grad(got.loss.sum(), weights, retain_graph=True)
    (reinforce,) = torch.autograd.grad(-(advantages * logprobs).sum(), weights)
    close(ours, reinforce)


@pytest.mark.parametrize("policy_loss", [ClippedSurrogate(), GSPO(), GMPO()])
def test_on_policy_the_loss_of_a_token_is_exactly_minus_its_advantage(policy_loss: PolicyLoss) -> None:
    logprobs, advantages = torch.tensor([[-0.1, -2.3, -7.7]]), torch.tensor([[0.3, -1.7, 0.0]])
    batch = experience(torch.ones(1, 3, dtype=torch.bool), old_logprobs=logprobs, advantages=advantages)
    assert torch.equal(policy_loss(logprobs, batch).loss, -advantages)


@by_name
def test_no_ratio_is_too_great_for_a_finite_loss_and_a_finite_gradient(policy_loss: PolicyLoss) -> None:
    drift = torch.tensor([[1e4, -1e4, 100.0, -100.0], [1e4, 1e4, 1e4, 1e4], [-1e4, -1e4, -1e4, -1e4]])
    for advantage in (1.0, -1.0, 0.0):
        logprobs = drift.clone().requires_grad_()
        batch = experience(
            torch.ones(3, 4, dtype=torch.bool),
            old_logprobs=torch.zeros(3, 4),
            advantages=torch.full((3, 4), advantage),
        )
        got = policy_loss(logprobs, batch)
        got.loss.sum().backward()
        assert got.loss.isfinite().all()
        assert logprobs.grad.isfinite().all()
        assert all(value.isfinite().all() for value in got.metrics.values())


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


# ------------------------------------------------------------------------------------------- the other losses


def check_by_hand(
    policy_loss: PolicyLoss, advantages: Sequence, ratios: Sequence, loss: Sequence, gradient: Sequence,
    acts: Sequence | None,
) -> None:  # fmt: skip
    """Rows are responses; the log-probability of every token was -1.5."""
    ratio = torch.tensor(ratios, dtype=F64)
    old = torch.full_like(ratio, -1.5)
    logprobs = (old + ratio.log()).requires_grad_()
    given_advantages = torch.tensor(advantages, dtype=F64)
    mask = torch.ones(ratio.shape, dtype=torch.bool)
    got = policy_loss(logprobs, experience(mask, old_logprobs=old, advantages=given_advantages))
    close(got.loss.detach(), loss)
    got.loss.sum().backward()
    close(logprobs.grad, gradient)
    close(got.metrics["train/ratio_deviation"], (ratio - 1).abs())
    for sign, where in by_sign(given_advantages):
        clipped = got.metrics.get(f"train/clip_fraction{sign}")
        assert clipped is None if acts is None else torch.equal(clipped, torch.tensor(acts) * where)
    assert not any(value.requires_grad for value in got.metrics.values())


def test_the_dual_clip_bounds_bad_tokens_that_became_likelier_and_nothing_else() -> None:
    check_by_hand(
        ClippedSurrogate(clip_low=0.2, clip_high=0.4, dual_clip=3.0),
        advantages=[[-2.0, -2.0, -2.0, 2.0, 0.0]],
        ratios=[[4.0, 2.5, 0.5, 4.0, 4.0]],
        loss=[[6.0, 5.0, 1.6, -2.8, 0.0]],  # without: 8.0, 5.0, 1.6, -2.8, 0.0
        gradient=[[0.0, 5.0, 0.0, 0.0, 0.0]],
        acts=[[1, 0, 1, 1, 0]],
    )


def test_gspo_by_hand() -> None:
    # s is the geometric mean: sqrt(2 * 0.5) = 1, sqrt(4 * 1) = 2, sqrt(0.25 * 1) = 0.5, clipped to [0.8, 1.4]
    check_by_hand(
        GSPO(clip_low=0.2, clip_high=0.4),
        advantages=[[3.0, 3.0], [3.0, 3.0], [-3.0, -3.0], [-3.0, -3.0], [3.0, -1.0]],
        ratios=[[2.0, 0.5], [4.0, 1.0], [4.0, 1.0], [0.25, 1.0], [4.0, 1.0]],
        loss=[[-3.0, -3.0], [-4.2, -4.2], [6.0, 6.0], [2.4, 2.4], [-4.2, 2.0]],
        gradient=[[-3.0, -3.0], [0.0, 0.0], [6.0, 6.0], [0.0, 0.0], [0.0, 2.0]],
        acts=[[0, 0], [1, 1], [0, 0], [1, 1], [1, 0]],
    )


def test_cispo_by_hand() -> None:
    # the clip bounds the weight of a token, whose log-probability goes on having a gradient
    ratios = [0.25, 1.0, 4.0, 4.0, 4.0]
    advantages, weights = [2.0, 2.0, 2.0, -2.0, 0.0], [0.5, 1.0, 3.0, 3.0, 3.0]
    check_by_hand(
        CISPO(low=0.5, high=3.0),
        advantages=[advantages],
        ratios=[ratios],
        loss=[[-w * a * (-1.5 + math.log(r)) for w, a, r in zip(weights, advantages, ratios, strict=True)]],
        gradient=[[-1.0, -2.0, -6.0, 6.0, 0.0]],
        acts=[[1, 0, 1, 1, 0]],
    )


def test_sapo_by_hand() -> None:
    # at ratio 2: sigmoid(1) for tau = 1 and sigmoid(2) for tau = 2; the gradient of the gate is
    # 4 sigmoid (1 - sigmoid) ratio
    up, down = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    check_by_hand(
        SAPO(tau_positive=1.0, tau_negative=2.0),
        advantages=[[3.0, -3.0, 3.0, -3.0, 0.0]],
        ratios=[[1.0, 1.0, 2.0, 2.0, 2.0]],
        loss=[[-6.0, 3.0, -12 * up, 6 * down, 0.0]],
        gradient=[[-3.0, 3.0, -24 * up * (1 - up), 24 * down * (1 - down), 0.0]],
        acts=None,
    )


def test_gmpo_by_hand() -> None:
    # log rho is clipped above at ln 2 where A > 0 and below at -ln 2 where A < 0: (4, 1/8) becomes (2, 1/8)
    # or (4, 1/2); their geometric means are 1/2 and sqrt(2)
    half, root = 0.5, math.sqrt(2)
    check_by_hand(
        GMPO(clip_low=math.log(2), clip_high=math.log(2)),
        advantages=[[3.0, 3.0], [-3.0, -3.0], [0.0, 0.0]],
        ratios=[[4.0, 0.125], [4.0, 0.125], [4.0, 0.125]],
        loss=[[-3 * half, -3 * half], [3 * root, 3 * root], [0.0, 0.0]],
        gradient=[[0.0, -3 * half], [3 * root, 0.0], [0.0, 0.0]],
        acts=[[1, 0], [0, 1], [0, 0]],
    )


def test_reinforce_by_hand() -> None:
    check_by_hand(
        Reinforce(),
        advantages=[[2.0, -2.0, 0.0]],
        ratios=[[1.0, 1.0, 7.0]],
        loss=[[3.0, -3.0, 0.0]],
        gradient=[[-2.0, 2.0, 0.0]],
        acts=None,
    )


def paper_gspo(log_ratio: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    """The paper's objective, eq. 5: one ratio and one clip a response."""
    ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1)).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(0.9, 1.1) * advantages).mean()


def paper_gmpo(log_ratio: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    """The paper's objective as in its code: the pessimistic minimum of sign(A) log rho, token by token."""
    sign = advantages.sign()[:, None]
    pessimistic = sign * torch.minimum(sign * log_ratio, sign * log_ratio.clamp(-0.3, 0.2))
    return -(((pessimistic * mask).sum(-1) / mask.sum(-1)).exp() * advantages).mean()


@pytest.mark.parametrize(
    ("policy_loss", "paper"), [(GSPO(0.1, 0.1), paper_gspo), (GMPO(0.3, 0.2), paper_gmpo)]
)
@settings(max_examples=15, derandomize=True)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=6), st.integers(0, 99))
def test_the_mean_over_sequences_of_the_token_form_is_the_papers_objective(
    policy_loss: PolicyLoss, paper: Callable[..., Tensor], lengths: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(8) >= 1) & (torch.arange(8) <= torch.tensor(lengths)[:, None])
    old, drift = (torch.randn(mask.shape, dtype=F64, generator=generator) for _ in range(2))
    advantages = torch.randn(len(lengths), dtype=F64, generator=generator)
    logprobs = (old + 0.4 * drift).requires_grad_()
    batch = experience(mask, old_logprobs=old, advantages=advantages[:, None].expand(mask.shape))
    ours = SequenceMean()(policy_loss(logprobs, batch).loss, batch)
    theirs = paper(logprobs - old, mask, advantages)
    close(ours.detach(), theirs.detach())
    close(torch.autograd.grad(ours, logprobs)[0], torch.autograd.grad(theirs, logprobs)[0])


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
    batch.num_tokens, batch.num_sequences = 3 * batch.num_tokens, 3 * batch.num_sequences
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
            r"^coefficient=-1\.0, clip=0\.2: expected",
        ),
        (lambda: ClippedValueLoss(clip=0.0), r"^coefficient=0\.5, clip=0\.0: expected"),
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
