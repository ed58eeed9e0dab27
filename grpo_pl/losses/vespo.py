"""Variational sequence-level soft policy optimization."""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.functional import MAX_LOG_RATIO
from grpo_pl.losses.base import PolicyLoss
from grpo_pl.losses.clipping import BEHAVIOURS, Behaviour, behaviour_logprobs, ratio_metrics, sequence_sum
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Experience, TokenLoss

LEAST = math.log(1e-8)
"""The least log of a response's ratio, as in TRL."""


@final
class VESPO(PolicyLoss):
    """-phi(w) A logprobs, phi(w) = w^k exp(lambda (1 - w)) of the response's ratio w, without gradient.

    Shen et al. 2026, arXiv:2602.10693, eq. 20 (k and lambda, as TRL calls them, are its c1 and c2; the
    defaults: section 4.1): the kernel that comes of bounding the variance of importance weights. w is the
    product over the tokens of the whole response, not a mean as in `GSPO`; phi(1) = 1, phi is greatest at w =
    k / lambda and falls to 0 on both sides, so no clip is needed. k and lambda depend on the sign of A. Token
    log-ratios are moved within 20 and log w within log(1e-8) and 20, as in TRL.

    The paper's w is to the policy that sampled, `behaviour: sampler`, and so it contains the ratio of trainer
    to engine that a correction would weigh with. TRL multiplies the weights of its correction into w too, yet
    truncates them first; ours are the untruncated ones, since phi bounds them. Meant with
    `model.aggregation: TokenMean`.

    Args:
        k_positive: The power of w where A is 0 or more, 0 or more.
        lambda_positive: The rate at which phi falls there, above 0.
        k_negative: The power of w where A is negative, 0 or more.
        lambda_negative: The rate there, above 0.
        behaviour: To whose probabilities w is the ratio: those of the engine that sampled (sampler), or the
            trainer's before the first update on the rollout (old).
    """

    def __init__(
        self,
        k_positive: float = 2.0,
        lambda_positive: float = 3.0,
        k_negative: float = 3.0,
        lambda_negative: float = 2.0,
        behaviour: Behaviour = "sampler",
    ) -> None:
        for name, value in (("k_positive", k_positive), ("k_negative", k_negative)):
            if not 0 <= value < math.inf:
                raise ArgumentError(f"{name}={value}: expected 0 or more")
        for name, value in (("lambda_positive", lambda_positive), ("lambda_negative", lambda_negative)):
            if not 0 < value < math.inf:
                raise ArgumentError(f"{name}={value}: expected a number above 0")
        if behaviour not in BEHAVIOURS:
            raise ArgumentError(f"behaviour={behaviour}: expected sampler or old")
        self.positive, self.negative = (k_positive, lambda_positive), (k_negative, lambda_negative)
        self.behaviour, self.of_sampler = behaviour, behaviour == "sampler"
        self.acts_at_once = self.of_sampler

    def kernel(
        self, log_ratio: Float[Tensor, "*shape"], advantages: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """Phi of responses whose log w is given."""
        k, rate = (
            torch.where(advantages >= 0, positive, negative)
            for positive, negative in zip(self.positive, self.negative, strict=True)
        )
        return (rate + k * log_ratio - rate * log_ratio.exp()).exp()

    @override
    def __call__(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        log_ratio = logprobs.detach() - behaviour_logprobs(batch, self.behaviour)
        bounded = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        of_response = sequence_sum(bounded, batch).clamp(LEAST, MAX_LOG_RATIO)
        weight = self.kernel(of_response.expand_as(log_ratio), batch.advantages)
        metrics = ratio_metrics(logprobs, batch) | {"train/response_weight": weight}
        return TokenLoss(-weight * batch.advantages * logprobs, metrics)
