"""Clip-Cov and KL-Cov: which tokens they choose, of the whole rollout, and what becomes of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from helpers.commands import Fit
from helpers.exact import F64, close, f64
from helpers.experiences import experience
from helpers.feedbacks import feedback
from helpers.run_results import NO_VALIDATION, column, saved, strategy, untimed
from helpers.thread_ranks import on_ranks
from torch import Tensor

from grpo_pl.losses import ClipCov, ClippedSurrogate, KLCov, OffPolicyMask, PolicyLoss, TokenMean
from grpo_pl.losses.covariance import covariances, draws_of_responses
from grpo_pl.types import Experience, only_here

MASK = torch.tensor([[False, True, True, True], [False, True, True, False], [False, True, True, True]])


def by_hand() -> Experience:
    """Advantages 3 and -1, log-probabilities of mean -2; the last response has no advantage."""
    advantages = f64([[0, 3, 3, 3], [0, -1, -1, 0], [0, 0, 0, 0]])
    old = f64([[9, -1.0, -2.0, -3.0], [9, -1.0, -3.0, 9], [9, -50.0, -50.0, -50.0]])
    return experience(MASK, advantages=advantages, old_logprobs=old)


def test_covariances_by_hand_over_responses_with_an_advantage() -> None:
    of_rollout = covariances(by_hand(), only_here)  # mean advantage (3 * 3 - 2) / 5 = 1.4
    assert of_rollout.number == 5
    assert torch.equal(of_rollout.tokens, MASK & torch.tensor([[True], [True], [False]]))
    expected = [[1.6, 0.0, -1.6], [-2.4, 2.4]]
    close(of_rollout.values[0, 1:], expected[0])
    close(of_rollout.values[1, 1:3], expected[1])


def test_a_step_of_natural_gradient_takes_the_covariance_off_the_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logp = torch.randn(6, dtype=F64, generator=generator).log_softmax(-1)
    advantages = torch.randn(6, dtype=F64, generator=generator)
    eta = torch.zeros((), dtype=F64, requires_grad=True)
    moved = (logp + eta * advantages).log_softmax(-1)
    (slope,) = torch.autograd.grad(-(moved.exp() * moved).sum(), eta)
    p = logp.exp()
    covariance = (p * (advantages - p @ advantages) * (logp - p @ logp)).sum()
    close(slope, -covariance)


def prepared(loss: PolicyLoss, rollout: Experience, version: int = 0) -> Experience:
    of_rollout = feedback(torch.zeros(rollout.loss_mask.shape, dtype=F64), rollout.loss_mask)
    return replace(rollout, prepared=loss.prepare(rollout, of_rollout, version))


def test_kl_cov_holds_the_tokens_of_greatest_covariance() -> None:
    for share, chosen in ((0.2, [(1, 2)]), (0.4, [(0, 1), (1, 2)]), (1.0, [(0, 1), (1, 2)])):
        loss = KLCov(share, coefficient=0.5)
        batch = prepared(loss, by_hand())
        assert [tuple(place) for place in batch.prepared[loss].nonzero().tolist()] == chosen
    logprobs = (batch.old_logprobs + f64([[0, 0.2, 0.2, 0], [0, 0.1, -0.3, 0], [0] * 4])).requires_grad_()
    got = loss(logprobs, batch)
    (gradient,) = torch.autograd.grad(torch.where(MASK, got.loss, 0.0).sum(), logprobs)
    surrogate = -(logprobs - batch.old_logprobs).exp() * batch.advantages
    expected = surrogate.detach().clone()
    expected[0, 1] += 0.5 * 0.2
    expected[1, 2] += 0.5 * 0.3
    close(torch.where(MASK, got.loss.detach(), 0.0), torch.where(MASK, expected, 0.0))
    held = torch.zeros_like(expected)
    held[0, 1], held[1, 2] = 0.5, -0.5
    close(gradient, torch.where(MASK, surrogate.detach() + held, 0.0))
    assert got.metrics["train/high_covariance"].nonzero().tolist() == [[0, 1], [1, 2]]


def test_clip_cov_leaves_out_a_share_of_the_tokens_in_the_band_and_draws_them_anew_each_iteration() -> None:
    rollout = random_rollout(40)
    values = covariances(rollout, only_here).values
    loss = ClipCov(share=0.05, above=0.5, below=2.0)
    chosen = [prepared(loss, rollout, version).prepared[loss] for version in range(3)]
    for draw in chosen:
        assert int(draw.sum()) == int(0.05 * int(rollout.loss_mask.sum()))
        assert ((values[draw] > 0.5) & (values[draw] < 2.0)).all()
    assert not torch.equal(chosen[0], chosen[1])
    assert torch.equal(chosen[2], prepared(loss, rollout, 2).prepared[loss])
    assert not torch.equal(
        chosen[0], prepared(ClipCov(0.05, 0.5, 2.0, seed=1), rollout).prepared.popitem()[1]
    )
    batch = prepared(loss, rollout)
    logprobs = batch.old_logprobs + 0.3
    plain = ClippedSurrogate()(logprobs, batch)
    got = loss(logprobs, batch)
    assert torch.equal(got.loss, torch.where(chosen[0], 0.0, plain.loss))
    assert torch.equal(got.metrics["train/clip_fraction"], plain.metrics["train/clip_fraction"])


def test_every_token_in_the_band_is_drawn_equally_often() -> None:
    rollout = random_rollout(12)
    loss = ClipCov(share=0.1, above=-math.inf, below=math.inf)
    times = sum(prepared(loss, rollout, version).prepared[loss].double() for version in range(2000))
    tokens = int(rollout.loss_mask.sum())
    expected = 2000 * int(0.1 * tokens) / tokens
    assert (times[rollout.loss_mask] - expected).abs().max() < 5 * math.sqrt(expected)


def test_where_nothing_is_in_the_band_nothing_is_left_out() -> None:
    loss = ClipCov(share=0.5, above=100.0, below=200.0)
    assert not prepared(loss, by_hand()).prepared[loss].any()
    silent = replace(by_hand(), advantages=torch.zeros(MASK.shape, dtype=F64))
    for cov in (ClipCov(above=-1.0), KLCov()):
        assert not prepared(cov, silent).prepared[cov].any()


def random_rollout(rows: int, seed: int = 0) -> Experience:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (rows, 1), generator=generator)
    mask = (torch.arange(10) >= 2) & (torch.arange(10) < 2 + lengths)
    advantages = torch.randn(rows, 1, dtype=F64, generator=generator).expand(rows, 10)
    rollout = experience(
        mask,
        old_logprobs=-torch.rand(rows, 10, dtype=F64, generator=generator) * 3,
        advantages=torch.where(mask, advantages, 0.0),
    )
    return replace(rollout, token_ids=torch.randint(0, 50, mask.shape, generator=generator))


BOTH = [
    ClipCov(share=0.1, above=-0.5, below=1.0),
    KLCov(share=0.15),
    OffPolicyMask(KLCov(share=0.15), threshold=0.1),
]


def chooser(loss: PolicyLoss) -> PolicyLoss:
    return loss.loss if isinstance(loss, OffPolicyMask) else loss


@pytest.mark.parametrize("loss", BOTH, ids=lambda loss: type(loss).__name__)
def test_ranks_and_the_order_of_rows_choose_the_same_tokens(loss: PolicyLoss) -> None:
    rollout = random_rollout(13)
    whole = prepared(loss, rollout, 7).prepared[chooser(loss)]
    assert whole.any()
    order = torch.randperm(13, generator=torch.Generator().manual_seed(1))
    rows: Sequence[Tensor] = (order[:5], order[5:6], order[6:])  # of each rank, padded no wider than needed

    def of_rank(rank: int, total: Callable[[Tensor], Tensor]) -> Tensor:
        piece = rollout.select(rows[rank].tolist())
        given = feedback(torch.zeros(piece.loss_mask.shape), piece.loss_mask, sum_over_ranks=total)
        return loss.prepare(piece, given, 7)[chooser(loss)]

    for chosen, mine in zip(on_ranks(3, of_rank), rows, strict=True):
        assert torch.equal(chosen, whole[mine, : chosen.shape[1]])


@pytest.mark.parametrize("loss", BOTH, ids=lambda loss: type(loss).__name__)
def test_the_shares_of_micro_batches_add_up_to_the_whole_step(loss: PolicyLoss) -> None:
    batch = prepared(loss, random_rollout(9))
    drift = torch.randn(batch.loss_mask.shape, dtype=F64, generator=torch.Generator().manual_seed(2))
    logprobs = batch.old_logprobs + 0.3 * drift
    whole = TokenMean()(loss(logprobs, batch).loss, batch)
    shares = 0.0
    for rows in ([4, 0], [1, 2, 3, 8], [5], [6, 7]):
        piece = batch.select(rows, num_tokens=batch.num_tokens, num_sequences=batch.num_sequences)
        assert piece.prepared[chooser(loss)].shape == piece.loss_mask.shape
        shares += TokenMean()(loss(logprobs[rows, : piece.loss_mask.shape[1]], piece).loss, piece)
    close(shares, whole)


def test_draws_follow_the_response_and_not_its_padding() -> None:
    rollout = random_rollout(3)
    wide = torch.cat([rollout.token_ids, torch.full((3, 4), 7)], 1)
    mask = torch.cat([rollout.loss_mask, torch.zeros(3, 4, dtype=torch.bool)], 1)
    narrow = draws_of_responses(rollout.token_ids, rollout.loss_mask, 0, 1)
    assert torch.equal(draws_of_responses(wide, mask, 0, 1)[:, :10], narrow)


CHOOSING = (
    *("--model.loss", "ClipCov", "--model.loss.share", "0.2", "--model.loss.above", "-10.0"),
    *("--data.minibatches", "1", "--data.update_epochs", "2", "--model.kl", "null", *NO_VALIDATION),
)


def test_a_run_chooses_the_same_tokens_on_two_ranks_and_in_other_micro_batches(fit: Fit) -> None:
    alone = fit(*CHOOSING, "--trainer.max_epochs", 2, "--trainer.accumulate_grad_batches", 4)
    ddp = (*strategy("ddp"), "--trainer.accumulate_grad_batches", 1)
    shared = fit(*CHOOSING, "--trainer.max_epochs", 2, *ddp, ranks=2)
    assert column(alone, "train/high_covariance")[1] > 0.1
    for one, other in zip(untimed(alone), untimed(shared), strict=True):
        assert one == pytest.approx(other, abs=1e-4, rel=1e-4)


def test_a_resumed_run_chooses_as_the_run_that_went_on(fit: Fit) -> None:
    whole = fit(*CHOOSING, "--trainer.max_epochs", 3)
    half = fit(*CHOOSING, "--trainer.max_epochs", 1)
    fit(*CHOOSING, "--trainer.max_epochs", 3, "--ckpt_path", "last", root=half)
    one, other = saved(whole)["state_dict"], saved(half)["state_dict"]
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ClipCov(share=0.0), r"^share=0\.0: expected a number above 0 and at most 1"),
        (lambda: KLCov(share=1.5), r"^share=1\.5: expected a number above 0 and at most 1"),
        (lambda: ClipCov(above=5.0), r"^above=5\.0, below=5\.0: expected above < below"),
        (lambda: ClipCov(clip_low=-1.0), r"^clip_low=-1\.0: expected a number in \[0, 1\]"),
        (lambda: KLCov(coefficient=-1.0), r"^coefficient=-1\.0: expected 0 or more"),
    ],
)
def test_a_bad_argument_is_refused(build: Callable[[], PolicyLoss], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
