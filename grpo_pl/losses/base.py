"""The contracts of a term of the objective and of the policy loss, its first term."""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float, Shaped
from torch import Tensor
from typing_extensions import override

from grpo_pl.types import Experience, Feedback, TokenLoss, TokenScores

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
    prepares_with_old_logprobs: bool = False
    """Whether `prepare` reads the old policy's log-probabilities: then they are computed before updates."""

    def prepare(
        self,
        rollout: Experience,  # noqa: ARG002 - for those that override it
        feedback: Feedback,  # noqa: ARG002
        version: int,  # noqa: ARG002
    ) -> dict[object, Shaped[Tensor, "N T"]]:
        """What the term needs to know of the whole rollout, token by token: {self: column}; nothing here.

        A quantile or a mean over a micro-batch would change with the cut into micro-batches, so such numbers
        are computed once, of all rows of all ranks (`feedback.sum_over_ranks`; every rank calls it), and
        `term` finds its own as `batch.prepared[self]`. `version` counts the policy's optimizer steps so far:
        random choices derive their seed from it.
        """
        return {}

    @abstractmethod
    def term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        """The loss of each token; the gradient flows through `scores`."""


class PolicyLoss(LossTerm):
    """The surrogate whose gradient improves the policy.

    In the first minibatch of a rollout the policy is the old policy, and the gradient of every implementation
    is REINFORCE's, -A grad logprobs. They differ in how far later minibatches may move away from it. The
    formulas below have rho = exp(logprobs - old_logprobs), `functional.importance_ratio`.
    """

    of_sampler: bool = False
    """Whether its ratio is to the engine's probabilities: then it corrects for the mismatch between engine
    and trainer itself, its gradient in the first minibatch is REINFORCE's times that ratio, and a correction
    is refused, for it would count the mismatch twice."""
    acts_at_once: bool = False
    """Whether it is meant for a single optimizer step on a rollout too, where every rho is 1: `plan` advises
    against others there."""

    description = "the policy loss of tokens"
    advice = f"{SLOWER}, or another model.loss"

    @abstractmethod
    def __call__(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        """Loss of each token; the gradient flows through `logprobs` alone."""

    @override
    def term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        of_tokens = self(scores.logprobs, batch)
        if batch.weights is None:
            return of_tokens
        return of_tokens._replace(loss=of_tokens.loss * batch.weights)
