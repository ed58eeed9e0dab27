"""The contract of an advantage estimator, and shared parts of several."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_pl.functional import group_is_constant
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Credit, Feedback


class AdvantageEstimator(ABC):
    """Assigns the rewards of an iteration to the tokens that earned them."""

    needs_critic: bool = False
    needs_greedy: bool = False
    """Whether it needs `Feedback.greedy`: a greedy response to each prompt is then generated too."""
    needs_steps: bool = False
    """Whether it needs `Feedback.step_ends`: some reward must then be a process reward."""
    reads_named_rewards: bool = False
    """Whether it reads `Feedback.by_name` instead of `Feedback.rewards`: it does not see changes of the sum
    by a KL in the reward or by a transform."""
    needs_rewards: bool = True
    """Whether there must be a reward with a weight other than 0."""
    needs_reference: ClassVar[bool] = False
    """Whether it reads `Feedback.old_logprobs` and `ref_logprobs`: the models then score first."""
    min_group_size: int = 1
    gamma: float = 1.0
    """Discount per token of the returns that a critic foresees."""

    @abstractmethod
    def __call__(self, feedback: Feedback) -> Credit:
        """Advantages of all tokens of one iteration on this rank."""


def same_for_all_tokens(
    advantages: Float[Tensor, "N"], has_signal: Bool[Tensor, "N"], feedback: Feedback
) -> Credit:
    """Every response token has the advantage of its response; exactly 0 where there is no signal."""
    known = feedback.loss_mask & has_signal[:, None]
    return Credit(torch.where(known, advantages[:, None], 0.0), None)


def group_has_signal(feedback: Feedback, valid: Bool[Tensor, "N"]) -> Bool[Tensor, "N"]:
    """True on the valid responses of groups whose valid responses differ in reward."""
    return valid & ~group_is_constant(feedback.outcome, feedback.group_ids, valid)


def spread(
    advantages: Float[Tensor, "N"], feedback: Feedback, over: Literal["responses", "tokens"]
) -> tuple[Float[Tensor, "N _"], Bool[Tensor, "N _"]]:
    """The scored entries that statistics of the batch count: each response once, or once a token."""
    if over == "responses":
        return advantages[:, None], feedback.scored[:, None]
    return advantages[:, None].expand_as(feedback.rewards), feedback.loss_mask & feedback.scored[:, None]


def check_ddof(ddof: int) -> None:
    """Refuse degrees of freedom that are neither of the two conventions."""
    if ddof not in (0, 1):
        raise ArgumentError(
            f"ddof={ddof}: expected 0 (divide by the count) or 1 (divide by the count less 1)"
        )


def check_fraction(**options: float) -> None:
    """Refuse a value of an option outside of [0, 1]."""
    for name, value in options.items():
        if not 0 <= value <= 1:
            raise ArgumentError(f"{name}={value}: expected a number in [0, 1]")


def check_choice(name: str, value: str, *choices: str) -> None:
    """Refuse a word that is not one of the choices."""
    if value not in choices:
        raise ArgumentError(f"{name}={value}: expected one of {', '.join(choices)}")
