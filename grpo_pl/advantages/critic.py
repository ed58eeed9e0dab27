"""Advantages from a critic."""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.advantages.base import AdvantageEstimator, check_ddof, check_fraction
from grpo_pl.functional import generalized_advantages, whiten
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Credit, Feedback


@final
class GAE(AdvantageEstimator):
    """Generalised advantage estimation from a critic (Schulman et al. 2016, eq. 16): PPO's choice.

    Decoupled as in VC-PPO (Yuan et al. 2025, arXiv:2503.01491) and VAPO (Yue et al. 2025, arXiv:2504.05118):
    the advantages have one lam and the value targets, V + A(lam_value), another. With lam_value 1 a target is
    the return that was observed, so a critic that starts at zero learns the reward at every token at once;
    with 0.95 the token 256 before a reward of 1 is told 2e-6, and the mean of 256 targets is 0.078. Targets
    are made *before* the advantages are whitened, over the scored tokens of the iteration on all ranks. An
    unscored response has advantage 0 and its own values as targets. A group of one is legal: the baseline is
    the critic. With gamma and lam 1 and without whitening the advantage is unbiased whatever the critic says,
    and so the default (verl's and OpenRLHF's); a smaller lam (0.95 in TRL, NeMo-RL and VC-PPO) has less
    variance, is unbiased only if the critic is right, and is for critics that were trained before.

    Args:
        gamma: Discount per token, in [0, 1].
        lam: Weight of longer returns in the advantages, in [0, 1]; 1 is the return minus the value.
        whiten: Whether to whiten the advantages.
        ddof: Degrees of freedom taken off in the variance that whitens: 1 (verl) or 0 (OpenRLHF).
        lam_value: Weight of longer returns in the critic's targets, in [0, 1]; 1 is the return itself.
        length_adaptive_alpha: Takes the place of `lam` by max(0, 1 - 1 / (alpha l)) for a response of l
            tokens, so that l alpha steps are looked ahead (VAPO, eq. 5, whose alpha is 0.05: for
            responses of hundreds of tokens; up to 1 / alpha tokens lam is 0). Null for one lam.
    """

    needs_critic = True

    def __init__(
        self,
        gamma: float = 1.0,
        lam: float = 1.0,
        whiten: bool = True,
        ddof: int = 1,
        lam_value: float = 1.0,
        length_adaptive_alpha: float | None = None,
    ) -> None:
        check_fraction(gamma=gamma, lam=lam, lam_value=lam_value)
        check_ddof(ddof)
        if length_adaptive_alpha is not None and not 0 < length_adaptive_alpha < math.inf:
            raise ArgumentError(
                f"length_adaptive_alpha={length_adaptive_alpha}: expected a number above 0, "
                "or null for one lam"
            )
        self.gamma, self.lam, self.whiten, self.ddof = gamma, lam, whiten, ddof
        self.lam_value, self.length_adaptive_alpha = lam_value, length_adaptive_alpha

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        assert feedback.values is not None, "the module refuses GAE without a critic"
        known = feedback.loss_mask & feedback.scored[:, None]

        def estimate(lam: float | Float[Tensor, "N"]) -> Float[Tensor, "N T"]:
            assert feedback.values is not None
            return generalized_advantages(feedback.rewards, feedback.values, known, self.gamma, lam)

        advantages = estimate(self.lam_of_policy(feedback))
        one_lam = self.length_adaptive_alpha is None and self.lam == self.lam_value
        of_critic = advantages if one_lam else estimate(self.lam_value)
        returns = torch.where(known, of_critic, 0.0) + feedback.values
        if self.whiten:
            advantages = whiten(advantages, known, feedback.sum_over_ranks, ddof=self.ddof)
        return Credit(advantages, returns)

    def lam_of_policy(self, feedback: Feedback) -> float | Float[Tensor, "N"]:
        """The lam of the advantages: one for all responses, or one for each."""
        if self.length_adaptive_alpha is None:
            return self.lam
        tokens = feedback.loss_mask.sum(-1).clamp(min=1).to(feedback.rewards.dtype)
        return (1 - 1 / (self.length_adaptive_alpha * tokens)).clamp(min=0)
