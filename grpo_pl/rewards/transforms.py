"""What happens to rewards between the sum and the advantage, in the order in which a config lists it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import override


class RewardTransform(nn.Module, ABC):
    """Changes the rewards of an iteration; running statistics are buffers, so that checkpoints have them."""

    @abstractmethod
    def forward(
        self,
        rewards: Float[Tensor, "N T"],
        scored: Bool[Tensor, "N"],
        sum_over_ranks: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "N T"]:
        """The changed rewards, 0 where there was none; those of unscored rows do not matter."""


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
            raise ValueError(f"model.reward_transforms Clip: low={low}, high={high}: expected low < high")
        self.low, self.high = low, high

    @override
    def forward(
        self,
        rewards: Float[Tensor, "N T"],
        scored: Bool[Tensor, "N"],
        sum_over_ranks: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "N T"]:
        return rewards.clamp(self.low, self.high).where(rewards != 0, 0.0)
