"""Penalties on the divergence of the policy from the reference."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.functional import importance_ratio, kl_k1, kl_k2, kl_k3
from grpo_pl.losses.base import LossTerm
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Experience, TokenLoss, TokenScores

Estimator = Literal["k1", "k2", "k3"]
Divergence: TypeAlias = Callable[
    [Float[Tensor, "*shape V"], Float[Tensor, "*shape V"]], Float[Tensor, "*shape"]
]
"""Of the log-probabilities of student and teacher."""
ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


@final
class AdaptiveCoefficient(nn.Module):
    """Moves the coefficient of a KL penalty so that the divergence comes near a target.

    After each iteration, beta *= 1 + clip(KL / target - 1, -0.2, 0.2) / horizon: the proportional controller
    of Ziegler et al. 2019, arXiv:1909.08593, section 2.2. KL is `train/kl`: unbiased, and the mean over the
    tokens of an iteration, where the paper's is that of a whole response. verl and PPO count the horizon in
    responses; divide theirs by the responses of an iteration.

    Args:
        target: The divergence to hold, in nats a token.
        horizon: Iterations in which an error of 20 % or more moves the coefficient by about 20 %.
    """

    scale: Tensor
    """The factor of the coefficient so far; a buffer, and so in every checkpoint."""

    def __init__(self, target: float = 0.1, horizon: float = 10.0) -> None:
        super().__init__()
        for name, value in (("target", target), ("horizon", horizon)):
            if not 0 < value < math.inf:
                raise ArgumentError(f"{name}={value}: expected a number above 0")
        self.target, self.horizon = target, horizon
        self.register_buffer("scale", torch.ones(()))

    def adapt(self, divergence: float) -> None:
        """Move the coefficient after an iteration of this divergence."""
        error = min(max(divergence / self.target - 1, -0.2), 0.2)
        self.scale *= 1 + error / self.horizon


class KLPenalty(nn.Module, LossTerm):
    """A penalty on the divergence of the policy from the reference: in the loss, or in the reward.

    A module, so that the state of the controller is in every checkpoint. An implementation states `term`,
    which logs the divergence as `train/kl`.
    """

    description = "the penalty of the KL"
    advice = "model.kl.bound: 10, a lower model.optimizer.lr"
    needs_old_logprobs: ClassVar[bool] = False
    """Whether `cost` needs the old policy's log-probabilities, which are then computed before the update."""
    in_reward: ClassVar[bool] = False
    """Whether the penalty is taken off the rewards, rather than added to the loss."""
    teaches: ClassVar[bool] = False
    """Whether it is something to learn from by itself: a run then needs no reward."""
    needs_ref_logprobs: bool = True
    """Whether it reads `Experience.ref_logprobs`: the reference then scores a rollout before the update."""
    top_k: int | None = None
    """The number of the reference's most probable tokens that it compares: `Experience.candidates`."""
    divergence: Divergence | None = None
    """The divergence over the whole vocabulary that it reads as `TokenScores.divergence`."""

    @property
    def compares_distributions(self) -> bool:
        """Whether it compares whole distributions, or parts that the reference names, not sampled tokens."""
        return self.top_k is not None or self.divergence is not None

    def __init__(self, coefficient: float, controller: AdaptiveCoefficient | None) -> None:
        super().__init__()
        if not 0 <= coefficient < math.inf:
            raise ArgumentError(f"coefficient={coefficient}: expected 0 or more")
        if controller is not None and coefficient == 0:
            raise ArgumentError(
                "coefficient=0.0: expected more than 0, for the controller multiplies it; set "
                "it to 0.01, or the controller to null"
            )
        self.initial_coefficient, self.controller = coefficient, controller

    @property
    def coefficient(self) -> float | Tensor:
        """Beta of this iteration, in units of reward per nat."""
        if self.controller is None:
            return self.initial_coefficient
        return self.initial_coefficient * self.controller.scale

    def cost(
        self,
        old_logprobs: Float[Tensor, "N T"],  # noqa: ARG002 - for those that override it
        ref_logprobs: Float[Tensor, "N T"],  # noqa: ARG002
    ) -> Float[Tensor, "N T"] | None:
        """The cost taken off the reward of each token; None if the penalty is in the loss."""
        return None

    def adapt(self, divergence: float) -> None:
        """Called once an iteration with its mean divergence over all ranks, in nats a token."""
        if self.controller is not None:
            self.controller.adapt(divergence)


class EstimatedKL(KLPenalty):
    """A penalty on an estimate of the divergence from the log-probabilities of the sampled tokens."""

    def __init__(
        self,
        coefficient: float,
        estimator: Estimator,
        controller: AdaptiveCoefficient | None,
        bound: float | None,
    ) -> None:
        super().__init__(coefficient, controller)
        if estimator not in ESTIMATORS:
            raise ArgumentError(f"estimator={estimator}: expected k1, k2 or k3")
        if bound is not None and not bound > 0:
            raise ArgumentError(f"bound={bound}: expected a number above 0, or null for no bound")
        self.estimator, self.bound = ESTIMATORS[estimator], bound

    def bounded(self, estimate: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The estimate, moved to the bound where its absolute value is greater: there without a gradient."""
        return estimate if self.bound is None else estimate.clamp(-self.bound, self.bound)

    @abstractmethod
    def loss(
        self, logprobs: Float[Tensor, "B T"], batch: Experience
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """The addition to the loss of each token, and its `divergence`, in nats."""

    @override
    def term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        loss, divergence = self.loss(scores.logprobs, batch)
        return TokenLoss(loss, {"train/kl": divergence})


def divergence(logprobs: Float[Tensor, "B T"], batch: Experience) -> Float[Tensor, "B T"]:
    """An estimate of KL(policy || reference) at each token, without gradient: `train/kl`.

    rho k3 with rho = exp(logprobs - old_logprobs), for every estimator of the penalty, so that runs can be
    compared: never negative, and unbiased for the policy of now although the old policy drew the tokens (k3
    alone is not, from a rollout's second optimizer step on). The prefixes stay those of the old policy. In
    the first step rho is exactly 1.
    """
    assert batch.ref_logprobs is not None, "the module refuses a KL without a reference"
    now = logprobs.detach()
    return importance_ratio(now, batch.old_logprobs) * kl_k3(now, batch.ref_logprobs)


@final
class KLInLoss(EstimatedKL):
    """coefficient * KL estimate added to the loss of each token.

    DeepSeekMath, arXiv:2402.03300, eq. 3 and 4. The penalty is on the divergence of a token's distribution at
    a fixed prefix: a token's effect on the divergence of later ones has no gradient (in `KLInReward` it has).
    `functional.kl_k1`, `kl_k2` and `kl_k3` say what the gradient of each estimator is the gradient of.

    `gradient="plain"` differentiates the estimate k alone. On policy the expected gradient is 0 for k1, that
    of KL(policy || reference) for k2 and that of KL(reference || policy) for k3, the paper's. From the second
    minibatch of a rollout on the tokens are samples of the old policy, and nothing corrects for that.

    `gradient="unbiased"` differentiates rho k, rho = exp(logprobs - old_logprobs), with the gradient of rho:
    the mean of rho k over samples of the old policy is the mean of k over those of the policy, so its
    gradient is that of the *value* that k estimates, on and off policy. For k1 and k3 it is that of
    KL(policy || reference). TRL does the same by default; DeepSeek-V3.2, arXiv:2512.02556, section 3.1.

    Args:
        coefficient: Beta, in units of reward per nat, 0 or more; 0.04 in the paper.
        estimator: Estimator of the divergence.
        gradient: What is differentiated: the estimate, or the estimate times the importance ratio.
        controller: Moves the coefficient after each iteration; null for a fixed one.
        bound: The greatest absolute value of what is differentiated, in nats, above 0: a token beyond it has
            no gradient. 10 in verl, OpenRLHF and NeMo-RL, which for k3 is a token 13 times as probable under
            the reference; null for none (the papers, TRL).
    """

    def __init__(
        self,
        coefficient: float = 0.04,
        estimator: Estimator = "k3",
        gradient: Literal["plain", "unbiased"] = "plain",
        controller: AdaptiveCoefficient | None = None,
        bound: float | None = None,
    ) -> None:
        super().__init__(coefficient, estimator, controller, bound)
        if gradient not in ("plain", "unbiased"):
            raise ArgumentError(f"gradient={gradient}: expected plain or unbiased")
        self.gradient = gradient

    @override
    def loss(
        self, logprobs: Float[Tensor, "B T"], batch: Experience
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        assert batch.ref_logprobs is not None, "the module refuses a KL without a reference"
        estimate = self.estimator(logprobs, batch.ref_logprobs)
        if self.gradient == "unbiased":
            estimate = importance_ratio(logprobs, batch.old_logprobs) * estimate
        return self.coefficient * self.bounded(estimate), divergence(logprobs, batch)


@final
class KLInReward(EstimatedKL):
    """coefficient * KL estimate taken off the reward of each token, before advantages.

    Ziegler et al. 2019, arXiv:1909.08593, eq. 2; InstructGPT, arXiv:2203.02155, eq. 2. The estimate is that
    of the old policy and has no gradient: the advantage estimator assigns it to the tokens that led there, as
    it does every reward, or gets it after its normalisation (`AdvantageEstimator.credit`). So the penalty is
    on the divergence of whole responses: a response's k1 terms add up to log(policy / reference) of the
    response. Nothing is added to the loss.

    Args:
        coefficient: Beta, in units of reward per nat, 0 or more.
        estimator: Estimator of the divergence; k1 in the papers.
        controller: Moves the coefficient after each iteration; null for a fixed one.
        bound: The greatest absolute value of a token's estimate, in nats, above 0: 10 in OpenRLHF; null for
            none (the papers, TRL, verl).
    """

    needs_old_logprobs = True
    in_reward = True

    def __init__(
        self,
        coefficient: float = 0.05,
        estimator: Estimator = "k1",
        controller: AdaptiveCoefficient | None = None,
        bound: float | None = None,
    ) -> None:
        super().__init__(coefficient, estimator, controller, bound)

    @override
    def cost(
        self, old_logprobs: Float[Tensor, "N T"], ref_logprobs: Float[Tensor, "N T"]
    ) -> Float[Tensor, "N T"]:
        return self.coefficient * self.bounded(self.estimator(old_logprobs, ref_logprobs))

    @override
    def loss(
        self, logprobs: Float[Tensor, "B T"], batch: Experience
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        return torch.zeros_like(logprobs), divergence(logprobs, batch)
