"""Correction for sampling with an engine whose log-probabilities are not the trainer's."""

from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_pl.functional import masked_mean


class Correction(NamedTuple):
    """Weights of tokens in the policy loss, without gradient, and what to log of them."""

    weights: Float[Tensor, "N T"]
    metrics: dict[str, float]


@final
class ImportanceCorrection:
    """Weighs each token by pi_trainer / pi_engine, truncated or masked.

    w = exp(old_logprobs - sampling_logprobs) of the token (truncated importance sampling, Yao et al. 2025;
    masked: IcePop), or of the whole response, exp of the sum. It multiplies the policy loss alone, not the
        KL penalty.

    Args:
        level: Of a weight: each token, or the whole sequence.
        mode: What happens outside the bounds: truncate moves the weight to the bound, mask makes it 0.
        low: The lowest weight.
        high: The highest weight.
    """

    def __init__(
        self,
        level: Literal["token", "sequence"] = "token",
        mode: Literal["truncate", "mask"] = "truncate",
        low: float = 0.0,
        high: float = 2.0,
    ) -> None:
        if not 0 <= low <= 1 <= high:
            raise ValueError(f"model.correction: low={low}, high={high}: expected 0 <= low <= 1 <= high")
        self.level, self.mode, self.low, self.high = level, mode, low, high

    def __call__(
        self,
        old_logprobs: Float[Tensor, "N T"],
        sampling_logprobs: Float[Tensor, "N T"],
        mask: Bool[Tensor, "N T"],
    ) -> Correction:
        """The weight of each masked token; 1 elsewhere."""
        log_ratio = torch.where(mask, old_logprobs - sampling_logprobs, 0.0)
        if self.level == "sequence":
            log_ratio = log_ratio.sum(-1, keepdim=True).expand_as(log_ratio)
        ratio = log_ratio.exp()
        outside = (ratio < self.low) | (ratio > self.high)
        bounded = ratio.clamp(self.low, self.high) if self.mode == "truncate" else ratio * ~outside
        weights = torch.where(mask, bounded, 1.0)
        inside = torch.where(mask, bounded, 0.0)
        effective = inside.sum() ** 2 / (inside**2).sum().clamp(min=1e-12) / mask.sum().clamp(min=1)
        return Correction(
            weights,
            {
                "sync/weight_mean": float(masked_mean(bounded, mask)),
                "sync/weights_outside": float(masked_mean(outside.float(), mask)),
                "sync/effective_sample_share": float(effective),
            },
        )
