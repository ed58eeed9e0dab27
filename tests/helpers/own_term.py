"""A term of the loss as a user writes one."""

import torch
from typing_extensions import override

from grpo_pl.losses import LossTerm, TokenLoss
from grpo_pl.types import Experience, TokenScores


class Pull(LossTerm):
    """coefficient * logprobs^2: pulls the log-probabilities of sampled tokens towards 0."""

    description = "the pull"
    advice = "a lower model.terms.pull.coefficient"

    def __init__(self, coefficient: float = 0.1) -> None:
        self.coefficient = coefficient

    @override
    def term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        square = scores.logprobs.square()
        return TokenLoss(self.coefficient * square, {"train/pull": square.detach()})


class Broken(Pull):
    """The same, not a number."""

    @override
    def term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        return TokenLoss(scores.logprobs * torch.nan, {})


class Plain(LossTerm):
    """Not a number, and nothing that describes it."""

    @override
    def term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        return TokenLoss(scores.logprobs * torch.nan, {})
