"""The penalty that keeps the policy near the reference."""

import math

import pytest
import torch

from grpo_pl.regularizers import KLInLoss
from grpo_pl.types import Experience

F64 = torch.float64


def against(ref_logprobs: torch.Tensor) -> Experience:
    """A micro-batch of which only the reference's log-probabilities matter."""
    blank = torch.zeros_like(ref_logprobs)
    return Experience(
        token_ids=blank.long(),
        loss_mask=torch.ones_like(blank, dtype=torch.bool),
        sampling_logprobs=blank,
        old_logprobs=blank,
        advantages=blank,
        temperature=1.0,
        ref_logprobs=ref_logprobs,
    )


LN2 = math.log(2)


def test_the_penalty_is_the_coefficient_times_k3_and_the_estimate_is_k3_itself() -> None:
    # d = ref - logprob = ln 2, 0, -ln 2: k3 = 2 - ln 2 - 1, 0, 1/2 + ln 2 - 1
    logprobs = torch.tensor([[-2.0, -1.0, -1.0]], dtype=F64)
    ref = logprobs + torch.tensor([[LN2, 0.0, -LN2]], dtype=F64)
    k3 = torch.tensor([[1 - LN2, 0.0, LN2 - 0.5]], dtype=F64)
    loss, divergence = KLInLoss(coefficient=0.25).loss(logprobs, against(ref))
    torch.testing.assert_close(loss, 0.25 * k3)
    torch.testing.assert_close(divergence, k3)


def test_the_gradient_is_coefficient_times_1_minus_reference_over_policy() -> None:
    # d = ln 2: 1 - 2 = -1, which raises a token that the reference likes better; d = -ln 2: 1 - 1/2 = 1/2
    logprobs = torch.tensor([[-2.0, -1.0, -1.0]], dtype=F64, requires_grad=True)
    ref = logprobs.detach() + torch.tensor([[LN2, 0.0, -LN2]], dtype=F64)
    loss, divergence = KLInLoss(coefficient=0.04).loss(logprobs, against(ref))
    loss.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-0.04, 0.0, 0.02]], dtype=F64))
    assert not divergence.requires_grad


def test_a_coefficient_of_0_still_measures_the_divergence() -> None:
    loss, divergence = KLInLoss(coefficient=0.0).loss(torch.tensor([[-1.0]]), against(torch.tensor([[-2.0]])))
    assert loss.item() == 0.0
    assert divergence.item() == pytest.approx(math.exp(-1) + 1 - 1)


def test_the_default_is_the_papers_beta() -> None:
    assert KLInLoss().coefficient == 0.04


def test_a_step_along_the_expected_gradient_brings_the_policy_nearer_to_the_reference() -> None:
    ref = torch.tensor([0.6, 0.3, 0.1], dtype=F64).log()
    logits = torch.zeros(3, dtype=F64, requires_grad=True)
    for _ in range(400):
        logp = logits.log_softmax(-1)
        loss, _ = KLInLoss(coefficient=1.0).loss(logp[None], against(ref[None]))
        (gradient,) = torch.autograd.grad((logp.detach().exp() * loss[0]).sum(), logits)
        logits = (logits - gradient).detach().requires_grad_()
    torch.testing.assert_close(logits.detach().softmax(-1), ref.exp(), rtol=0, atol=1e-6)


def test_a_negative_coefficient_is_refused_with_its_key() -> None:
    with pytest.raises(ValueError, match=r"model\.kl\.coefficient=-0\.1: expected 0 or more"):
        KLInLoss(coefficient=-0.1)
