"""What is minimised: the objective as a sum of terms, each with a name of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from grpo_pl.losses import Aggregation, ClippedValueLoss, PolicyLoss, TokenLoss
from grpo_pl.losses.kl import EntropyBonus, KLPenalty
from grpo_pl.types import Experience, TokenScores


@dataclass(frozen=True)
class Terms:
    """The terms of a micro-batch by the config key of their component, which is in `nonfinite.SOURCES`."""

    tokens: dict[str, Float[Tensor, "B T"]]
    """Of each token, unmasked and unreduced."""
    shares: dict[str, Float[Tensor, ""]]
    """What they add to the objective of the optimizer step."""
    metrics: dict[str, Float[Tensor, "B T"]]
    """What to log of them, as token means."""

    @property
    def total(self) -> Float[Tensor, ""]:
        """This micro-batch's share in the objective."""
        return reduce(add, self.shares.values())


@dataclass(frozen=True)
class Objective:
    """aggregate(policy loss * weights) + aggregate(KL) + aggregate(entropy bonus) + aggregate(value loss).

    Aggregations are linear, so that it does not matter that terms are added up last.

    Args:
        loss: The surrogate of each token.
        aggregation: How the losses of tokens become the loss of an optimizer step.
        kl: Penalty on leaving the reference; null for none.
        entropy: Bonus for an undecided policy; null for none.
        value_loss: The critic's loss; null where there is no critic.
    """

    loss: PolicyLoss
    aggregation: Aggregation
    kl: KLPenalty | None
    entropy: EntropyBonus | None
    value_loss: ClippedValueLoss | None

    @property
    def terms(self) -> dict[str, Callable[[TokenScores, Experience], TokenLoss]]:
        """The terms that there are, the critic's last."""
        found = {
            "model.loss": (self.loss, self._policy_term),
            "model.kl": (self.kl, self._kl_term),
            "model.entropy": (self.entropy, self._entropy_term),
            "model.value_loss": (self.value_loss, self._value_term),
        }
        return {name: term for name, (component, term) in found.items() if component is not None}

    def __call__(self, scores: TokenScores, batch: Experience) -> Terms:
        """All terms of a micro-batch, from what the trained models say of it."""
        said = {name: term(scores, batch) for name, term in self.terms.items()}
        tokens = {name: term.loss for name, term in said.items()}
        of_policy = [loss.detach() for name, loss in tokens.items() if name != "model.value_loss"]
        return Terms(
            tokens,
            shares={name: self.aggregation(loss, batch) for name, loss in tokens.items()},
            metrics={"train/loss": reduce(add, of_policy)}
            | {key: value for term in said.values() for key, value in term.metrics.items()},
        )

    def _policy_term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        loss, metrics = self.loss(scores.logprobs, batch)
        return TokenLoss(loss if batch.weights is None else loss * batch.weights, metrics)

    def _kl_term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        assert self.kl is not None, "there is such a term"
        loss, divergence = self.kl.loss(scores.logprobs, batch)
        return TokenLoss(loss, {"train/kl": divergence})

    def _entropy_term(self, scores: TokenScores, _: Experience) -> TokenLoss:
        assert self.entropy is not None, "there is such a term"
        assert scores.entropy is not None, "forward gives it where there is such a term"
        return TokenLoss(self.entropy.loss(scores.entropy), {})

    def _value_term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        assert self.value_loss is not None, "there is such a term"
        assert scores.values is not None, "forward gives them where there is a critic"
        return self.value_loss(scores.values, batch)


@runtime_checkable
class HasObjective(Protocol):
    """A module that minimises an objective, as one that measures its terms sees it."""

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        ...

    def scored(self, batch: Experience) -> TokenScores:
        """What the trained models say of a micro-batch."""
        ...

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters by the model that they belong to; the first group is the policy."""
        ...
