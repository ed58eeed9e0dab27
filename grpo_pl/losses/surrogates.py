"""Policy losses: surrogates of the objective, token by token."""

from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.functional import importance_ratio
from grpo_pl.losses.base import PolicyLoss
from grpo_pl.losses.clipping import check_clip, clip, clip_metrics, mean_ratio, product_ratio, ratio_metrics
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Experience, TokenLoss


@final
class ClippedSurrogate(PolicyLoss):
    """PPO's clipped surrogate: -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A).

    Schulman et al. 2017, arXiv:1707.06347, eq. 7, with separate bounds (clip-higher: DAPO, arXiv:2503.14476,
    eq. 10). In the first minibatch of a rollout rho is exactly 1; the clip acts from the second on. With
    `dual_clip` the loss of a token with A < 0 is at most -dual_clip A (Ye et al. 2020, arXiv:1912.09729, eq.
    5), which bounds what a token pushes whose probability has risen though it was bad; TRL's `delta` is the
    same bound.

    At `level: sequence` rho is the ratio of the whole response, the product over its tokens, as in RLOO
    (Ahmadian et al. 2024, arXiv:2402.14740) and in TRL's RLOOTrainer: in the token form of
    `GSPO`, so that the value of a token is rho and its gradient rho grad logprobs. Without the clip and with
    one advantage a response its expected gradient off policy is that of the expected reward, where the ratio
    of tokens leaves out that the old policy chose the prefixes; its variance grows with the length. Meant
    with `model.aggregation: ConstantLength` of length 1, the papers': the gradient is then that of the mean
    over responses.

    Args:
        clip_low: How far the ratio may fall below 1 before a token with negative advantage stops pushing, in
            [0, 1].
        clip_high: How far it may rise above 1 before a token with positive advantage stops pushing, 0 or
            more.
        dual_clip: The ratio above which a token with negative advantage stops pushing too, above 1; 3 in the
            paper. Null for none.
        level: Whether each token has a ratio, or each response: the product over its tokens.
    """

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        dual_clip: float | None = None,
        level: Literal["token", "sequence"] = "token",
    ) -> None:
        check_clip(clip_low, clip_high)
        if level not in ("token", "sequence"):
            raise ArgumentError(f"level={level}: expected token or sequence")
        if dual_clip is not None and not dual_clip > 1:
            raise ArgumentError(f"dual_clip={dual_clip}: expected a number above 1, or null for no dual clip")
        self.clip_low, self.clip_high, self.dual_clip = clip_low, clip_high, dual_clip
        self.level = level

    @override
    def __call__(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        if self.level == "token":
            ratio = importance_ratio(logprobs, batch.old_logprobs)
        else:
            ratio = product_ratio(logprobs - batch.old_logprobs, batch)
        loss, acts = clip(ratio, batch.advantages, self.clip_low, self.clip_high)
        if self.dual_clip is not None:
            bound = -self.dual_clip * batch.advantages
            acts = acts | ((batch.advantages < 0) & (loss > bound))
            loss = torch.where(batch.advantages < 0, torch.minimum(loss, bound), loss)
        return TokenLoss(loss, ratio_metrics(logprobs, batch) | clip_metrics(acts, batch))


@final
class GSPO(PolicyLoss):
    """Group sequence policy optimization: the clipped surrogate of the whole response's ratio.

    -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A) with s = exp of the mean of log rho over the response's
    tokens. Zheng et al. 2025, arXiv:2507.18071, eq. 5 and 7, in the token form of eq. 13 and 14: the value of
    every token is s, its gradient is s grad logprobs. So advantages may differ from token to token; where
    they do not, the mean over the tokens of a response is exactly eq. 5. Meant with `model.aggregation:
    SequenceMean`, the paper's.

    Args:
        clip_low: How far s may fall below 1, in [0, 1]; the paper's bounds are this small because s is a
            mean over tokens.
        clip_high: How far s may rise above 1, 0 or more.
    """

    def __init__(self, clip_low: float = 3e-4, clip_high: float = 4e-4) -> None:
        check_clip(clip_low, clip_high)
        self.clip_low, self.clip_high = clip_low, clip_high

    @override
    def __call__(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        ratio = mean_ratio(logprobs - batch.old_logprobs, batch)
        loss, acts = clip(ratio, batch.advantages, self.clip_low, self.clip_high)
        return TokenLoss(loss, ratio_metrics(logprobs, batch) | clip_metrics(acts, batch))


@final
class CISPO(PolicyLoss):
    """Clipped importance weights: -w A logprobs with w = clip(rho, low, high), without gradient.

    MiniMax-M1, arXiv:2506.13585, eq. 4 and 5. The clip bounds the weight of a token and never stops it from
    pushing. `low` and `high` bound rho itself: they are not distances from 1, as the paper has them. The
    paper uses no lower bound and does not print the upper one; 5 is what TRL recommends. Meant with
    `model.aggregation: TokenMean`, the paper's.

    Args:
        low: The lowest weight, in [0, 1].
        high: The highest weight, 1 or more.
    """

    def __init__(self, low: float = 0.0, high: float = 5.0) -> None:
        if not 0 <= low <= 1 <= high:
            raise ArgumentError(
                f"low={low}, high={high}: expected 0 <= low <= 1 <= high, for they bound the ratio itself"
            )
        self.low, self.high = low, high

    @override
    def __call__(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        ratio = importance_ratio(logprobs.detach(), batch.old_logprobs)
        loss = -ratio.clamp(self.low, self.high) * batch.advantages * logprobs
        acts = (batch.advantages != 0) & ((ratio < self.low) | (ratio > self.high))
        return TokenLoss(loss, ratio_metrics(logprobs, batch) | clip_metrics(acts, batch))


@final
class SAPO(PolicyLoss):
    """Soft adaptive policy optimization: -(4 / tau) sigmoid(tau (rho - 1)) A, a smooth gate for the clip.

    arXiv:2511.20347. tau depends on the sign of A: tokens with negative advantage are damped a little faster.
    Meant with `model.aggregation: SequenceMean`, the paper's.

    Args:
        tau_positive: How fast tokens with positive advantage are damped as rho leaves 1, above 0.
        tau_negative: The same of tokens with negative advantage.
    """

    def __init__(self, tau_positive: float = 1.0, tau_negative: float = 1.05) -> None:
        for name, value in (("tau_positive", tau_positive), ("tau_negative", tau_negative)):
            if not value > 0:
                raise ArgumentError(f"{name}={value}: expected a number above 0")
        self.tau_positive, self.tau_negative = tau_positive, tau_negative

    @override
    def __call__(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        ratio = importance_ratio(logprobs, batch.old_logprobs)
        tau = torch.full_like(ratio, self.tau_negative).masked_fill(batch.advantages > 0, self.tau_positive)
        gate = 4 / tau * torch.sigmoid(tau * (ratio - 1))
        return TokenLoss(-gate * batch.advantages, ratio_metrics(logprobs, batch))


@final
class GMPO(PolicyLoss):
    """Geometric-mean policy optimization: -A times the geometric mean of the response's clipped ratios.

    arXiv:2507.20673. log rho is clipped token by token and before the mean, on the side on which PPO would
    clip: above at clip_high where A > 0, below at -clip_low where not. g = exp of the mean over the
    response's tokens. The paper has one advantage a response; here, as in `GSPO`, the value of every token is
    g and its gradient g grad (clipped log rho), so that advantages may differ from token to token. Where they
    do not, the mean over the tokens of a response is exactly the paper's. Meant with `model.aggregation:
    SequenceMean`, the paper's.

    Args:
        clip_low: How far log rho may fall below 0, in nats, 0 or more.
        clip_high: How far log rho may rise above 0, in nats, 0 or more.
    """

    def __init__(self, clip_low: float = 0.4, clip_high: float = 0.4) -> None:
        for name, value in (("clip_low", clip_low), ("clip_high", clip_high)):
            if not value >= 0:
                raise ArgumentError(f"{name}={value}: expected 0 or more, in nats")
        self.clip_low, self.clip_high = clip_low, clip_high

    @override
    def __call__(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        log_ratio = logprobs - batch.old_logprobs
        clipped = torch.where(
            batch.advantages > 0, log_ratio.clamp(max=self.clip_high), log_ratio.clamp(min=-self.clip_low)
        )
        loss = -mean_ratio(clipped, batch) * batch.advantages
        acts = (batch.advantages != 0) & (clipped != log_ratio)
        return TokenLoss(loss, ratio_metrics(logprobs, batch) | clip_metrics(acts, batch))


@final
class Reinforce(PolicyLoss):
    """-A logprobs: no ratio, no clip (Williams 1992, eq. 4).

    From the second minibatch of a rollout on its gradient is biased, for the tokens are the old policy's.
    """

    acts_at_once = True

    @override
    def __call__(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        return TokenLoss(-batch.advantages * logprobs, ratio_metrics(logprobs, batch))
