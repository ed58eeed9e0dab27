"""Credit assignment: rewards of responses -> advantages of tokens."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.functional import (
    generalized_advantages,
    group_is_constant,
    group_mean,
    group_size,
    group_std,
    whiten,
)
from grpo_pl.types import Feedback


class Credit(NamedTuple):
    """What an estimator returns: zero where the loss mask is False."""

    advantages: Float[Tensor, "N T"]
    returns: Float[Tensor, "N T"] | None
    """The critic's regression target; None where there is no critic."""


class AdvantageEstimator(ABC):
    """Assigns the rewards of an iteration to the tokens that earned them."""

    needs_critic: ClassVar[bool] = False
    needs_greedy: ClassVar[bool] = False
    """Whether `Feedback.greedy` must be there: a greedy response to each prompt is then generated too."""
    min_group_size: ClassVar[int] = 1

    @abstractmethod
    def __call__(self, feedback: Feedback) -> Credit:
        """Advantages of all tokens of one iteration on this rank."""


@final
class GroupRelative(AdvantageEstimator):
    """A response's reward relative to the other responses to the same prompt, the same for all of its tokens.

    A_n = (r_n - mean_g) / (std_g + eps), DeepSeekMath, arXiv:2402.03300, section 4.1.2. With `scale="none"`
    it is Dr. GRPO's r_n - mean_g (arXiv:2503.20783, eq. 3). The paper leaves the degrees of freedom and eps
    open; the defaults are TRL's. Degenerate cases, by definition and not by rounding: a group whose rewards
    are all equal and a group with one scored response have advantage 0.

    Args:
        scale: What divides the centred reward: the standard deviation of its group, that of all scored
            rewards of the iteration on this rank, or nothing.
        ddof: Degrees of freedom taken off in the standard deviation: 1 divides by G - 1 (TRL, verl), 0 by G.
        eps: Added to the standard deviation.
    """

    min_group_size = 2

    def __init__(
        self, scale: Literal["group", "batch", "none"] = "group", ddof: int = 1, eps: float = 1e-4
    ) -> None:
        if scale not in ("group", "batch", "none"):
            raise ValueError(f"model.advantage.scale={scale}: expected group, batch or none")
        if ddof not in (0, 1):
            raise ValueError(f"model.advantage.ddof={ddof}: expected 0 (divide by G) or 1 (divide by G - 1)")
        if eps < 0:
            raise ValueError(f"model.advantage.eps={eps}: expected 0 or more")
        self.scale, self.ddof, self.eps = scale, ddof, eps

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        outcome, group_ids, scored = feedback.outcome, feedback.group_ids, feedback.scored
        centred = outcome - group_mean(outcome, group_ids, scored)
        if self.scale == "group":
            centred = centred / (group_std(outcome, group_ids, scored, self.ddof) + self.eps)
        elif self.scale == "batch":
            everyone = torch.zeros_like(group_ids)
            centred = centred / (group_std(outcome, everyone, scored, self.ddof) + self.eps)
        has_signal = (
            scored & (group_size(group_ids, scored) > 1) & ~group_is_constant(outcome, group_ids, scored)
        )
        return Credit(torch.where(feedback.loss_mask & has_signal[:, None], centred[:, None], 0.0), None)


@final
class LeaveOneOut(AdvantageEstimator):
    """RLOO: a response's reward minus the mean reward of the *other* responses to the same prompt.

    A_n = r_n - mean_{m != n} r_m = G / (G - 1) * (r_n - mean_g) (Ahmadian et al. 2024, arXiv:2402.14740, eq.
    6). The baseline does not depend on the response, so it adds no bias. A group with one scored response has
    advantage 0.
    """

    min_group_size = 2

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        outcome, group_ids, scored = feedback.outcome, feedback.group_ids, feedback.scored
        size = group_size(group_ids, scored)
        scale = size / (size - 1).clamp(min=1)
        has_signal = scored & (size > 1) & ~group_is_constant(outcome, group_ids, scored)
        advantage = (outcome - group_mean(outcome, group_ids, scored)) * scale
        return Credit(torch.where(feedback.loss_mask & has_signal[:, None], advantage[:, None], 0.0), None)


@final
class GAE(AdvantageEstimator):
    """Generalised advantage estimation from a critic (Schulman et al. 2016, eq. 16): PPO's choice.

    Returns are A + V *before* whitening; then the advantages are whitened over the scored tokens of the
    iteration, over all ranks. A group of one is legal: the baseline is the critic.

    Args:
        gamma: Discount per token, in [0, 1].
        lam: Weight of longer returns, in [0, 1]; 1 is the Monte Carlo return minus the value.
        whiten: Whether to whiten the advantages.
    """

    needs_critic = True

    def __init__(self, gamma: float = 1.0, lam: float = 0.95, whiten: bool = True) -> None:
        for name, value in (("gamma", gamma), ("lam", lam)):
            if not 0 <= value <= 1:
                raise ValueError(f"model.advantage.{name}={value}: expected a number in [0, 1]")
        self.gamma, self.lam, self.whiten = gamma, lam, whiten

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        assert feedback.values is not None, "the module refuses GAE without a critic"
        known = feedback.loss_mask & feedback.scored[:, None]
        advantages = generalized_advantages(feedback.rewards, feedback.values, known, self.gamma, self.lam)
        returns = torch.where(known, advantages, 0.0) + feedback.values
        return Credit(
            whiten(advantages, known, feedback.sum_over_ranks) if self.whiten else advantages, returns
        )
