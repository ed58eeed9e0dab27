"""The contracts of a term of the objective and of the policy loss, its first term."""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.types import Experience, TokenLoss, TokenScores

SLOWER = "a lower model.optimizer.lr, trainer.gradient_clip_val: 1, model.kl.bound: 10"
"""Advice for diverging numbers."""
PRECISION = "trainer.precision: bf16-mixed or 32-true"
"""Advice for numbers of too low precision."""


class LossTerm(ABC):
    """A term of the objective: the terms are aggregated alike and added up.

    A new term is a class in a file of `grpo_pl/losses/` (or of your package) and one line of a config:
    `model: {terms: {my_term: MyTerm}}`.
    """

    description: ClassVar[str] = ""
    """The term's name in the message about a step that was skipped because of NaN or infinite numbers."""
    advice: ClassVar[str] = SLOWER
    """What to try then."""
    of_critic: ClassVar[bool] = False
    """Whether the critic alone learns from it: `train/loss` leaves it out, and masks take nothing from it."""
    needs_entropy: ClassVar[bool] = False
    """Whether the gradient flows through `scores.entropy`, which is then computed with one."""

    @abstractmethod
    def term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        """The loss of each token; the gradient flows through `scores`."""


class PolicyLoss(LossTerm):
    """The surrogate whose gradient improves the policy.

    In the first minibatch of a rollout the policy is the old policy, and the gradient of every implementation
    is REINFORCE's, -A grad logprobs. They differ in how far later minibatches may move away from it. The
    formulas below have rho = exp(logprobs - old_logprobs), `functional.importance_ratio`.
    """

    description = "the policy loss of tokens"
    advice = f"{SLOWER}, or another model.loss"

    @abstractmethod
    def __call__(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        """Loss of each token; the gradient flows through `logprobs` alone."""

    @override
    def term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        loss, metrics = self(scores.logprobs, batch)
        return TokenLoss(loss if batch.weights is None else loss * batch.weights, metrics)
