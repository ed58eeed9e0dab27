"""Which response tokens are learned from."""

from abc import ABC, abstractmethod
from typing import final

from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.types import Feedback


class TokenMask(ABC):
    """Takes response tokens out of the loss and of its denominators."""

    @abstractmethod
    def __call__(self, feedback: Feedback, entropy: Float[Tensor, "N T"] | None) -> Bool[Tensor, "N T"]:
        """False on the tokens to leave out; what it says of tokens outside the loss mask does not matter.

        `entropy` is that of the old policy, in nats.
        """


@final
class WithoutTruncated(TokenMask):
    """Leaves out responses that were cut at the token limit.

    Overlong filtering: DAPO, arXiv:2503.14476, section 3.4.
    """

    @override
    def __call__(self, feedback: Feedback, entropy: Float[Tensor, "N T"] | None) -> Bool[Tensor, "N T"]:
        return (~feedback.truncated)[:, None].expand_as(feedback.loss_mask)
