"""Estimates of divergences: values by hand, expectations, and gradients."""

import math

import pytest
import torch
from helpers.exact import close, f64, few
from hypothesis import given
from hypothesis import strategies as st

from grpo_pl.functional import kl_k3


def test_k3_by_hand() -> None:
    # d = ln 2: exp(d) - d - 1 = 2 - ln 2 - 1; d = -ln 2: 1/2 + ln 2 - 1
    ln2 = math.log(2)
    close(kl_k3(f64([-3.0, -1.0]), f64([-3.0 + ln2, -1.0 - ln2])), [1 - ln2, ln2 - 0.5])


@few
@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=8))
def test_k3_is_never_negative_and_zero_where_the_policies_agree(pairs: list[tuple[float, float]]) -> None:
    logprobs, ref = torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])
    assert (kl_k3(logprobs, ref) >= 0).all()
    assert (kl_k3(logprobs, logprobs) == 0).all()


def test_k3_is_accurate_in_float32_for_policies_that_are_nearly_equal() -> None:
    # d = 2^-10: d^2 / 2 + d^3 / 6, a millionth of exp(d), which therefore must not be computed
    d = 2.0**-10
    got = kl_k3(torch.tensor([-1.0]), torch.tensor([-1.0 + d])).item()
    assert got == pytest.approx(d**2 / 2 + d**3 / 6, rel=1e-3)


def small_vocabulary() -> tuple[torch.Tensor, torch.Tensor]:
    logits = f64([0.3, -1.2, 2.0, 0.5, -0.4]).requires_grad_()
    return logits, f64([1.0, 0.2, -0.7, 0.9, 0.1]).log_softmax(-1)


def test_the_expectation_of_k3_under_the_policy_is_the_exact_kl() -> None:
    logits, ref = small_vocabulary()
    logp = logits.detach().log_softmax(-1)
    exact = (logp.exp() * (logp - ref)).sum()
    close((logp.exp() * kl_k3(logp, ref)).sum(), exact)


def test_the_expected_gradient_of_k3_is_the_forward_kls_and_not_the_reverse_ones() -> None:
    logits, ref = small_vocabulary()
    logp = logits.log_softmax(-1)
    expected_k3 = (
        logp.detach().exp() * kl_k3(logp, ref)
    ).sum()  # the samples' probabilities carry no gradient
    forward = (ref.exp() * (ref - logp)).sum()  # KL(reference || policy)
    reverse = (logp.exp() * (logp - ref)).sum()  # KL(policy || reference)
    of_k3, of_forward, of_reverse = (
        torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (expected_k3, forward, reverse)
    )
    close(of_k3, of_forward)
    assert (of_k3 - of_reverse).abs().max() > 0.1
