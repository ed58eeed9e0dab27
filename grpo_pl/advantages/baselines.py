"""REINFORCE with other baselines than the mean of the group."""

from typing import Literal, final

import torch
from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from grpo_pl.advantages.base import (
    AdvantageEstimator,
    check_choice,
    check_ddof,
    check_fraction,
    group_has_signal,
    same_for_all_tokens,
    spread,
)
from grpo_pl.functional import generalized_advantages, group_mean, whiten
from grpo_pl.types import Credit, Feedback


@final
class ReMax(AdvantageEstimator):
    """A response's reward minus that of the greedy response to the same prompt.

    A_n = r_n - r_greedy (Li et al. 2023, arXiv:2310.10505, algorithm 1). The baseline does not depend on the
    response, so it adds no bias; it costs one more response a prompt, and a group of one is legal. verl takes
    the return to go instead of the whole reward, which is the same where the reward is paid at the end. The
    greedy reward is transformed by the reward transforms as the others are, adds nothing to their running
    statistics, and is without the cost of a KL in the reward. Where the greedy response is unscored the
    advantage is 0. A response has a signal if its reward is not that of the greedy one.
    """

    needs_greedy = True

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        assert feedback.greedy is not None, "the loop generates it for an estimator that needs it"
        advantages = feedback.outcome - feedback.greedy
        return same_for_all_tokens(advantages, feedback.scored & ~feedback.greedy.isnan(), feedback)


@final
class OPO(AdvantageEstimator):
    """A response's reward minus the mean reward of its group, weighted by length.

    A_n = r_n - sum_m l_m r_m / sum_m l_m with l the number of response tokens (Hao et al. 2025,
    arXiv:2505.23585): the baseline of least variance, if the squared gradient of a response grows with
    its length. As in the paper the sum includes the response itself, so the estimate is biased: by the factor
    (G - 1) / G where all lengths are equal. A group whose rewards are all equal has advantage 0.
    """

    min_group_size = 2
    linear = True

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        outcome, group_ids, scored = feedback.outcome, feedback.group_ids, feedback.scored
        lengths = feedback.loss_mask.sum(-1).to(outcome.dtype)
        paid = group_mean(lengths * outcome, group_ids, scored)
        advantages = outcome - paid / group_mean(lengths, group_ids, scored)
        return same_for_all_tokens(advantages, group_has_signal(feedback, scored), feedback)


@final
class ReinforcePlusPlus(AdvantageEstimator):
    """The discounted return to go of each token, whitened over the scored tokens of all ranks.

    G_t = sum_{s >= t} gamma^(s - t) r_s, A_t = (G_t - mean) / std (REINFORCE++, Hu et al. 2025,
    arXiv:2501.03262). s and t count response tokens: tokens that the policy did not choose are skipped, as in
    verl. The paper's KL in the reward is `model.kl KLInReward`. Groups play no part, and a group of one is
    legal. Biased, since mean and standard deviation contain the response itself;
    with many responses and gamma 1 it is the gradient of the expected reward times a constant. Whitening an
    iteration whose tokens all have the same return gives exactly 0; in any other every scored response has a
    signal.

    Args:
        gamma: Discount per token, in [0, 1].
        ddof: Degrees of freedom taken off in the variance: 1 (verl) or 0 (OpenRLHF).
    """

    def __init__(self, gamma: float = 1.0, ddof: int = 1) -> None:
        check_fraction(gamma=gamma)
        check_ddof(ddof)
        self.gamma, self.ddof = gamma, ddof

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        known = feedback.loss_mask & feedback.scored[:, None]
        no_critic = torch.zeros_like(feedback.rewards)
        returns = generalized_advantages(feedback.rewards, no_critic, known, self.gamma, lam=1.0)
        return Credit(whiten(returns, known, feedback.sum_over_ranks, ddof=self.ddof), None)


@final
class ReinforcePlusPlusBaseline(AdvantageEstimator):
    """A response's reward minus the mean of its group, whitened over all scored responses of all ranks.

    A_n = (c_n - mean) / std with c_n = r_n - mean_g (REINFORCE++, arXiv:2501.03262, the variant with a
    baseline). A group whose rewards are all equal has advantage 0, in the statistics of responses; it counts
    in them with 0. Biased, since mean and standard deviation contain the response itself.

    Args:
        over: What the statistics count: `responses` each once, `tokens` (verl, OpenRLHF) each as often as it
            has tokens. Over tokens the mean is not 0, and it shifts groups without signal too.
        ddof: Degrees of freedom taken off in the variance: 1 (verl) or 0 (OpenRLHF).
    """

    min_group_size = 2
    linear = True

    def __init__(self, over: Literal["responses", "tokens"] = "responses", ddof: int = 1) -> None:
        check_choice("over", over, "responses", "tokens")
        check_ddof(ddof)
        self.over, self.ddof = over, ddof

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        outcome, scored = feedback.outcome, feedback.scored
        has_signal = group_has_signal(feedback, scored)
        centred = torch.where(has_signal, outcome - group_mean(outcome, feedback.group_ids, scored), 0.0)
        values, counted = spread(centred, feedback, self.over)
        white = whiten(values, counted, feedback.sum_over_ranks, ddof=self.ddof)
        moved = scored if self.over == "tokens" else has_signal
        return Credit(torch.where(feedback.loss_mask & moved[:, None], white, 0.0), None)

    @override
    def has_signal(self, feedback: Feedback) -> Bool[Tensor, "N"]:
        return group_has_signal(feedback, feedback.scored)
