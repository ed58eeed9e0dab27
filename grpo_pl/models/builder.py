"""The base of all builders of models."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from torch import nn

Build = Callable[[], nn.Module]
Place = Callable[[Build], nn.Module]
"""Builds a model and puts it where it belongs: on a device, or sharded among ranks."""


class ModelBuilder(ABC):
    """Builds a model inside `configure_model`, so that the strategy can shard it."""

    has_own_weights: ClassVar[bool] = True
    """Whether the model has weights beside the policy's; a reference without any cannot be moved."""
    pretrained: str = ""
    """The model folder or hub name that it reads; empty where it reads none of its own."""

    head_dtype: Literal["float32"] | None = None
    """The type in which the LM head of a language model multiplies, where it is another than its layers'."""

    @property
    def parts(self) -> "Sequence[ModelBuilder]":
        """The builders of the models that it is made of: itself, unless it puts others together."""
        return [self]

    def settings_of_weights(self) -> dict[str, Any]:
        """The arguments that trained weights depend on, and that no shape shows; checkpoints keep them."""
        return {}

    @abstractmethod
    def build(self, policy: nn.Module | None = None) -> nn.Module:
        """A new model with the pretrained weights, on the CPU; some share weights of the built `policy`."""
