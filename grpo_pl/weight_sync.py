"""The trainer's parameters on their way to the engine."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def full_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each parameter whole, one at a time, under its Hugging Face name; tied weights once.

    A layer with a LoRA adapter gives its merged weight, W + alpha / r * B A, and keeps its own.

    Collective where parameters are sharded: every rank of the data-parallel group must run the iterator to
    its end.
    """
    for name, parameter in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        layer, adapted, leaf = name.rpartition(".base_layer.")
        tensor = parameter.detach()
        if adapted and leaf == "weight":
            tensor = merged_weight(model.get_submodule(layer), tensor)
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        yield f"{layer}.{leaf}" if adapted else name, whole


@torch.no_grad()
def merged_weight(layer: Any, weight: Tensor) -> Tensor:
    """What a layer of peft computes with, adapters and all, as a new tensor of the weight's dtype."""
    for adapter in layer.active_adapters:
        weight = (weight + layer.get_delta_weight(adapter)).to(weight.dtype)
    return weight
