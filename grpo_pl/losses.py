"""What the policy minimises, token by token, and how tokens are added up."""

from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.types import Experience


class TokenLoss(NamedTuple):
    """A loss for every token, unmasked and unreduced, and what to log of it (as token mean)."""

    loss: Float[Tensor, "B T"]
    metrics: dict[str, Float[Tensor, "B T"]]


class PolicyLoss(ABC):
    """The surrogate whose gradient improves the policy."""

    @abstractmethod
    def __call__(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        """Loss of each token; the gradient flows through `logprobs` alone."""


@final
class ClippedSurrogate(PolicyLoss):
    """PPO's clipped surrogate: -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A).

    rho = exp(logprobs - old_logprobs). Schulman et al. 2017, arXiv:1707.06347, eq. 7, with separate bounds
    (clip-higher: DAPO, arXiv:2503.14476, eq. 10). In the first minibatch of a rollout rho is exactly 1 and
    the gradient is REINFORCE's; the clip acts from the second on.

    Args:
        clip_low: How far the ratio may fall below 1 before a token with negative advantage stops pushing, in
            [0, 1].
        clip_high: How far it may rise above 1 before a token with positive advantage stops pushing, 0 or
            more.
    """

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2) -> None:
        if not 0 <= clip_low <= 1:
            raise ValueError(f"model.loss.clip_low={clip_low}: expected a number in [0, 1]")
        if clip_high < 0:
            raise ValueError(f"model.loss.clip_high={clip_high}: expected 0 or more")
        self.clip_low, self.clip_high = clip_low, clip_high

    @override
    def __call__(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        ratio = torch.exp(logprobs - batch.old_logprobs)
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss = -torch.minimum(ratio * batch.advantages, clipped * batch.advantages)
        acts = torch.where(batch.advantages > 0, ratio > 1 + self.clip_high, ratio < 1 - self.clip_low)
        metrics = {
            "train/clip_fraction": (acts & (batch.advantages != 0)).float(),
            "train/ratio_deviation": (ratio.detach() - 1).abs(),
        }
        return TokenLoss(loss, metrics)


@final
class ClippedValueLoss:
    """PPO's value loss: 1/2 max((V - R)^2, (clip(V, V_old +- clip) - R)^2), as in OpenAI's baselines.

    Args:
        coefficient: Weight beside the policy's loss.
        clip: How far the value may move from that at sampling time before its gradient stops, in units of
            reward.
    """

    def __init__(self, coefficient: float = 0.5, clip: float = 0.2) -> None:
        if coefficient < 0 or clip <= 0:
            raise ValueError(
                f"model.value_loss: coefficient={coefficient}, clip={clip}: expected >= 0 and > 0"
            )
        self.coefficient, self.clip = coefficient, clip

    def __call__(self, values: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        """Loss of each token; the gradient flows through `values` alone."""
        assert batch.returns is not None, "experience of a run with a critic"
        assert batch.old_values is not None, "experience of a run with a critic"
        clipped = values.clamp(batch.old_values - self.clip, batch.old_values + self.clip)
        error, clipped_error = (values - batch.returns) ** 2, (clipped - batch.returns) ** 2
        metrics = {
            "train/value_loss": error.detach() / 2,
            "train/value_clip_fraction": (clipped_error > error).float(),
        }
        return TokenLoss(self.coefficient * torch.maximum(error, clipped_error) / 2, metrics)


class Aggregation(ABC):
    """How the losses of tokens become the loss of an optimizer step.

    Each micro-batch gives its *share*: the shares of all micro-batches and ranks add up to the objective of
    the whole step. So cutting a batch into more micro-batches, or spreading it over more ranks, changes
    nothing.
    """

    @abstractmethod
    def __call__(self, loss: Float[Tensor, "B T"], batch: Experience) -> Float[Tensor, ""]:
        """This micro-batch's share, from `batch.num_tokens` and `batch.num_sequences` of the whole step."""


def _masked_sum(loss: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B"]:
    return torch.where(mask, loss, 0.0).sum(-1)


@final
class TokenMean(Aggregation):
    """The mean over all response tokens of the step: each counts the same (DAPO, arXiv:2503.14476, eq. 8)."""

    @override
    def __call__(self, loss: Float[Tensor, "B T"], batch: Experience) -> Float[Tensor, ""]:
        return _masked_sum(loss, batch.counted).sum() / max(batch.num_tokens, 1)


@final
class SequenceMean(Aggregation):
    """The mean over sequences of the mean over their tokens: each response counts the same.

    DeepSeekMath, arXiv:2402.03300, eq. 3.
    """

    @override
    def __call__(self, loss: Float[Tensor, "B T"], batch: Experience) -> Float[Tensor, ""]:
        per_sequence = _masked_sum(loss, batch.counted) / batch.counted.sum(-1).clamp(min=1)
        return per_sequence.sum() / max(batch.num_sequences, 1)


@final
class ConstantLength(Aggregation):
    """The sum over tokens divided by a constant number of tokens a sequence (Dr. GRPO, arXiv:2503.20783).

    Args:
        length: The constant, in tokens; the paper takes the token limit of a response.
    """

    def __init__(self, length: int) -> None:
        if length < 1:
            raise ValueError(f"model.aggregation.length={length}: expected 1 or more")
        self.length = length

    @override
    def __call__(self, loss: Float[Tensor, "B T"], batch: Experience) -> Float[Tensor, ""]:
        return _masked_sum(loss, batch.counted).sum() / (max(batch.num_sequences, 1) * self.length)
