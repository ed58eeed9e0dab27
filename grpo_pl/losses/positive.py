"""Likelihood of the responses that were right."""

import math
from typing import final

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from typing_extensions import override

from grpo_pl.losses.base import LossTerm
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Experience, Feedback, TokenLoss, TokenScores


@final
class PositiveNLL(LossTerm):
    """coefficient times the negative log-likelihood of the responses that were right.

    VAPO, arXiv:2504.05118, eq. 9 and 10: mu times the mean of -logprobs over all tokens of right responses.
    With `TokenMean` it is that mean over the rollout, of all ranks: each token of a right response weighs
    (counted tokens) / (those of right responses), computed once a rollout, and others weigh 0. NeMo-RL
    divides by the tokens of right responses in the *micro-batch*, so its term grows with their number. Where
    nothing is right the term is 0; where little is, that little weighs as much as all.

    A response is right if its reward is above a threshold, not if its advantage is: groups that are right
    throughout count, and since this is a further term they are read. On policy the expected gradient of
    -logprobs summed over right responses is -grad of the probability to be right: policy gradient without a
    baseline; divided by the share of right ones it is that of -log of this probability.

    Args:
        coefficient: mu, in units of reward per nat, 0 or more; 0.1 in the paper (section 5.1).
        by: The name of the reward that tells; null for the weighted sum of all (NeMo-RL), before transforms
            and without the cost of a KL.
        above: The reward above which a response is right: of `by` as it is without its weight.
    """

    description = "the likelihood of right responses"
    advice = "a lower coefficient of that term, a lower model.optimizer.lr"

    def __init__(self, coefficient: float = 0.1, by: str | None = None, above: float = 0.0) -> None:
        if not 0 <= coefficient < math.inf:
            raise ArgumentError(f"coefficient={coefficient}: expected 0 or more")
        if not math.isfinite(above):
            raise ArgumentError(f"above={above}: expected a finite number")
        self.coefficient, self.by, self.above = coefficient, by, above

    def right(self, feedback: Feedback) -> Bool[Tensor, "N"]:
        """Which responses were right; none of unknown reward is."""
        if self.by is None:
            reward = torch.stack([*feedback.by_name.values()]).sum(0)
        else:
            reward = feedback.by_name[self.by] / feedback.weights[self.by]
        return feedback.scored & (reward > self.above)

    @override
    def prepare(
        self, rollout: Experience, feedback: Feedback, version: int
    ) -> dict[object, Shaped[Tensor, "N T"]]:
        positive = rollout.counted & self.right(feedback)[:, None]
        sizes = torch.stack([rollout.loss_mask.sum(), rollout.counted.sum(), positive.sum()])
        read, counted, of_right = feedback.sum_over_ranks(sizes).tolist()
        if not of_right:
            return {}
        return {self: positive * (counted / of_right), (self, "metric"): positive * (read / of_right)}

    def loss(self, logprobs: Float[Tensor, "B T"], weights: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """The addition to the loss of each token."""
        return -self.coefficient * weights * logprobs

    @override
    def term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        if (weights := batch.prepared.get(self)) is None:  # no response is right, on any rank
            return TokenLoss(torch.zeros_like(scores.logprobs), {})
        nll = -batch.prepared[self, "metric"] * scores.logprobs.detach()  # its mean is over all tokens read
        return TokenLoss(self.loss(scores.logprobs, weights), {"train/positive_nll": nll})
