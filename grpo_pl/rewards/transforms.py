"""Transforms of rewards between their sum and the advantage, in the order of the config."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.system.refusal import ArgumentError


class RewardTransform(nn.Module, ABC):
    """Changes the rewards of an iteration; running statistics are buffers, and so in every checkpoint."""

    def observe(
        self,
        rewards: Float[Tensor, "N T"],
        earned: Bool[Tensor, "N T"],
        sum_over_ranks: Callable[[Tensor], Tensor],
    ) -> None:
        """Add an iteration's rewards to running statistics; called once, before they are changed."""

    @abstractmethod
    def forward(self, rewards: Float[Tensor, "N T"], earned: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        """The changed rewards; 0 where none is earned.

        `earned` is True on tokens that earn a reward, even one of 0; unscored rows have none.
        """


@final
class Clip(RewardTransform):
    """Bounds the reward at each token where one is earned.

    Args:
        low: The lowest reward.
        high: The highest reward.
    """

    def __init__(self, low: float = -10.0, high: float = 10.0) -> None:
        super().__init__()
        if low >= high:
            raise ArgumentError(f"low={low}, high={high}: expected low < high")
        self.low, self.high = low, high

    @override
    def forward(self, rewards: Float[Tensor, "N T"], earned: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        return torch.where(earned, rewards.clamp(self.low, self.high), 0.0)


@final
class RunningNormalization(RewardTransform):
    r"""Divides rewards by the standard deviation of all rewards earned so far, this iteration included.

    Over the reward at each token that earns one, of all ranks and iterations; the population's standard
    deviation. Two sets are merged exactly (Chan, Golub, LeVeque 1983, eq. 2.1):
    `mean = mean_a + d n_b / n`, `M2 = M2_a + M2_b + d^2 n_a n_b / n` with `d = mean_b - mean_a`.
    Reward scaling as in Engstrom et al. 2020 (arXiv:2005.12729, section 3), who take the deviation of
    discounted returns. As long as rewards have had no spread beyond rounding, nothing is divided.

    Args:
        center: Also subtract their mean.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor
    """The sum of squared differences from the mean."""

    def __init__(self, center: bool = False) -> None:
        super().__init__()
        self.center = center
        for name in ("count", "mean", "squares"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @override
    def observe(
        self,
        rewards: Float[Tensor, "N T"],
        earned: Bool[Tensor, "N T"],
        sum_over_ranks: Callable[[Tensor], Tensor],
    ) -> None:
        new = rewards[earned].double()
        total, count = sum_over_ranks(torch.stack([new.sum(), earned.sum().double()]))
        mean = total / count.clamp(min=1)
        squares = sum_over_ranks(((new - mean) ** 2).sum())
        all_counted, difference = (self.count + count).clamp(min=1), mean - self.mean
        self.squares += squares + difference**2 * self.count * count / all_counted
        self.mean += difference * count / all_counted
        self.count += count

    @override
    def forward(self, rewards: Float[Tensor, "N T"], earned: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        deviation = (self.squares / self.count.clamp(min=1)).sqrt()
        scale = torch.where(deviation > 1e-6 * self.mean.abs(), deviation, 1.0)
        shift = self.mean if self.center else 0.0
        return torch.where(earned, (rewards - shift) / scale, 0.0).to(rewards.dtype)
