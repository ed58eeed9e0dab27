"""Correction for sampling with an engine whose log-probabilities are not the trainer's."""

from collections.abc import Callable
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_pl.functional import bounded_exp
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import only_here


class Correction(NamedTuple):
    """Weights of tokens in the policy loss, without gradient, and their metrics."""

    weights: Float[Tensor, "N T"] | None
    """None for 1."""
    metrics: dict[str, float]


@final
class ImportanceCorrection:
    """Weighs each token by pi_trainer / pi_engine, truncated or masked.

    w = exp(old_logprobs - sampling_logprobs) of the token, or exp of the sum over the whole response, for all
    of its tokens. A weight outside [low, high] moves to the bound (truncated importance sampling: Yao et al.
    2025, "Your efficient RL framework secretly brings you off-policy RL training") or becomes 0 (IcePop, Ring
    team 2025). The weights multiply the policy loss alone, not the KL penalty; denominators count tokens of
    weight 0 all the same. A sequence's ratio has mean 1 under samples of the engine, so unbounded weights
    would be unbiased; bounds trade bias for variance.

    TRL's default is `level: sequence, mode: mask, high: 3`, verl's (if on) `token, truncate, high: 2`,
    IcePop's `token, mask, low: 0.5, high: 5`.

    It logs `sync/weight_mean`, `sync/weights_outside` (the share outside the bounds) and
    `sync/effective_sample_share` ((sum w)^2 / (n sum w^2) of the weights as used: 1 where all are alike), all
    over tokens, or over responses at the level of sequences.

    Args:
        level: Whether each token has a weight, or each sequence.
        mode: What happens outside the bounds: truncate moves the weight to the bound, mask makes it 0.
        low: The lowest weight, in [0, 1].
        high: The highest weight, 1 or more.
    """

    def __init__(
        self,
        level: Literal["token", "sequence"] = "token",
        mode: Literal["truncate", "mask"] = "truncate",
        low: float = 0.0,
        high: float = 2.0,
    ) -> None:
        if level not in ("token", "sequence"):
            raise ArgumentError(f"level={level}: expected token or sequence")
        if mode not in ("truncate", "mask"):
            raise ArgumentError(f"mode={mode}: expected truncate or mask")
        if not 0 <= low <= 1 <= high:
            raise ArgumentError(f"low={low}, high={high}: expected 0 <= low <= 1 <= high")
        self.level, self.mode, self.low, self.high = level, mode, low, high

    def __call__(
        self,
        old_logprobs: Float[Tensor, "N T"],
        sampling_logprobs: Float[Tensor, "N T"],
        mask: Bool[Tensor, "N T"],
        sum_over_ranks: Callable[[Tensor], Tensor] = only_here,
    ) -> Correction:
        """The weight of each masked token; 1 elsewhere. The metrics are those of all ranks."""
        log_ratio, units = torch.where(mask, old_logprobs - sampling_logprobs, 0.0), mask
        if self.level == "sequence":
            log_ratio, units = log_ratio.sum(-1, keepdim=True), mask.any(-1, keepdim=True)
        ratio = bounded_exp(log_ratio)
        outside = (ratio < self.low) | (ratio > self.high)
        bounded = (
            ratio.clamp(self.low, self.high) if self.mode == "truncate" else ratio.masked_fill(outside, 0)
        )
        summed = torch.stack([torch.ones_like(bounded), bounded, bounded**2, outside.float()]).double()
        sums = sum_over_ranks(torch.where(units, summed, 0.0).flatten(1).sum(-1)).tolist()
        mean, mean_square, share_outside = (number / max(sums[0], 1.0) for number in sums[1:])
        metrics = {
            "sync/weight_mean": mean,
            "sync/weights_outside": share_outside,
            "sync/effective_sample_share": mean**2 / mean_square if mean_square > 0 else 0.0,
        }
        return Correction(torch.where(mask, bounded, 1.0), metrics)
