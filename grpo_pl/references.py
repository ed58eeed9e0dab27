"""How the reference follows the policy."""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import nn
from typing_extensions import override


class ReferenceUpdate(ABC):
    """Moves the reference's weights after an iteration."""

    @abstractmethod
    def __call__(self, reference: nn.Module, policy: nn.Module, iteration: int) -> None:
        """Change `reference` in place; `iteration` counts from 1 and has just ended."""


@final
class EveryN(ReferenceUpdate):
    """The policy becomes the reference every n iterations.

    Iterative GRPO: DeepSeekMath, arXiv:2402.03300, section 4.1.4.

    Args:
        iterations: How many iterations a reference stays.
    """

    def __init__(self, iterations: int) -> None:
        if iterations < 1:
            raise ValueError(f"model.reference_update.iterations={iterations}: expected 1 or more")
        self.iterations = iterations

    @override
    @torch.no_grad()
    def __call__(self, reference: nn.Module, policy: nn.Module, iteration: int) -> None:
        if iteration % self.iterations == 0:
            for theirs, ours in zip(reference.parameters(), policy.parameters(), strict=True):
                theirs.copy_(ours)
