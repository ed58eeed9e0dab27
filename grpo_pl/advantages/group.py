"""Advantages that compare a response with the other responses to the same prompt."""

from typing import Literal, final

import torch
from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from grpo_pl.advantages.base import (
    AdvantageEstimator,
    check_choice,
    check_ddof,
    group_has_signal,
    same_for_all_tokens,
    spread,
)
from grpo_pl.functional import (
    divide_by_std,
    group_is_constant,
    group_mean,
    group_normalize,
    group_std,
    max_at_k_gains,
    mean_and_std,
    others_mean,
    others_std,
)
from grpo_pl.system.refusal import ArgumentError, check_at_least
from grpo_pl.types import Credit, Feedback


@final
class GroupRelative(AdvantageEstimator):
    """A response's reward relative to the other responses to the same prompt, the same for all of its tokens.

    A_n = (r_n - mean_g) / (std_g + eps), DeepSeekMath, arXiv:2402.03300, section 4.1.2. With `scale="none"`
    it is Dr. GRPO's r_n - mean_g (arXiv:2503.20783, eq. 3). The paper leaves the degrees of freedom and eps
    open; the defaults are TRL's. Degenerate cases, by definition and not by rounding: a group whose rewards
    are all equal and a group with one scored response have advantage 0.

    Bias: without scale the expected gradient is the exact one times (G - 1) / G. `scale="group"` divides that
    of each prompt by the standard deviation of its reward if G is large, and turns it too if G is small. With
    `leave_one_out` no statistic of the group depends on the response: the gradient is the exact one, with
    `scale="group"` times the mean of 1 / (std + eps).

    Args:
        scale: What divides the centred reward: the standard deviation of its group, that of all scored
            rewards of the iteration over all ranks, or nothing.
        ddof: Degrees of freedom taken off in the standard deviation: 1 divides by G - 1 (TRL, verl), 0 by G.
        eps: Added to the standard deviation.
        leave_one_out: Mean and standard deviation of the group are those of the *other* responses, as in
            NeMo-RL; where the others do not vary, the centred reward is not divided.
        truncated: Whether responses cut at the token limit are `in` the statistics; `out` gives them
            advantage 0 too, less the cost of a KL in the reward with `scale="group"`.
    """

    min_group_size = 2

    def __init__(
        self,
        scale: Literal["group", "batch", "none"] = "group",
        ddof: int = 1,
        eps: float = 1e-4,
        leave_one_out: bool = False,
        truncated: Literal["in", "out"] = "in",
    ) -> None:
        check_choice("scale", scale, "group", "batch", "none")
        check_ddof(ddof)
        check_at_least(0, eps=eps)
        check_choice("truncated", truncated, "in", "out")
        self.scale, self.ddof, self.eps = scale, ddof, eps
        self.leave_one_out, self.truncated = leave_one_out, truncated

    @property
    @override
    def linear(self) -> bool:
        return self.scale != "group"

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        valid = feedback.scored & ~feedback.truncated if self.truncated == "out" else feedback.scored
        outcome, group_ids = feedback.outcome, feedback.group_ids
        mean, std = (others_mean, others_std) if self.leave_one_out else (group_mean, group_std)
        advantages = outcome - mean(outcome, group_ids, valid)
        if self.scale == "group":
            advantages = divide_by_std(advantages, std(outcome, group_ids, valid, self.ddof), self.eps)
        elif self.scale == "batch":
            of_batch = mean_and_std(outcome, valid, self.ddof, feedback.sum_over_ranks)[1]
            advantages = divide_by_std(advantages, of_batch, self.eps)
        return same_for_all_tokens(advantages, group_has_signal(feedback, valid), feedback)


@final
class LeaveOneOut(AdvantageEstimator):
    """RLOO: a response's reward minus the mean reward of the *other* responses to the same prompt.

    A_n = r_n - mean_{m != n} r_m = G / (G - 1) * (r_n - mean_g) (Ahmadian et al. 2024, arXiv:2402.14740, eq.
    6). The baseline does not depend on the response, so it adds no bias. A group with one scored response has
    advantage 0.
    """

    min_group_size = 2
    linear = True

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        scored = feedback.scored
        advantages = feedback.outcome - others_mean(feedback.outcome, feedback.group_ids, scored)
        return same_for_all_tokens(advantages, group_has_signal(feedback, scored), feedback)


@final
class WinRate(AdvantageEstimator):
    """How many of the other responses to the same prompt a response beats, less how many beat it.

    A_n = 1 / (G - 1) sum_{m != n} sign(r_n - r_m), in [-1, 1]: the gradient of the probability to beat a
    response of the current policy, ties halved, times 2. It reads the order of the rewards alone, as the
    centred ranks of evolution strategies do (Salimans et al. 2017, arXiv:1703.03864, section 2): no
    increasing transform of the rewards changes it, nor an outlier, so that scores without a unit, such as
    those of Bradley-Terry models, need neither a scale nor clipping. With rewards of 0 and 1 it is
    `LeaveOneOut`. A group with one scored response has advantage 0. Not in any peer.
    """

    min_group_size = 2

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        scored, rewards, groups = feedback.scored, feedback.outcome, feedback.group_ids
        compared = (groups[:, None] == groups) & scored[:, None] & scored
        beaten = torch.where(compared, (rewards[:, None] - rewards).sign(), 0.0).sum(-1)
        advantages = beaten / (compared.sum(-1) - 1).clamp(min=1)
        return same_for_all_tokens(advantages, group_has_signal(feedback, scored), feedback)


@final
class PassAtK(AdvantageEstimator):
    """What a response adds to the best of k: the policy is trained to solve a prompt in k attempts.

    The objective is E[max of the rewards of k responses], which is pass@k where rewards are 0 or 1.
    A_n = k mean_J (max(r_n, m_J) - m_J) with m_J = max_{j in J} r_j, over all sets J of k - 1 other responses
    of the group. It is the "leave one out minus one" estimator of Walder and Karkhanis 2025
    (arXiv:2505.15201), times G, because we average over responses where they sum; for k = G it is the
    baseline of Tang et al. 2025 (arXiv:2503.19595), and the best response alone has an advantage, G times its
    lead over the second. m_J does not depend on the response, so the gradient of the objective is estimated
    without bias, for any G >= k. No response has a negative advantage. A group with fewer than k scored
    responses has advantage 0.

    Args:
        k: Attempts, 2 or more and at most `data.group_size`; one attempt is LeaveOneOut.
    """

    def __init__(self, k: int) -> None:
        if k < 2:
            raise ArgumentError(f"k={k}: expected 2 or more; for one attempt take LeaveOneOut")
        self.k = self.min_group_size = k

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        outcome, scored = feedback.outcome, feedback.scored
        advantages = torch.zeros_like(outcome)
        for group in feedback.group_ids.unique():
            rows = scored & (feedback.group_ids == group)
            if rows.sum() >= self.k:
                advantages[rows] = max_at_k_gains(outcome[rows], self.k)
        return same_for_all_tokens(advantages, scored, feedback)


@final
class GDPO(AdvantageEstimator):
    """Each reward is normalised in its group on its own; the weighted sum is normalised over the batch.

    z_nk = (R_nk - mean_gk) / (std_gk + eps), s_n = sum_k w_k z_nk, A_n = (s_n - mean) / (std + batch_eps):
    "group reward-decoupled normalization policy optimization" (Liu et al. 2026, arXiv:2601.05242), as in TRL
    (`normalize_then_sum`); verl differs in `over`, `eps` and `batch_eps`. So two responses with equal sums of
    rewards and different parts are told apart. A reward that is the same in a whole group adds 0 there, and a
    response has advantage 0 if all rewards are, in the statistics of responses. It reads each reward before
    they are summed: reward transforms would not reach it and are refused. A group has a signal if its
    responses differ in any of the rewards, though their sums be equal.

    Args:
        ddof: Degrees of freedom taken off in the standard deviations: 1 (TRL, verl) or 0.
        eps: Added to the standard deviation of a group.
        batch_eps: Added to the standard deviation of the batch.
        over: What the batch's statistics count: `responses` (TRL) each once, `tokens` (verl) each as often as
            it has tokens. Over tokens the mean is not 0, and it shifts groups without signal too.
    """

    reads_named_rewards = True
    min_group_size = 2

    def __init__(
        self,
        ddof: int = 1,
        eps: float = 1e-4,
        batch_eps: float = 1e-4,
        over: Literal["responses", "tokens"] = "responses",
    ) -> None:
        check_ddof(ddof)
        check_at_least(0, eps=eps, batch_eps=batch_eps)
        check_choice("over", over, "responses", "tokens")
        self.ddof, self.eps, self.batch_eps, self.over = ddof, eps, batch_eps, over

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        scored, group_ids = feedback.scored, feedback.group_ids
        total = feedback.outcome.new_zeros(len(scored))
        for name, weighted in feedback.by_name.items():
            weight = feedback.weights[name]
            total += weight * group_normalize(weighted / weight, group_ids, scored, self.ddof, self.eps)
        values, counted = spread(total, feedback, self.over)
        mean, std = mean_and_std(values, counted, self.ddof, feedback.sum_over_ranks)
        advantages = divide_by_std(total - mean, std, self.batch_eps)
        moved = scored if self.over == "tokens" else self.has_signal(feedback)
        return same_for_all_tokens(advantages, moved, feedback)

    @override
    def has_signal(self, feedback: Feedback) -> Bool[Tensor, "N"]:
        scored, group_ids = feedback.scored, feedback.group_ids
        varies = torch.zeros_like(scored)
        for weighted in feedback.by_name.values():
            varies |= ~group_is_constant(weighted, group_ids, scored)
        return scored & varies
