"""Advantages from rewards of steps."""

from typing import final

import torch
from typing_extensions import override

from grpo_pl.advantages.base import AdvantageEstimator, check_ddof
from grpo_pl.functional import group_normalize
from grpo_pl.system.refusal import check_at_least
from grpo_pl.types import Credit, Feedback


@final
class ProcessGroupRelative(AdvantageEstimator):
    """Process supervision: a token has the normalised rewards of all steps that end with it or after it.

    A_nt = sum_{j: end(n, j) >= t} (r_nj - mean) / (std + eps), mean and standard deviation over all steps of
    all scored responses to the prompt (DeepSeekMath, arXiv:2402.03300, section 4.1.3). The paper has no other
    reward. Here what a response earns outside of its step ends (an outcome reward) is
    summed, normalised over the responses of the group as in GroupRelative, and added to all of its tokens;
    what falls on a step's last token belongs to the step. Degenerate cases, by definition: steps whose
    rewards are all equal in a group add 0, and so does a group's only step; the same for what is earned
    outside of steps. A token after the last step has the outcome's share alone.

    Args:
        ddof: Degrees of freedom taken off in the standard deviations: 1 or 0; the paper leaves it open.
        eps: Added to the standard deviations.
    """

    needs_steps = True
    min_group_size = 2

    def __init__(self, ddof: int = 1, eps: float = 1e-4) -> None:
        check_ddof(ddof)
        check_at_least(0, eps=eps)
        self.ddof, self.eps = ddof, eps

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        scored, group_ids = feedback.scored, feedback.group_ids
        ends = feedback.step_ends & scored[:, None]
        of_steps = torch.zeros_like(feedback.rewards)
        steps, owners = feedback.rewards[ends], group_ids[ends.nonzero()[:, 0]]
        of_steps[ends] = group_normalize(
            steps, owners, torch.ones_like(owners, dtype=torch.bool), self.ddof, self.eps
        )
        outcome = torch.where(feedback.step_ends, 0.0, feedback.rewards).sum(-1)
        of_outcome = group_normalize(outcome, group_ids, scored, self.ddof, self.eps)
        to_go = of_steps.flip(-1).cumsum(-1).flip(-1)
        known = feedback.loss_mask & scored[:, None]
        return Credit(torch.where(known, to_go + of_outcome[:, None], 0.0), None)
