"""Masks of response tokens: which of them are learned from."""

import math
from abc import ABC, abstractmethod
from fractions import Fraction
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Feedback


class TokenMask(ABC):
    """Takes response tokens out of the loss and of its denominators; the critic learns from all of them."""

    needs_entropy: ClassVar[bool] = False
    """Whether it reads the entropy of tokens: then sequences without an advantage are scored too."""

    @abstractmethod
    def __call__(self, feedback: Feedback, entropy: Float[Tensor, "N T"]) -> Bool[Tensor, "N T"]:
        """False on the tokens to leave out; its values outside the loss mask do not matter.

        `entropy` is that of the old policy, in nats; zeros where `needs_entropy` is False.
        """


@final
class WithoutTruncated(TokenMask):
    """Leaves out responses that were cut at the token limit.

    Overlong filtering: DAPO, arXiv:2503.14476, section 3.4.
    """

    @override
    def __call__(self, feedback: Feedback, entropy: Float[Tensor, "N T"]) -> Bool[Tensor, "N T"]:
        return (~feedback.truncated)[:, None].expand_as(feedback.loss_mask)


@final
class TopEntropy(TokenMask):
    """Keeps the tokens of highest entropy: the forks of a response.

    Wang et al. 2025, arXiv:2506.01939, section 5: the top fifth is enough. The threshold is a quantile over
    all response tokens of the iteration on this rank, where the paper's is over a minibatch and TRL's over a
    micro-batch; the entropy is that of the old policy, where theirs is that of the current one. Tokens at the
    threshold are kept, and at least one token is. Denominators count kept tokens alone, the paper's all
    tokens: so with a mean over tokens our gradient is 1 / share times the paper's. The KL penalty and the
    entropy bonus of the other tokens are left out too.

    Args:
        share: The share of tokens to keep, above 0 and at most 1, as the decimal that is written; a part of a
            token is rounded up.
    """

    needs_entropy = True

    def __init__(self, share: float = 0.2) -> None:
        if not 0 < share <= 1:
            raise ArgumentError(f"share={share}: expected a number above 0 and at most 1")
        self.share = share

    @override
    def __call__(self, feedback: Feedback, entropy: Float[Tensor, "N T"]) -> Bool[Tensor, "N T"]:
        of_responses = entropy[feedback.loss_mask]
        kept = math.ceil(
            Fraction(str(self.share)) * len(of_responses)
        )  # 0.07 of 100 is 7: no binary rounding
        threshold = torch.topk(of_responses, kept).values[-1]
        return entropy >= threshold
