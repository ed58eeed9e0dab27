"""Advantages whose objective is the likelihood of success."""

from typing import final

import torch
from typing_extensions import override

from grpo_pl.advantages.base import AdvantageEstimator, group_has_signal, same_for_all_tokens
from grpo_pl.functional import group_mean
from grpo_pl.system.refusal import check_at_least
from grpo_pl.types import Credit, Feedback


@final
class MaxRL(AdvantageEstimator):
    """A response's reward relative to the mean of its group: the policy climbs the log of its success rate.

    A_n = (r_n - mean_g) / (mean_g + eps), "maximum likelihood reinforcement learning" (arXiv:2602.02710; also
    SkyRL's `maxrl`, eps 1e-6, and prime-rl's). With rewards of 0 and 1 and a success rate p, the expected
    gradient is, without bias, that of the series log p = -sum_k (1 - p)^k / k cut after G - 1 terms:
    sum_{k=1}^{G-1} (1 - p)^{k-1} grad p = (1 - (1 - p)^{G-1}) / p grad p. (Of the paper's estimator, without
    the baseline, it is cut after G terms: the baseline costs one, because it is left out where no response is
    right.) So a prompt counts the more the harder it is, up to G - 1 times; two responses are `LeaveOneOut`,
    and with many the gradient is that of maximum likelihood.

    For rewards of 0 or more. A group whose mean is not above 0 has advantage 0, as has one whose rewards are
    all equal. With rewards of both signs a mean may come near 0, and the advantages have no bound: keep
    penalties out of its rewards. (A KL in the reward is added after the division.)

    Args:
        eps: Added to the mean.
    """

    min_group_size = 2

    def __init__(self, eps: float = 0.0) -> None:
        check_at_least(0, eps=eps)
        self.eps = eps

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        outcome, scored = feedback.outcome, feedback.scored
        mean = group_mean(outcome, feedback.group_ids, scored)
        advantages = (outcome - mean) / torch.where(mean > 0, mean + self.eps, 1.0)
        has_signal = group_has_signal(feedback, scored) & (mean > 0)
        return same_for_all_tokens(advantages, has_signal, feedback)
