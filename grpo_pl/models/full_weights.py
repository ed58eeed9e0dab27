"""Gathers the trainer's parameters whole for the engine."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP1  # noqa: N814 - it is no constant
from torch.distributed.tensor import DTensor

from grpo_pl.models.adapted_layers import adapted_layers, adapters_of, merged_weight, own_name

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

FSDP1_PREFIX = "_fsdp_wrapped_module."


def full_weights(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Each parameter whole, one at a time, under its name; tied weights once.

    A weight with a LoRA adapter comes merged, W + alpha / r * B A, for each expert of a fused one; the model
    keeps its own.

    Collective where parameters are sharded: every rank of the data-parallel group must run the iterator to
    its end. No rank then holds more than one whole parameter, or with FSDP1 those of one of its units; of
    fused experts also the product of their adapter. FSDP2's shards are cast to `dtype` before they are
    gathered; None leaves them as they are.
    """
    layers = {name.replace(FSDP1_PREFIX, ""): layer for name, layer in adapted_layers(model).items()}
    for name, parameter in gathered_parameters(model):
        place = name.replace(FSDP1_PREFIX, "")
        if (own := own_name(place, layers)) is not None:
            yield own, whole(parameter, adapters_of(place, layers), dtype)


def full_gradients(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The gradient of each parameter that has one, whole, as `full_weights` gives the weights."""
    for name, parameter in gathered_parameters(model, with_grads=True):
        gradient = parameter.grad
        if gradient is not None:
            whole_gradient = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            yield name.replace(FSDP1_PREFIX, ""), whole_gradient


def gathered_parameters(model: nn.Module, with_grads: bool = False) -> Iterator[tuple[str, nn.Parameter]]:
    """Each parameter as its module holds it, with FSDP1's units gathered."""
    units: list[tuple[str, nn.Module]] = [(n, m) for n, m in model.named_modules() if isinstance(m, FSDP1)]
    for prefix, unit in units or [("", model)]:
        inner = [module for module in unit.modules() if isinstance(module, FSDP1) and module is not unit]
        nested = {id(parameter) for module in inner for parameter in module.parameters()}
        gathered = partial(FSDP1.summon_full_params, unit, recurse=False, writeback=False)
        with gathered(with_grads=with_grads) if units else nullcontext():
            for name, parameter in unit.named_parameters(prefix):
                if id(parameter) not in nested:
                    yield name, parameter


def whole(parameter: nn.Parameter, layers: Iterable["LoraLayer"], dtype: torch.dtype | None) -> Tensor:
    """One parameter, merged with its adapters and gathered."""
    tensor = parameter.detach()
    for layer in layers:
        tensor = merged_weight(layer, tensor)
    if isinstance(tensor, DTensor):
        tensor = cast(DTensor, tensor.to(dtype)).full_tensor()
    return tensor


class CountedWeights:
    """Passes named weights on and counts their bytes."""

    def __init__(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        self.weights, self.bytes = weights, 0

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.weights:
            self.bytes += tensor.nbytes
            yield name, tensor

    @property
    def gib(self) -> float:
        """The size of the weights passed on so far."""
        return self.bytes / 2**30


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """The total size of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
