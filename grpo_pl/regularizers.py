"""What keeps the policy close to the reference."""

from abc import ABC, abstractmethod
from typing import final

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.functional import kl_k3


class KLPenalty(ABC):
    """A penalty on the divergence of the policy from the frozen reference."""

    @abstractmethod
    def loss(
        self, logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """What is added to the loss of each token, and the estimate of the divergence itself, in nats."""


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
        if coefficient < 0:
            raise ValueError(f"model.kl.coefficient={coefficient}: expected 0 or more")
        self.coefficient = coefficient

    @override
    def loss(
        self, logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        divergence = kl_k3(logprobs, ref_logprobs)
        return self.coefficient * divergence, divergence.detach()
