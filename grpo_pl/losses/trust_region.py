"""Policy losses with a trust region on probabilities, and on whole responses."""

import math
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from typing_extensions import override

from grpo_pl.functional import importance_ratio
from grpo_pl.losses.base import PolicyLoss
from grpo_pl.losses.clipping import (
    BEHAVIOURS,
    Behaviour,
    behaviour_logprobs,
    clip_metrics,
    ratio_metrics,
    sequence_mean,
)
from grpo_pl.losses.surrogates import ClippedSurrogate
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Experience, Feedback, TokenLoss


@final
class DPPO(PolicyLoss):
    """Divergence proximal policy optimization: -w A logprobs, and 0 outside a trust region on probabilities.

    Qi et al. 2026, arXiv:2602.04879, eq. 12 to 14. w = min(pi / mu, max_ratio) without gradient, mu being the
    probability of the token when it was sampled. A token stops pushing where it would move on in its
    direction (A > 0 and pi > mu, or A < 0 and pi < mu) and has moved too far already, measured by a
    divergence between the two-way distributions "this token or another": their total variation |pi - mu|
    (`tv`), or KL(mu || pi) (`kl`). Both are lower bounds of those of the whole next-token distributions. A
    bound on ratios, as in `ClippedSurrogate`, stops rare tokens whose probability has hardly moved, and lets
    likely ones move by 0.2 of 1.

    prime-rl and SkyRL take mu from the engine, `behaviour: sampler`, as the paper advises (section 5.2); verl
    takes the old policy's, and truncates w at 3 by default, though its comment says 20. Meant with
    `model.aggregation: TokenMean`. In float32 1 - pi is below 1e-8 only where it is 0.

    Args:
        divergence: Of which divergence the bounds are: tv, or kl in nats.
        low: How far a token with negative advantage may fall, above 0; 0.2 for tv and 0.05 for kl in the
            paper's larger experiments (appendix E), 0.15 for tv with LoRA and in its small ones (C.1).
        high: How far a token with positive advantage may rise, above 0.
        behaviour: Whose probability mu is: that of the engine that sampled the token (sampler), or the
            trainer's before the first update on the rollout (old).
        max_ratio: The greatest w, 1 or more; null for none, as in the paper's small experiments (C.1). Its
            larger ones have 5 (appendix E); 20 is our choice.
    """

    def __init__(
        self,
        divergence: Literal["tv", "kl"] = "tv",
        low: float = 0.2,
        high: float = 0.2,
        behaviour: Behaviour = "sampler",
        max_ratio: float | None = 20.0,
    ) -> None:
        if divergence not in ("tv", "kl"):
            raise ArgumentError(f"divergence={divergence}: expected tv or kl")
        for name, value in (("low", low), ("high", high)):
            if not value > 0:
                raise ArgumentError(f"{name}={value}: expected a number above 0")
        if behaviour not in BEHAVIOURS:
            raise ArgumentError(f"behaviour={behaviour}: expected sampler or old")
        if max_ratio is not None and not max_ratio >= 1:
            raise ArgumentError(f"max_ratio={max_ratio}: expected 1 or more, or null for no bound")
        self.divergence, self.low, self.high, self.max_ratio = divergence, low, high, max_ratio
        self.behaviour, self.of_sampler = behaviour, behaviour == "sampler"
        self.acts_at_once = self.of_sampler

    @override
    def __call__(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        fixed, behaviour = logprobs.detach(), behaviour_logprobs(batch, self.behaviour)
        weight = importance_ratio(fixed, behaviour).clamp(max=self.max_ratio or math.inf)
        measure = total_variation if self.divergence == "tv" else binary_kl
        moved, onwards = measure(fixed, behaviour), (fixed - behaviour) * batch.advantages > 0
        bound = torch.where(batch.advantages > 0, self.high, self.low)
        stopped = onwards & (moved > bound)
        loss = -torch.where(stopped, 0.0, weight) * batch.advantages * logprobs
        return TokenLoss(loss, ratio_metrics(logprobs, batch) | clip_metrics(stopped, batch))


def total_variation(
    logprobs: Float[Tensor, "*shape"], behaviour: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """|pi - mu|: the total variation between "this token or another" under the two (DPPO, eq. 13)."""
    return (logprobs.exp() - behaviour.exp()).abs()


def binary_kl(
    logprobs: Float[Tensor, "*shape"], behaviour: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """KL(mu || pi) between "this token or another" under the two, in nats (DPPO, eq. 14).

    The probabilities of "another" have 1e-8 added, as in verl and SkyRL.
    """
    mu, others, others_of_mu = behaviour.exp(), -torch.expm1(logprobs), -torch.expm1(behaviour)
    return mu * (behaviour - logprobs) + others_of_mu * ((others_of_mu + 1e-8) / (others + 1e-8)).log()


@final
class OffPolicyMask(PolicyLoss):
    """Another policy loss without bad responses that the policy has moved away from.

    A token with A < 0 has loss 0 where mean_t(sampling_logprobs - logprobs) of its response, an estimate of
    the divergence of the policy from the engine, is above a threshold: DeepSeek-V3.2, arXiv:2512.02556, eq.
    9; TRL's `off_policy_mask_threshold`. It depends on the current policy, so it is a part
    of the loss and no mask of `model.masks`, which are of the old one: denominators count the tokens all the
    same, and KL and entropy go on reading them, as in TRL. The paper's advantages are of responses; here each
    token goes by its own.

    In the first minibatch of a rollout a response is left out only if engine and trainer disagree on it by as
    much.

    Args:
        loss: The policy loss of all other tokens; null for ClippedSurrogate with its defaults.
        threshold: The mean in nats a token above which a response is left out, 0 or more; 0.5 in TRL's
            example, unpublished in the paper.
    """

    acts_at_once = True

    def __init__(self, loss: PolicyLoss | None = None, threshold: float = 0.5) -> None:
        if not threshold >= 0:
            raise ArgumentError(f"threshold={threshold}: expected 0 or more, in nats a token")
        self.loss, self.threshold = loss or ClippedSurrogate(), threshold
        self.of_sampler = self.loss.of_sampler
        self.prepares_with_old_logprobs = self.loss.prepares_with_old_logprobs

    @override
    def prepare(
        self, rollout: Experience, feedback: Feedback, version: int
    ) -> dict[object, Shaped[Tensor, "N T"]]:
        return self.loss.prepare(rollout, feedback, version)

    def left_out(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> Bool[Tensor, "B T"]:
        """True on the tokens without a loss."""
        drift = sequence_mean(batch.sampling_logprobs - logprobs.detach(), batch)
        return (batch.advantages < 0) & (drift > self.threshold)

    @override
    def __call__(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        loss, metrics = self.loss(logprobs, batch)
        left_out = self.left_out(logprobs, batch)
        return TokenLoss(
            torch.where(left_out, 0.0, loss), metrics | {"train/off_policy_masked": left_out.float()}
        )
