"""The entropy bonus."""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.losses.base import PRECISION, LossTerm
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Experience, TokenLoss, TokenScores


@final
class TargetEntropy(nn.Module):
    """Moves the coefficient of the entropy bonus so that the entropy does not fall below a target.

    After an iteration of entropy H, `train/entropy`, the coefficient rises by `step` where H <= target and
    falls by it where not, within [low, high], and the next iteration has a bonus only where H <= target:
    adaptive entropy control of Skywork-OR1, arXiv:2505.22312, eq. 3.2, with its target and step (section
    3.2.5), and TRL's `use_adaptive_entropy`. The paper has no bounds, and takes the entropy of the rollout at
    hand; here, as in TRL, it is that of the one before, and there is no bonus before the first measurement.
    TRL moves the coefficient after each optimizer step: multiply its step by the optimizer steps of an
    iteration. An iteration without a measured entropy moves nothing, nor does one in which only the critic
    learns.

    Args:
        target: The entropy to hold, in nats a token, above 0.
        step: How far the coefficient moves in an iteration, above 0.
        low: The least coefficient, 0 or more.
        high: The greatest.
    """

    moved: Tensor
    """How far the coefficient is from the one of the beginning; a buffer, and so in every checkpoint."""
    applied: Tensor
    """1 where the next iteration has a bonus, else 0; likewise."""

    def __init__(self, target: float = 0.2, step: float = 0.005, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        for name, value in (("target", target), ("step", step)):
            if not 0 < value < math.inf:
                raise ArgumentError(f"{name}={value}: expected a number above 0")
        if not 0 <= low <= high < math.inf:
            raise ArgumentError(f"low={low}, high={high}: expected 0 <= low <= high")
        self.target, self.step, self.low, self.high = target, step, low, high
        self.register_buffer("moved", torch.zeros(()))
        self.register_buffer("applied", torch.zeros(()))

    def adapt(self, entropy: float, initial: float) -> None:
        """Move the coefficient, which began as `initial`, after an iteration of this entropy."""
        low = entropy <= self.target
        coefficient = initial + float(self.moved) + (self.step if low else -self.step)
        self.moved.fill_(min(max(coefficient, self.low), self.high) - initial)
        self.applied.fill_(low)


@final
class EntropyBonus(nn.Module, LossTerm):
    """-coefficient * entropy added to the loss of each token, so that the policy keeps its entropy.

    The entropy is that of the whole next-token distribution at the sampling temperature, with its exact
    gradient; prefixes are fixed, as in `KLInLoss`. A negative coefficient is a penalty
    (entropy minimisation, arXiv:2505.15134). A module, so that the state of the controller is in every
    checkpoint.

    Args:
        coefficient: In units of reward per nat; with a controller the one to begin with.
        controller: Moves the coefficient after each iteration; null for a fixed one.
    """

    description = "the entropy bonus"
    advice = f"a lower model.entropy.coefficient, {PRECISION}"
    needs_entropy = True

    def __init__(self, coefficient: float = 0.001, controller: TargetEntropy | None = None) -> None:
        super().__init__()
        if not math.isfinite(coefficient):
            raise ArgumentError(f"coefficient={coefficient}: expected a finite number")
        if controller is not None and not controller.low <= coefficient <= controller.high:
            raise ArgumentError(
                f"coefficient={coefficient}: expected a number within the controller's low={controller.low} "
                f"and high={controller.high}, where it begins"
            )
        self.initial_coefficient, self.controller = coefficient, controller

    @property
    def coefficient(self) -> float | Tensor:
        """That of this iteration, in units of reward per nat."""
        if self.controller is None:
            return self.initial_coefficient
        return self.controller.applied * (self.initial_coefficient + self.controller.moved)

    def loss(self, entropy: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """The addition to the loss of each token."""
        return -self.coefficient * entropy

    @override
    def term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        assert scores.entropy is not None, "forward computes it for a term that needs it"
        metrics = {}
        if self.controller is not None:
            now = torch.as_tensor(self.coefficient, device=scores.entropy.device)
            metrics["train/entropy_coefficient"] = now.expand_as(scores.entropy)
        return TokenLoss(self.loss(scores.entropy), metrics)

    def adapt(self, entropy: Tensor | None) -> None:
        """Called once an iteration with its mean entropy over all ranks, in nats; None if not measured."""
        if self.controller is not None and entropy is not None and entropy.isfinite():
            self.controller.adapt(float(entropy), self.initial_coefficient)
