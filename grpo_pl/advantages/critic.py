"""Advantages from a critic."""

from typing import final

import torch
from typing_extensions import override

from grpo_pl.advantages.base import AdvantageEstimator, check_ddof, check_fraction
from grpo_pl.functional import generalized_advantages, whiten
from grpo_pl.types import Credit, Feedback


@final
class GAE(AdvantageEstimator):
    """Generalised advantage estimation from a critic (Schulman et al. 2016, eq. 16): PPO's choice.

    Returns are A + V *before* whitening; then the advantages are whitened over the scored tokens of the
    iteration, over all ranks. A group of one is legal: the baseline is the critic. With gamma and lam 1 and
    without whitening it is unbiased whatever the critic says; with a smaller lam only if the critic is right.

    Args:
        gamma: Discount per token, in [0, 1].
        lam: Weight of longer returns, in [0, 1]; 1 is the Monte Carlo return minus the value.
        whiten: Whether to whiten the advantages.
        ddof: Degrees of freedom taken off in the variance that whitens: 1 (verl) or 0 (OpenRLHF).
    """

    needs_critic = True

    def __init__(self, gamma: float = 1.0, lam: float = 0.95, whiten: bool = True, ddof: int = 1) -> None:
        check_fraction(gamma=gamma, lam=lam)
        check_ddof(ddof)
        self.gamma, self.lam, self.whiten, self.ddof = gamma, lam, whiten, ddof

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        assert feedback.values is not None, "the module refuses GAE without a critic"
        known = feedback.loss_mask & feedback.scored[:, None]
        advantages = generalized_advantages(feedback.rewards, feedback.values, known, self.gamma, self.lam)
        returns = torch.where(known, advantages, 0.0) + feedback.values
        if self.whiten:
            advantages = whiten(advantages, known, feedback.sum_over_ranks, ddof=self.ddof)
        return Credit(advantages, returns)
