"""Corrections that take tokens out of the loss where engine and trainer disagree too much."""

from collections.abc import Callable
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.functional import kl_k2, kl_k3
from grpo_pl.losses.correction import Correction, MismatchCorrection, check_bounds, check_level, ratios
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import only_here

ESTIMATORS = {"k2": kl_k2, "k3": kl_k3}


@final
class RatioRejection(MismatchCorrection):
    """Takes out tokens or responses whose ratio pi_trainer / pi_engine is outside of [low, high].

    verl's rejection modes `token_k1`, `seq_sum_k1` and `seq_mean_k1` (whose bounds are on the inverse ratio),
    SkyRL's `outlier_token` mask and the "token veto" of earlier versions of verl (`any_token`), the mask of
    NeMo-RL's `seq-mask-tis` (`geometric`; in a `CombinedCorrection` with weights of tokens). What is left has
    weight 1. The tokens leave the denominators, as in verl and SkyRL, which edit the mask of the response:
    the loss is a mean over those that stay. NeMo-RL's, TRL's and `ImportanceCorrection`'s masked tokens stay
    in them, so the more is masked there, the smaller the step.

    Bias: the expected gradient is that of the engine's samples inside of the region, so rejection alone
    removes outliers and corrects for nothing inside. At the level of the sequence a response is the likelier
    to be rejected the longer it is (see `ImportanceCorrection`); at `any_token` too.

    It logs `sync/rejected_tokens`, the share of tokens taken out, and `sync/rejected_responses`, the share of
    responses that lose any.

    Args:
        level: What is compared with the bounds: the ratio of each token; of each response the product of the
            ratios, their geometric mean, or (`any_token`) each ratio, of which one outside takes out the
            whole response.
        low: The lowest ratio, in [0, 1].
        high: The highest ratio, 1 or more; one above exp(20) is never reached. Of geometric means both bounds
            are near 1 (0.99 and 1.01 are SkyRL's defaults).
    """

    rejects = True

    def __init__(
        self,
        level: Literal["token", "sequence", "geometric", "any_token"] = "geometric",
        low: float = 0.99,
        high: float = 1.01,
    ) -> None:
        check_level(level, "token", "sequence", "geometric", "any_token")
        check_bounds(low, high)
        self.level, self.low, self.high = level, low, high

    @override
    def __call__(
        self,
        old_logprobs: Float[Tensor, "N T"],
        sampling_logprobs: Float[Tensor, "N T"],
        mask: Bool[Tensor, "N T"],
        sum_over_ranks: Callable[[Tensor], Tensor] = only_here,
    ) -> Correction:
        level = "token" if self.level == "any_token" else self.level
        ratio, units = ratios(level, old_logprobs, sampling_logprobs, mask)
        outside = units & ((ratio < self.low) | (ratio > self.high))
        if self.level == "any_token":
            outside = outside.any(-1, keepdim=True)
        return rejection(~(outside & mask), mask, sum_over_ranks)


@final
class DivergenceRejection(MismatchCorrection):
    """Takes out tokens or responses whose divergence between engine and trainer is above a bound.

    The divergence of a token is an estimate of KL(pi_engine || pi_trainer) under the engine's samples, with
    d = old_logprobs - sampling_logprobs: k2 is d^2 / 2, k3 is exp(d) - d - 1. verl's rejection modes
    `token_*`, `seq_sum_*`, `seq_mean_*` and `seq_max_*` of k2 and k3; those of k1 are `RatioRejection`.
    Denominators, bias and metrics are as there. A mean does not depend on the length; a sum and a maximum
    reject the longer responses more often.

    Args:
        level: Whether each token is judged, or each response by the sum, the mean or the maximum over it.
        estimator: The divergence of a token; k3 is unbiased and never negative.
        high: The greatest divergence, in nats, above 0.
    """

    rejects = True

    def __init__(
        self,
        level: Literal["token", "sum", "mean", "max"] = "mean",
        estimator: Literal["k2", "k3"] = "k3",
        high: float = 0.01,
    ) -> None:
        check_level(level, "token", "sum", "mean", "max")
        if estimator not in ESTIMATORS:
            raise ArgumentError(f"estimator={estimator}: expected k2 or k3; for k1 take RatioRejection")
        if not high > 0:
            raise ArgumentError(f"high={high}: expected a number of nats above 0")
        self.level, self.estimator, self.high = level, ESTIMATORS[estimator], high

    @override
    def __call__(
        self,
        old_logprobs: Float[Tensor, "N T"],
        sampling_logprobs: Float[Tensor, "N T"],
        mask: Bool[Tensor, "N T"],
        sum_over_ranks: Callable[[Tensor], Tensor] = only_here,
    ) -> Correction:
        divergence = torch.where(mask, self.estimator(sampling_logprobs, old_logprobs), 0.0)
        if self.level == "max":
            divergence = divergence.amax(-1, keepdim=True)
        elif self.level != "token":
            divergence = divergence.sum(-1, keepdim=True)
        if self.level == "mean":
            divergence = divergence / mask.sum(-1, keepdim=True).clamp(min=1)
        return rejection(~((divergence > self.high) & mask), mask, sum_over_ranks)


def rejection(
    kept: Bool[Tensor, "N T"], mask: Bool[Tensor, "N T"], sum_over_ranks: Callable[[Tensor], Tensor]
) -> Correction:
    """The correction that keeps these tokens, with the shares of what it takes out."""
    rejected = mask & ~kept
    counts = torch.stack([mask.sum(), rejected.sum(), mask.any(-1).sum(), rejected.any(-1).sum()])
    tokens, tokens_out, responses, responses_out = sum_over_ranks(counts).tolist()
    metrics = {
        "sync/rejected_tokens": tokens_out / max(tokens, 1),
        "sync/rejected_responses": responses_out / max(responses, 1),
    }
    return Correction(None, metrics, kept)
