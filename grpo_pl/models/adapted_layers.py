"""The layers that peft has put around weights: which belong to a weight, and their sum."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.func import functional_call
from typing_extensions import override

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

Layers = dict[str, "LoraLayer"]
"""Adapted layers by their names. Several matrices of one module are adapted by layers around each other."""


def add_adapters(model: nn.Module, modules: list[str], parameters: list[str], r: int, alpha: int) -> None:
    """Add adapters of rank `r` to exactly the named layers and parameters, and freeze all else.

    peft gets the model inside of a module without a config: from a config it would rename the targets of
    mixtures of experts, and drop dense layers of the same names.
    """
    from peft import LoraConfig, inject_adapter_in_model

    before = {name for name, _ in model.named_parameters()}
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        target_modules=[f"0.{name}" for name in modules],
        target_parameters=[f"0.{name}" for name in parameters],
    )
    inject_adapter_in_model(config, nn.ModuleList([model]))
    layers = adapted_layers(model)
    for layer in layers.values():
        draw_adapter(layer)
    after = {own_name(name, layers) for name, _ in model.named_parameters()}
    assert after - {None} == before, "adapters have changed the names of weights"


def draw_adapter(layer: Any) -> None:
    """Give a layer's adapter its first values, A at random and B zero.

    peft has done so, but left them on the `meta` device where the weights beside them are read later.
    """
    for name in layer.adapter_layer_names:
        getattr(layer, name).to_empty(device=torch.get_default_device())
    for adapter in layer.active_adapters:
        layer.reset_lora_parameters(adapter, True)


def adapted_layers(model: nn.Module) -> Layers:
    """The layers of a model that have an adapter."""
    if find_spec("peft") is None:
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapts_experts(model: nn.Module) -> bool:
    """Whether some module computes with W + B A in the place of its weight, as fused experts do."""
    return any(type(layer).__name__ == "ParamWrapper" for layer in adapted_layers(model).values())


def own_name(name: str, layers: Layers) -> str | None:
    """The name that a parameter has in the model without adapters; None for an adapter's own.

    Example: `experts.base_layer.base_layer.down_proj` is `experts.down_proj`, `experts.lora_A.default.weight`
    is None.
    """
    parts = name.split(".")
    below = depths(name, layers)
    if any(parts[depth] != "base_layer" for depth in below):
        return None
    return ".".join(part for depth, part in enumerate(parts) if depth not in below)


def depths(name: str, layers: Layers) -> list[int]:
    """How many parts of a parameter's name are the name of an adapted layer, for each that it lies in."""
    parts = name.split(".")
    return [depth for depth in range(1, len(parts)) if ".".join(parts[:depth]) in layers]


def adapters_of(name: str, layers: Layers) -> list["LoraLayer"]:
    """The layers whose adapters are added to a parameter."""
    parts = name.split(".")
    inside = [layers[".".join(parts[:depth])] for depth in depths(name, layers)]
    return [layer for layer in inside if adapted_leaf(layer) == parts[-1]]


def adapted_leaf(layer: "LoraLayer") -> str:
    """The name of the parameter that a layer adapts, in the module below it."""
    from peft.tuners.lora import ParamWrapper

    return str(layer.parameter_name) if isinstance(layer, ParamWrapper) else "weight"


@torch.no_grad()
def merged_weight(layer: "LoraLayer", weight: Tensor) -> Tensor:
    """The merged weight of an adapted layer, as a new tensor of the weight's dtype."""
    for adapter in layer.active_adapters:
        weight = (weight + delta(layer, adapter)).to(weight.dtype)
    return weight


def delta(layer: Any, adapter: str) -> Tensor:
    """What an adapter adds to its layer's weight.

    The factors of several experts are interleaved, so that no expert's lie whole in one shard: they are
    gathered, and each rank multiplies all of them.
    """
    from peft.tuners.lora import ParamWrapper

    factors = {f"lora_{side}.{adapter}.weight" for side in "AB"}
    sharded = {name: p for name, p in layer.named_parameters() if name in factors and isinstance(p, DTensor)}
    if not isinstance(layer, ParamWrapper) or not sharded:
        return cast(Tensor, layer.get_delta_weight(adapter))
    mesh = next(iter(sharded.values())).device_mesh
    gathered = {f"layer.{name}": factor.full_tensor() for name, factor in sharded.items()}
    product = functional_call(Delta(layer), gathered, (adapter,))
    return DTensor.from_local(product, mesh, [Replicate()] * mesh.ndim)


class Delta(nn.Module):
    """An adapter's product as a module's forward, so that its factors can be replaced."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    @override
    def forward(self, adapter: str) -> Tensor:
        return cast(Tensor, self.layer.get_delta_weight(adapter))  # type: ignore[operator]
