"""Policy losses that spare the entropy: the few tokens of highest covariance are left out, or held."""

import hashlib
import math
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from typing_extensions import override

from grpo_pl.functional import derive_seed, importance_ratio, largest
from grpo_pl.losses.base import PolicyLoss
from grpo_pl.losses.clipping import check_clip, clip, clip_metrics, ratio_metrics
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Experience, Feedback, TokenLoss


class Covariances(NamedTuple):
    """The covariance of each token's advantage with its log-probability, over a rollout."""

    values: Float[Tensor, "N T"]
    """(A - mean A)(old_logprobs - mean old_logprobs)."""
    tokens: Bool[Tensor, "N T"]
    """The counted tokens of responses with an advantage: the means are over those of all ranks."""
    number: int
    """Their number over all ranks."""


def covariances(rollout: Experience, sum_over_ranks: Callable[[Tensor], Tensor]) -> Covariances:
    """Cui et al. 2025, arXiv:2505.22617, eq. 10, over the rollout and of the old policy; collective.

    A step of natural policy gradient, pi exp(eta A), takes eta Cov(A, log pi) off the entropy, to first
    order. verl and SkyRL take the means over a micro-batch, and the current policy's log-probabilities, which
    in the first minibatch of a rollout are the old one's. Ours are computed once, so that a cut into
    micro-batches or ranks changes nothing, and a token is treated alike in every update on the rollout.
    Responses without an advantage move no token and are not always read, so they are left out.
    """
    tokens = rollout.counted & (rollout.advantages != 0).any(-1, keepdim=True)
    columns = torch.stack([rollout.advantages, rollout.old_logprobs]).double()
    sums = [torch.where(tokens, column, 0.0).sum() for column in columns]
    count, *totals = sum_over_ranks(torch.stack([tokens.sum().double(), *sums])).tolist()
    advantages, logprobs = (
        column - total / max(count, 1.0) for column, total in zip(columns, totals, strict=True)
    )
    return Covariances(advantages * logprobs, tokens, round(count))


@final
class ClipCov(PolicyLoss):
    """The clipped surrogate without a random few of the tokens of high covariance, which cost entropy.

    Clip-Cov: Cui et al. 2025, arXiv:2505.22617, eq. 11, with the clip of its listing 1 (eq. 12 has none) and
    the share and bounds of section 4.3. Of the tokens whose covariance is between `above` and `below`,
    `share` of all tokens of the rollout are drawn, at least one; their loss is 0 in every update on the
    rollout, and denominators count them. `covariances` says over what. The draw depends on the seed, the
    optimizer steps so far and the response itself, and on nothing else: not on ranks, the order of rows or a
    restart. verl draws again in each micro-batch, at least one token each, and not among those that the clip
    stops.

    In the first minibatch of a rollout the gradient of all other tokens is REINFORCE's.

    Args:
        share: The share of tokens that is left out, above 0 and at most 1.
        above: The least covariance, in units of advantage times nats.
        below: The greatest.
        clip_low: As in `ClippedSurrogate`, in [0, 1].
        clip_high: As in `ClippedSurrogate`, 0 or more.
        seed: Of the draw.
    """

    prepares_with_old_logprobs = True
    acts_at_once = True

    def __init__(
        self,
        share: float = 0.0002,
        above: float = 1.0,
        below: float = 5.0,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        seed: int = 0,
    ) -> None:
        _check_share(share)
        check_clip(clip_low, clip_high)
        if not above < below:
            raise ArgumentError(f"above={above}, below={below}: expected above < below")
        self.share, self.above, self.below = share, above, below
        self.clip_low, self.clip_high, self.seed = clip_low, clip_high, seed

    @override
    def prepare(
        self, rollout: Experience, feedback: Feedback, version: int
    ) -> dict[object, Shaped[Tensor, "N T"]]:
        of_rollout = covariances(rollout, feedback.sum_over_ranks)
        high = of_rollout.tokens & (of_rollout.values > self.above) & (of_rollout.values < self.below)
        draws = draws_of_responses(rollout.token_ids, rollout.loss_mask, self.seed, version)
        count = _number(self.share, of_rollout.number)
        return {self: largest(draws.to(high.device), high, count, feedback.sum_over_ranks)}

    @override
    def __call__(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        ratio = importance_ratio(logprobs, batch.old_logprobs)
        loss, acts = clip(ratio, batch.advantages, self.clip_low, self.clip_high)
        chosen = _chosen(self, batch)
        metrics = ratio_metrics(logprobs, batch) | clip_metrics(acts, batch)
        return TokenLoss(torch.where(chosen, 0.0, loss), metrics | {"train/high_covariance": chosen.float()})


@final
class KLCov(PolicyLoss):
    """-rho A, and coefficient |log rho| added for the tokens of highest covariance, which cost entropy.

    KL-Cov: Cui et al. 2025, arXiv:2505.22617, eq. 13 and 14, with the |log rho| of its listing 1 for the
    divergence from the old policy. The `share` of tokens with the greatest covariance over the rollout, at
    least one, is held; none whose covariance is not positive. `covariances` says over what. There is no clip.
    In the first minibatch of a rollout |log rho| is at its minimum and has no gradient.

    Args:
        share: The share of tokens that is held, above 0 and at most 1; 0.002 in the paper for 7B and 0.0002
            for 32B (section 4.3), 0.0002 in verl, 0.2 in SkyRL.
        coefficient: Of |log rho|, in units of reward per nat, 0 or more; 1 in the paper and SkyRL, 0.1 in
            verl's configuration files.
    """

    prepares_with_old_logprobs = True

    def __init__(self, share: float = 0.0002, coefficient: float = 1.0) -> None:
        _check_share(share)
        if not 0 <= coefficient < math.inf:
            raise ArgumentError(f"coefficient={coefficient}: expected 0 or more")
        self.share, self.coefficient = share, coefficient

    @override
    def prepare(
        self, rollout: Experience, feedback: Feedback, version: int
    ) -> dict[object, Shaped[Tensor, "N T"]]:
        of_rollout = covariances(rollout, feedback.sum_over_ranks)
        positive = of_rollout.tokens & (of_rollout.values > 0)
        count = _number(self.share, of_rollout.number)
        return {self: largest(of_rollout.values, positive, count, feedback.sum_over_ranks)}

    @override
    def __call__(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        chosen = _chosen(self, batch)
        penalty = torch.where(chosen, (logprobs - batch.old_logprobs).abs(), 0.0)
        loss = self.coefficient * penalty - importance_ratio(logprobs, batch.old_logprobs) * batch.advantages
        return TokenLoss(loss, ratio_metrics(logprobs, batch) | {"train/high_covariance": chosen.float()})


# ----------------------------------------------------------------------------------------------- shared parts


def draws_of_responses(
    token_ids: Int[Tensor, "N T"], loss_mask: Bool[Tensor, "N T"], seed: int, version: int
) -> Float[Tensor, "N T"]:
    """A number in [0, 1) for each response token, a function of seed, version, its sequence and its place.

    So it does not matter on which rank or in which row a sequence stands; a sequence sampled twice has the
    same numbers twice.
    """
    draws = torch.zeros(token_ids.shape)
    for row, (tokens, mask) in enumerate(zip(token_ids.cpu(), loss_mask.cpu(), strict=True)):
        if not mask.any():
            continue
        end = 1 + int(mask.nonzero().max())
        contents = hashlib.blake2b(tokens[:end].numpy().tobytes(), digest_size=16).hexdigest()
        generator = torch.Generator().manual_seed(derive_seed(seed, "clip_cov", version, contents))
        draws[row, :end] = torch.rand(end, generator=generator)
    return draws


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ArgumentError(f"share={share}: expected a number above 0 and at most 1")


def _number(share: float, count: int) -> int:
    """The share of so many tokens, rounded down, and at least one."""
    return max(int(share * count), 1)


def _chosen(loss: PolicyLoss, batch: Experience) -> Bool[Tensor, "B T"]:
    """The tokens chosen of the rollout; none in a batch that was not prepared."""
    return batch.prepared.get(loss, torch.zeros_like(batch.loss_mask))
