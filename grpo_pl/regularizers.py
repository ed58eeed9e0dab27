"""What keeps the policy close to the reference."""

from abc import ABC, abstractmethod
from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.functional import kl_k3
from grpo_pl.types import Experience


class KLPenalty(nn.Module, ABC):
    """A penalty on the divergence of the policy from the reference: in the loss, or in the reward.

    A module, so that the state of an adaptive coefficient (a buffer) is in every checkpoint.
    """

    def cost(
        self,
        old_logprobs: Float[Tensor, "N T"],  # noqa: ARG002 - for those that override it
        ref_logprobs: Float[Tensor, "N T"],  # noqa: ARG002
    ) -> Float[Tensor, "N T"] | None:
        """What is taken off the reward of each token; None where the penalty is in the loss."""
        return None

    @abstractmethod
    def loss(
        self, logprobs: Float[Tensor, "B T"], batch: Experience
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """What is added to the loss of each token, and the estimate of the divergence itself, in nats."""

    def adapt(self, divergence: float) -> None:
        """Called once an iteration with its mean divergence over all ranks, in nats a token."""


@final
class KLInLoss(KLPenalty):
    """coefficient * k3 added to the loss of each token (DeepSeekMath, arXiv:2402.03300, eq. 3 and 4).

    `functional.kl_k3` says what its gradient is the gradient of. From the second minibatch of a rollout on
    the tokens are no longer samples of the current policy; as in the paper, no importance weight makes up for
    that.

    Args:
        coefficient: Beta, in units of reward per nat; 0.04 in the paper.
    """

    def __init__(self, coefficient: float = 0.04) -> None:
        super().__init__()
        if coefficient < 0:
            raise ValueError(f"model.kl.coefficient={coefficient}: expected 0 or more")
        self.coefficient = coefficient

    @override
    def loss(
        self, logprobs: Float[Tensor, "B T"], batch: Experience
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        assert batch.ref_logprobs is not None, "the module refuses a KL without a reference"
        divergence = kl_k3(logprobs, batch.ref_logprobs)
        return self.coefficient * divergence, divergence.detach()


@final
class EntropyBonus:
    """-coefficient * entropy added to the loss of each token, so that the policy stays undecided.

    The entropy is that of the whole next-token distribution at the sampling temperature, with its exact
    gradient.

    Args:
        coefficient: In units of reward per nat.
    """

    def __init__(self, coefficient: float = 0.001) -> None:
        self.coefficient = coefficient

    def loss(self, entropy: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """What is added to the loss of each token."""
        return -self.coefficient * entropy
