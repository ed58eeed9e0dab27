"""The objective: a sum of named terms."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

from jaxtyping import Float
from torch import Tensor

from grpo_pl.losses.aggregations import Aggregation
from grpo_pl.losses.base import LossTerm
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Experience, TokenLoss, TokenScores


@dataclass(frozen=True)
class TermValues:
    """The terms of a micro-batch by their names."""

    tokens: dict[str, Float[Tensor, "B T"]]
    """The loss of each token, unmasked and unreduced."""
    shares: dict[str, Float[Tensor, ""]]
    """Their shares in the objective of the optimizer step."""
    metrics: dict[str, Float[Tensor, "B T"]]
    """Their metrics, logged as token means."""

    @property
    def total(self) -> Float[Tensor, ""]:
        """This micro-batch's share in the objective."""
        return reduce(add, self.shares.values())


@dataclass(frozen=True)
class Objective:
    """The sum of aggregate(term): policy loss * weights, KL, entropy bonus, value loss, and others.

    Aggregations are linear, so terms can be added up last. Those of the critic count every response token,
    all others what the masks keep.
    """

    terms: Mapping[str, LossTerm]
    """By name; the policy loss is the first."""
    aggregation: Aggregation
    """How the losses of tokens become the loss of an optimizer step."""

    @property
    def needs_entropy(self) -> bool:
        """Whether a term has a gradient through the entropy."""
        return any(term.needs_entropy for term in self.terms.values())

    @property
    def prepares_with_old_logprobs(self) -> bool:
        """Whether a term prepares with the old policy's log-probabilities."""
        return any(term.prepares_with_old_logprobs for term in self.terms.values())

    def __call__(self, scores: TokenScores, batch: Experience) -> TermValues:
        """All terms of a micro-batch, from the scores of the trained models."""
        losses = {name: term.term(scores, batch) for name, term in self.terms.items()}
        for name, loss in losses.items():
            assert isinstance(loss, TokenLoss), f"the term {name} gives no TokenLoss(loss, metrics)"
        of_policy = [losses[name].loss.detach() for name, term in self.terms.items() if not term.of_critic]
        return TermValues(
            tokens={name: loss.loss for name, loss in losses.items()},
            shares={name: self.share(name, loss.loss, batch) for name, loss in losses.items()},
            metrics={"train/loss": reduce(add, of_policy)}
            | {key: value for loss in losses.values() for key, value in loss.metrics.items()},
        )

    def share(self, name: str, loss: Float[Tensor, "B T"], batch: Experience) -> Float[Tensor, ""]:
        """A term's share in the objective of the optimizer step, from its losses of tokens."""
        return self.aggregation(loss, batch.unmasked if self.terms[name].of_critic else batch)


def all_terms(further: Mapping[str, LossTerm], **with_keys: LossTerm | None) -> dict[str, LossTerm]:
    """The terms with a config key, where they are set, then the further ones, which must have other names."""
    for name in further:
        if name in with_keys or not name.isidentifier():
            raise ArgumentError(f"terms: {name!r} cannot be the name of a further term: choose another word")
    return {name: term for name, term in (with_keys | dict(further)).items() if term is not None}
