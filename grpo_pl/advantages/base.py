"""The contract of an advantage estimator, and shared parts of several."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_pl.functional import group_is_constant
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Credit, Feedback


class AdvantageEstimator(ABC):
    """Assigns the rewards of an iteration to the tokens that earned them.

    An implementation states `__call__`; the learner asks for `credit`, which places a KL in the reward.
    """

    needs_critic: bool = False
    needs_greedy: bool = False
    """Whether it needs `Feedback.greedy`: a greedy response to each prompt is then generated too."""
    needs_steps: bool = False
    """Whether it needs `Feedback.step_ends`: some reward must then be a process reward."""
    reads_named_rewards: bool = False
    """Whether it reads `Feedback.by_name` instead of `Feedback.rewards`: it does not see what a transform
    does to the sum."""
    needs_rewards: bool = True
    """Whether there must be a reward with a weight other than 0."""
    needs_reference: ClassVar[bool] = False
    """Whether it reads `Feedback.old_logprobs` and `ref_logprobs`: the models then score first."""
    of_any_policy: ClassVar[bool] = False
    """Whether it means responses to be learned whoever has written them: nothing is to correct for it."""
    min_group_size: int = 1
    gamma: float = 1.0
    """Discount per token of the returns that a critic foresees."""

    @abstractmethod
    def __call__(self, feedback: Feedback) -> Credit:
        """Advantages of all tokens of one iteration on this rank, from `feedback.rewards`."""

    @property
    def linear(self) -> bool:
        """Whether advantages are linear in the rewards, up to one scale of the whole iteration.

        An estimator that divides by the spread of a group, or ranks its responses, is not: of the cost of a
        KL among the rewards it would make advantages of size 1 in every group whose responses are equally
        good. By default, one that asks for more than one response to a prompt is taken for such a one. One
        that does not read `Feedback.rewards` would not see the cost among them, and is none either.
        """
        return self.min_group_size == 1 and self.needs_rewards and not self.reads_named_rewards

    def credit(self, feedback: Feedback) -> Credit:
        """The advantages, less the cost of a KL in the reward.

        A linear estimator sees rewards with the cost taken off. Another one sees the rewards of the task
        alone, and each token of a scored response pays the cost of all tokens from itself on,
        -sum_{s >= t} cost_s, after the advantages are normalised (as in OpenRLHF): the exact gradient of the
        KL, in units of reward, whatever the spread of a group is.
        """
        cost = feedback.kl_cost
        if cost is None:
            return self(feedback)
        if self.linear:
            return self(replace(feedback, rewards=feedback.paid))
        credit, known = self(feedback), feedback.loss_mask & feedback.scored[:, None]
        to_go = torch.where(known, cost, 0.0).flip(-1).cumsum(-1).flip(-1)
        advantages = torch.where(known, credit.advantages - to_go, credit.advantages)
        return credit._replace(advantages=advantages)

    def has_signal(self, feedback: Feedback) -> Bool[Tensor, "N"]:
        """The responses that the rewards of the task give an advantage other than 0; a KL is no signal.

        A group without such a response counts in `rollout/groups_without_signal`, and dynamic sampling
        replaces it. Dynamic sampling judges before the models have scored: an estimator that needs a critic
        then learns from every scored response, and one that needs a greedy response from those of groups that
        differ in reward.
        """
        if self.needs_critic and feedback.values is None:
            return feedback.scored
        if self.needs_greedy and feedback.greedy is None:
            return group_has_signal(feedback, feedback.scored)
        return (self(feedback).advantages != 0).any(-1)


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
