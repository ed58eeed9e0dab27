"""Ratios of probabilities, and the divergences that they estimate."""

import torch
from jaxtyping import Float
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios above this count as this: exp(20) is 5e8, and float32 overflows at exp(88)."""


def bounded_exp(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """exp(min(log_ratio, 20)), as in verl: so that no ratio is infinite and no gradient is NaN.

    Above the bound the gradient is 0.
    """
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def importance_ratio(
    logprobs: Float[Tensor, "*shape"], old_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """How many times as probable a token is now: pi / pi_old, at most exp(20)."""
    return bounded_exp(logprobs - old_logprobs)


def kl_k1(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Per-token estimate of KL(policy || reference): -d, with d = ref_logprobs - logprobs.

    Schulman 2020 ("Approximating KL divergence", k1). Its *value* is unbiased under samples of the policy, of
    either sign and of high variance. Its *gradient* is grad log pi, whose expectation is 0: minimising it is
    noise. Times the ratio (`KLInLoss(gradient="unbiased")`) or in the reward it is right.
    """
    return logprobs - ref_logprobs


def kl_k2(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Per-token estimate of KL(policy || reference): d^2 / 2, with d = ref_logprobs - logprobs.

    Schulman 2020, k2. Its *value* is biased: that of an f-divergence which agrees with the KL to second order
    in d. Its *gradient* is -d grad log pi, whose expectation is grad KL(policy || reference) exactly, as
    grad sum pi log(pi / ref) = sum pi log(pi / ref) grad log pi + sum grad pi, and the last sum is 0.
    """
    return (ref_logprobs - logprobs).square() / 2


def kl_k3(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Per-token estimate of KL(policy || reference): exp(d) - d - 1 with d = ref_logprobs - logprobs.

    Schulman 2020, k3; DeepSeekMath, arXiv:2402.03300, eq. 4. Its *value* is unbiased under samples of the
    policy and never negative, as the mean of exp(d) is 1. Its *gradient* is (1 - exp(d)) grad log pi, whose
    expectation is -sum ref grad log pi = grad KL(reference || policy): the forward KL's, not the reverse
    one's. As in `bounded_exp`, d above 20 counts as 20.
    """
    difference = (ref_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(difference) - difference
