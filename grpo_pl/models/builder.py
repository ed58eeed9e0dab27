"""The base of all builders of models."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import nn

Build = Callable[[], nn.Module]
Place = Callable[[Build], nn.Module]
"""Builds a model and puts it where it belongs: on a device, or divided among ranks."""


class ModelBuilder(ABC):
    """Says how a model is made; made it is inside `configure_model`, where sharding can take hold of it."""

    has_own_weights: ClassVar[bool] = True
    """Whether the model has weights beside the policy's; a reference without any cannot be moved."""

    @abstractmethod
    def build(self, policy: nn.Module | None = None) -> nn.Module:
        """A new model with the pretrained weights, on the CPU.

        Args:
            policy: The policy, already built, for models that share its weights; None for the policy itself.
        """
