"""Losses of the policy: tables by hand, gradients, and the objectives of the papers."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from helpers.exact import F64, close
from helpers.experiences import experience
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo_pl.config.components import implementations
from grpo_pl.losses import (
    CISPO,
    DPPO,
    GMPO,
    GSPO,
    SAPO,
    VESPO,
    ClipCov,
    ClippedSurrogate,
    KLCov,
    OffPolicyMask,
    PolicyLoss,
    Reinforce,
    SequenceMean,
)

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
    ClippedSurrogate(level="sequence"),
    DPPO("kl"),
    DPPO(behaviour="old", max_ratio=None),
    VESPO(behaviour="old"),
    OffPolicyMask(VESPO()),
]
"""Every policy loss in a file of losses/."""


def test_the_policy_losses_are_found_in_their_folder() -> None:
    ours = {ClippedSurrogate, GSPO, CISPO, SAPO, GMPO, Reinforce, DPPO, VESPO, OffPolicyMask, ClipCov, KLCov}
    assert ours <= {*map(type, ALL)}


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
    old = logprobs.detach()  # and the engine's, for some ratios are to it
    batch = experience(
        torch.ones(3, 5, dtype=torch.bool), old_logprobs=old, sampling_logprobs=old, advantages=advantages
    )
    got = policy_loss(logprobs, batch)
    assert not got.metrics["train/ratio_deviation"].any()
    assert not got.metrics.get("train/clip_fraction", torch.zeros(())).any()
    (ours,) = torch.autograd.grad(got.loss.sum(), weights, retain_graph=True)
    (reinforce,) = torch.autograd.grad(-(advantages * logprobs).sum(), weights)
    close(ours, reinforce)


def test_those_that_act_where_every_ratio_is_1_are_not_advised_against() -> None:
    at_once = {Reinforce, ClipCov, OffPolicyMask, *(type(loss) for loss in ALL if loss.of_sampler)}
    assert {type(loss) for loss in ALL if loss.acts_at_once} == at_once
    assert {DPPO, VESPO} <= at_once
    assert not any(loss.acts_at_once for loss in (DPPO(behaviour="old"), VESPO(behaviour="old"), KLCov()))


@pytest.mark.parametrize(
    "policy_loss", [ClippedSurrogate(), ClippedSurrogate(level="sequence"), GSPO(), GMPO(), KLCov()]
)
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


def test_the_ratio_of_a_response_is_the_product_over_its_tokens() -> None:
    # products 1, 4 and 1/4, clipped to [0.8, 1.4]
    check_by_hand(
        ClippedSurrogate(clip_low=0.2, clip_high=0.4, level="sequence"),
        advantages=[[3.0, 3.0], [3.0, 3.0], [-3.0, -3.0], [-3.0, -3.0], [3.0, -1.0]],
        ratios=[[2.0, 0.5], [4.0, 1.0], [2.0, 2.0], [0.25, 1.0], [4.0, 1.0]],
        loss=[[-3.0, -3.0], [-4.2, -4.2], [12.0, 12.0], [2.4, 2.4], [-4.2, 4.0]],
        gradient=[[-3.0, -3.0], [0.0, 0.0], [12.0, 12.0], [0.0, 0.0], [0.0, 4.0]],
        acts=[[0, 0], [1, 1], [0, 0], [1, 1], [1, 0]],
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
