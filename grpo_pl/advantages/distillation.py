"""On-policy distillation: a teacher's opinion of each token is its advantage."""

import math
from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from grpo_pl.advantages.base import AdvantageEstimator, check_fraction
from grpo_pl.functional import generalized_advantages
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Credit, Feedback


@final
class Distillation(AdvantageEstimator):
    """A_t = coefficient * sum_{s >= t} discount^(s - t) (log q_s - log p_s), and another estimator's credit.

    q is the reference, here the teacher, p the policy before the update, both at the sampling temperature. So
    the reward of a token is minus k1, without any function that scores responses: on-policy distillation as
    in Lu and Thinking Machines 2025 ("On-Policy Distillation"), and in prime-rl, SkyRL and verl. It differs
    from `KLInReward` in what stands beside it: no group, no normalisation.

    With discount 0, theirs and the default, the expected gradient on policy is that of -KL(p || q) of each
    token at its prefix; what is dropped is the token's effect on the divergence of later tokens. With 1 it is
    the exact gradient of -KL(p || q) of whole responses, with the variance of a return, as the
    policy gradient of MiniLLM (Gu et al. 2023, arXiv:2306.08543, without its normalisation by length).
    Every response has an advantage, the unscored too: a teacher needs no reward.

    Args:
        base: The estimator whose advantages are added to; null for the teacher alone, with
            `model.rewards: {"*": null}` or with rewards that are only logged.
        coefficient: In units of advantage per nat, above 0.
        discount: Weight of later tokens' log-ratios, per token, in [0, 1].
        bound: The greatest absolute value of a token's log-ratio, in nats, above 0; null for none.
    """

    needs_reference = True

    def __init__(
        self,
        base: AdvantageEstimator | None = None,
        coefficient: float = 1.0,
        discount: float = 0.0,
        bound: float | None = None,
    ) -> None:
        check_fraction(discount=discount)
        if not 0 < coefficient < math.inf:
            raise ArgumentError(f"coefficient={coefficient}: expected a number above 0")
        if bound is not None and not bound > 0:
            raise ArgumentError(f"bound={bound}: expected a number above 0, or null for no bound")
        self.base, self.coefficient, self.discount, self.bound = base, coefficient, discount, bound
        self.needs_rewards = base is not None
        if base is not None:
            self.needs_critic, self.needs_greedy = base.needs_critic, base.needs_greedy
            self.needs_steps, self.reads_named_rewards = base.needs_steps, base.reads_named_rewards
            self.needs_rewards, self.min_group_size = base.needs_rewards, base.min_group_size
            self.gamma = base.gamma

    @property
    @override
    def linear(self) -> bool:
        return self.base is not None and self.base.linear

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        old, teacher = feedback.old_logprobs, feedback.ref_logprobs
        assert old is not None, "the models score before an estimator that needs the reference"
        assert teacher is not None, "check_components refuses it without a reference"
        ratio = teacher - old
        if self.bound is not None:
            ratio = ratio.clamp(-self.bound, self.bound)
        mask = feedback.loss_mask
        to_go = generalized_advantages(ratio, torch.zeros_like(ratio), mask, self.discount, lam=1.0)
        taught = torch.where(mask, self.coefficient * to_go, 0.0)
        if self.base is None:
            return Credit(taught, None)
        advantages, returns = self.base(feedback)
        return Credit(advantages + taught, returns)

    @override
    def has_signal(self, feedback: Feedback) -> Bool[Tensor, "N"]:
        """Every response: the teacher has an opinion of each of its tokens."""
        return torch.ones_like(feedback.scored)
