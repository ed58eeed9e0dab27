"""The entropy bonus."""

import math
from typing import final

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.losses.base import PRECISION, LossTerm
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Experience, TokenLoss, TokenScores


@final
class EntropyBonus(LossTerm):
    """-coefficient * entropy added to the loss of each token, so that the policy keeps its entropy.

    The entropy is that of the whole next-token distribution at the sampling temperature, with its exact
    gradient; prefixes are fixed, as in `KLInLoss`. A negative coefficient is a penalty
    (entropy minimisation, arXiv:2505.15134).

    Args:
        coefficient: In units of reward per nat.
    """

    description = "the entropy bonus"
    advice = f"a lower model.entropy.coefficient, {PRECISION}"
    needs_entropy = True

    def __init__(self, coefficient: float = 0.001) -> None:
        if not math.isfinite(coefficient):
            raise ArgumentError(f"coefficient={coefficient}: expected a finite number")
        self.coefficient = coefficient

    def loss(self, entropy: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """The addition to the loss of each token."""
        return -self.coefficient * entropy

    @override
    def term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        assert scores.entropy is not None, "forward computes it for a term that needs it"
        return TokenLoss(self.loss(scores.entropy), {})
