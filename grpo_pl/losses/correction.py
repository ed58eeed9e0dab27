"""Corrections for sampling with an engine whose log-probabilities are not the trainer's."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.functional import bounded_exp
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import only_here


class Correction(NamedTuple):
    """What a correction says of the tokens of an iteration, without gradient."""

    weights: Float[Tensor, "N T"] | None
    """Factors of the policy loss of each token; None for 1."""
    metrics: dict[str, float]
    kept: Bool[Tensor, "N T"] | None = None
    """False on tokens that leave the loss and its denominators, as a mask of `model.masks` takes them out:
    of every term, the KL penalty and the entropy bonus too. None where all stay."""


class MismatchCorrection(ABC):
    """Corrects for a difference between the policy that sampled and the old policy of the trainer.

    Below, the ratio of a token is pi_trainer / pi_engine = exp(old_logprobs - sampling_logprobs).
    """

    needs_old_logprobs: bool = True
    """Whether it compares with the trainer's log-probabilities, which are then computed before the update."""
    rejects: bool = False
    """Whether it takes tokens out of the loss: then sequences without an advantage are scored too, for their
    tokens count in denominators."""
    bypasses: bool = False
    """Whether the engine's log-probabilities take the place of the old policy's."""

    @abstractmethod
    def __call__(
        self,
        old_logprobs: Float[Tensor, "N T"],
        sampling_logprobs: Float[Tensor, "N T"],
        mask: Bool[Tensor, "N T"],
        sum_over_ranks: Callable[[Tensor], Tensor] = only_here,
    ) -> Correction:
        """The correction of the masked tokens; elsewhere weights are 1 and tokens are kept.

        The metrics are those of all ranks.
        """


def all_kept(masks: Sequence[Bool[Tensor, "N T"] | None]) -> Bool[Tensor, "N T"] | None:
    """True on the tokens that every mask keeps; None where there is none."""
    given = [mask for mask in masks if mask is not None]
    return torch.stack(given).all(0) if given else None


RatioLevel = Literal["token", "sequence", "geometric"]


def ratios(
    level: RatioLevel,
    old_logprobs: Float[Tensor, "N T"],
    sampling_logprobs: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
) -> tuple[Float[Tensor, "N _"], Bool[Tensor, "N _"]]:
    """The ratios of tokens, or of each response their product or their geometric mean; and which count."""
    log_ratio, units = torch.where(mask, old_logprobs - sampling_logprobs, 0.0), mask
    if level != "token":
        log_ratio, units = log_ratio.sum(-1, keepdim=True), mask.any(-1, keepdim=True)
    if level == "geometric":
        log_ratio = log_ratio / mask.sum(-1, keepdim=True).clamp(min=1)
    return bounded_exp(log_ratio), units


def check_level(level: str, *levels: str) -> None:
    """Refuse a word that is not one of the levels."""
    if level not in levels:
        raise ArgumentError(f"level={level}: expected {', '.join(levels[:-1])} or {levels[-1]}")


def check_bounds(low: float, high: float) -> None:
    """Refuse bounds of a ratio that would leave out engines that agree with the trainer."""
    if not 0 <= low <= 1 <= high:
        raise ArgumentError(f"low={low}, high={high}: expected 0 <= low <= 1 <= high")


@final
class ImportanceCorrection(MismatchCorrection):
    """Weighs each token by pi_trainer / pi_engine, truncated or masked.

    w = exp(old_logprobs - sampling_logprobs) of the token, or exp of the sum over the whole response
    (`sequence`) or of the mean over it (`geometric`: verl, SkyRL, NeMo-RL and OpenRLHF leave responses out by
    it, as `RatioRejection` does; as a weight it is ours), for all of its tokens. A weight outside [low, high]
    moves to the bound (truncated importance sampling: Yao et al. 2025, "Your efficient RL framework secretly
    brings you off-policy RL training") or becomes 0 (IcePop, Ring team 2025). The weights multiply the policy
    loss alone, not the KL penalty; denominators count tokens of weight 0 all the same (`RatioRejection` takes
    them out). A sequence's ratio has mean 1 under samples of the engine, so unbounded weights would be
    unbiased; bounds trade bias for variance. Weights of tokens leave out that the engine reaches a prefix
    more or less often; a geometric mean is no density ratio of anything, but does not grow with the length.

    The sequence level collapses with length: the variance of log w grows with the number of tokens. With a
    mismatch of 0.05 nats a token and high 3, the effective share of the sample is 0.86 at 64 tokens, 0.23 at
    2,048 and 0.02 at 8,192 (simulated): there a few responses make up the whole gradient. Take `token` or
    `geometric` for long responses.

    TRL's default is `level: sequence, mode: mask, high: 3`, verl's (if on) `token, truncate, high: 2`,
    IcePop's `token, mask, low: 0.5, high: 5`.

    It logs `sync/weight_mean` (before they are normalised), `sync/weights_outside` (the share outside the
    bounds) and `sync/effective_sample_share` ((sum w)^2 / (n sum w^2) of the weights as used: 1 where all are
    alike), all over tokens, or over responses at the other levels.

    Args:
        level: Whether each token has a weight, or each sequence: the product of the ratios of its tokens, or
            their geometric mean.
        mode: What happens outside the bounds: truncate moves the weight to the bound, mask makes it 0.
        low: The lowest weight, in [0, 1].
        high: The highest weight, 1 or more.
        normalize: Divide the weights by their mean over the iteration and all ranks, so that their mean is 1
            (verl's `rollout_is_batch_normalize`): self-normalised importance sampling, whose bias is of order
            1 / n. Where all are 0 nothing is divided.
    """

    def __init__(
        self,
        level: RatioLevel = "token",
        mode: Literal["truncate", "mask"] = "truncate",
        low: float = 0.0,
        high: float = 2.0,
        normalize: bool = False,
    ) -> None:
        check_level(level, "token", "sequence", "geometric")
        if mode not in ("truncate", "mask"):
            raise ArgumentError(f"mode={mode}: expected truncate or mask")
        check_bounds(low, high)
        self.level, self.mode, self.low, self.high = level, mode, low, high
        self.normalize = normalize

    def bounded(self, ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The weight of a ratio: within the bounds, or 0 outside of them."""
        if self.mode == "truncate":
            return ratio.clamp(self.low, self.high)
        return ratio.masked_fill((ratio < self.low) | (ratio > self.high), 0)

    @override
    def __call__(
        self,
        old_logprobs: Float[Tensor, "N T"],
        sampling_logprobs: Float[Tensor, "N T"],
        mask: Bool[Tensor, "N T"],
        sum_over_ranks: Callable[[Tensor], Tensor] = only_here,
    ) -> Correction:
        ratio, units = ratios(self.level, old_logprobs, sampling_logprobs, mask)
        outside = (ratio < self.low) | (ratio > self.high)
        bounded = self.bounded(ratio)
        summed = torch.stack([torch.ones_like(bounded), bounded, bounded**2, outside.float()]).double()
        sums = sum_over_ranks(torch.where(units, summed, 0.0).flatten(1).sum(-1)).tolist()
        mean, mean_square, share_outside = (number / max(sums[0], 1.0) for number in sums[1:])
        metrics = {
            "sync/weight_mean": mean,
            "sync/weights_outside": share_outside,
            "sync/effective_sample_share": mean**2 / mean_square if mean_square > 0 else 0.0,
        }
        if self.normalize and mean > 0:
            bounded = bounded / mean
        return Correction(torch.where(mask, bounded, 1.0), metrics)
