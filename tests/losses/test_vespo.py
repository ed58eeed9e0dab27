"""VESPO: its kernel, and the loss by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from helpers.exact import F64, close, f64
from helpers.experiences import experience

from grpo_pl.losses import VESPO


def test_the_kernel_is_1_at_1_and_greatest_at_k_over_lambda() -> None:
    log_ratio = torch.linspace(-3, 3, 60_001, dtype=F64)
    for sign, k, rate in ((1.0, 2.0, 3.0), (0.0, 2.0, 3.0), (-1.0, 3.0, 2.0)):
        advantages = torch.full_like(log_ratio, sign)
        phi = VESPO().kernel(log_ratio, advantages)
        close(phi, log_ratio.exp() ** k * (rate * (1 - log_ratio.exp())).exp(), 1e-12)
        close(phi[30_000], 1.0)
        close(log_ratio[phi.argmax()].exp(), k / rate, 1e-4)
        assert phi.max() <= VESPO().kernel(f64([math.log(k / rate)]), f64([sign])).max() + 1e-12
        assert max(phi[0], phi[-1]) < 0.05


def test_the_ratio_is_the_product_over_the_response_and_has_no_gradient() -> None:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    ratios = f64([[2.0, 0.5, 3.0], [0.5, 0.5, 7.0]])  # products 3 and 1/4
    advantages = f64([[2.0, 2.0, -2.0], [-1.0, -1.0, 5.0]])
    logprobs = torch.full((2, 3), -1.5, dtype=F64).requires_grad_()
    batch = experience(mask, sampling_logprobs=-1.5 - ratios.log(), advantages=advantages)
    up, down = 9 * math.exp(3 * (1 - 3)), 27 * math.exp(2 * (1 - 3))
    low = 0.25**3 * math.exp(2 * 0.75)
    weight = f64([[up, up, down], [low, low, 0.0]])
    got = VESPO()(logprobs, batch)
    close(torch.where(mask, got.loss.detach(), 0.0), 1.5 * weight * advantages)
    (gradient,) = torch.autograd.grad(torch.where(mask, got.loss, 0.0).sum(), logprobs)
    close(gradient, -weight * advantages)
    close(torch.where(mask, got.metrics["train/response_weight"], 0.0), weight)


def test_to_the_engine_the_ratio_is_that_to_the_old_policy_times_the_mismatch() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs, old, sampling, advantages = torch.randn(4, 3, 5, dtype=F64, generator=generator)
    mask = torch.ones(3, 5, dtype=torch.bool)
    batch = experience(mask, old_logprobs=old, sampling_logprobs=sampling, advantages=advantages)
    log_ratio = (logprobs - old).sum(-1, keepdim=True) + (old - sampling).sum(-1, keepdim=True)
    weight = VESPO().kernel(log_ratio.expand(3, 5), advantages)
    close(VESPO()(logprobs, batch).loss, -weight * advantages * logprobs)
    same = experience(mask, old_logprobs=old, sampling_logprobs=old, advantages=advantages)
    close(VESPO(behaviour="old")(logprobs, batch).loss, VESPO()(logprobs, same).loss)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VESPO(k_positive=-1.0), r"^k_positive=-1\.0: expected 0 or more"),
        (lambda: VESPO(lambda_negative=0.0), r"^lambda_negative=0\.0: expected a number above 0"),
    ],
)
def test_a_bad_argument_is_refused(build: Callable[[], VESPO], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
