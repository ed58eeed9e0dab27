"""The contract of a policy loss."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from grpo_pl.types import Experience


class TokenLoss(NamedTuple):
    """A loss for every token, unmasked and unreduced, and what to log of it (as token mean)."""

    loss: Float[Tensor, "B T"]
    metrics: dict[str, Float[Tensor, "B T"]]


class PolicyLoss(ABC):
    """The surrogate whose gradient improves the policy.

    In the first minibatch of a rollout the policy is the old policy, and the gradient of every implementation
    is REINFORCE's, -A grad logprobs. They differ in how far later minibatches may move away from it. The
    formulas below have rho = exp(logprobs - old_logprobs), `functional.importance_ratio`.
    """

    @abstractmethod
    def __call__(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        """Loss of each token; the gradient flows through `logprobs` alone."""
