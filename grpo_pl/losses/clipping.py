"""What policy losses share: ratios of whole responses, the clip, and the metrics of both."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_pl.functional import bounded_exp, importance_ratio
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Experience

Behaviour = Literal["sampler", "old"]
BEHAVIOURS = ("sampler", "old")


def behaviour_logprobs(batch: Experience, behaviour: Behaviour) -> Float[Tensor, "B T"]:
    """Log-probabilities under the policy that chose the tokens, as the engine says or the trainer."""
    return batch.sampling_logprobs if behaviour == "sampler" else batch.old_logprobs


def check_clip(clip_low: float, clip_high: float) -> None:
    """Refuse bounds of a ratio that are no distances from 1."""
    if not 0 <= clip_low <= 1:
        raise ArgumentError(f"clip_low={clip_low}: expected a number in [0, 1]")
    if not clip_high >= 0:
        raise ArgumentError(f"clip_high={clip_high}: expected 0 or more")


def ratio_metrics(logprobs: Float[Tensor, "B T"], batch: Experience) -> dict[str, Float[Tensor, "B T"]]:
    """How far each token's probability has moved from the old policy's, as |rho - 1|."""
    ratio = importance_ratio(logprobs.detach(), batch.old_logprobs)
    return {"train/ratio_deviation": (ratio - 1).abs()}


def clip_metrics(acts: Bool[Tensor, "B T"], batch: Experience) -> dict[str, Float[Tensor, "B T"]]:
    """Where the clip acts, in all and by the sign of the advantage, whose parts add up to the whole."""
    return {
        "train/clip_fraction": acts.float(),
        "train/clip_fraction_positive": (acts & (batch.advantages > 0)).float(),
        "train/clip_fraction_negative": (acts & (batch.advantages < 0)).float(),
    }


def clip(
    ratio: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], clip_low: float, clip_high: float
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """PPO's pessimistic minimum, and where the clip stops a token from pushing."""
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    acts = torch.where(advantages > 0, ratio > 1 + clip_high, ratio < 1 - clip_low)
    return loss, acts & (advantages != 0)


def mean_ratio(log_ratio: Float[Tensor, "B T"], batch: Experience) -> Float[Tensor, "B T"]:
    """The exponential of each sequence's mean; its gradient at a token is that of the token's own entry."""
    fixed = log_ratio.detach()
    return bounded_exp(sequence_mean(fixed, batch) + (log_ratio - fixed))


def sequence_mean(values: Float[Tensor, "B T"], batch: Experience) -> Float[Tensor, "B 1"]:
    """The mean of each sequence over its response tokens; 0 where there is none."""
    tokens = batch.of_sequences(batch.loss_mask.sum(-1))
    return sequence_sum(values, batch) / tokens[:, None].clamp(min=1)


def sequence_sum(values: Float[Tensor, "B T"], batch: Experience) -> Float[Tensor, "B 1"]:
    """The sum of each sequence over its response tokens."""
    return batch.of_sequences(torch.where(batch.loss_mask, values, 0.0).sum(-1))[:, None]


def product_ratio(log_ratio: Float[Tensor, "B T"], batch: Experience) -> Float[Tensor, "B T"]:
    """The exponential of each sequence's sum; its gradient at a token is that of the token's own entry."""
    fixed = log_ratio.detach()
    return bounded_exp(sequence_sum(fixed, batch) + (log_ratio - fixed))
