"""Layers that several ranks compute together."""

import re
from typing import TYPE_CHECKING, cast

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from grpo_pl.models.loading import pretrained_models
from grpo_pl.system.refusal import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STYLES: dict[str, type[ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}


def parallelize(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split the linear layers of attention and MLP, as transformers' own plan for the architecture says.

    Megatron-LM: Shoeybi et al. 2019, arXiv:1909.08053, section 3. Embeddings, norms and heads stay whole.
    Refuses architectures without such a plan, and more ranks than share the heads evenly.
    """
    for pretrained in pretrained_models(model):
        plan = linear_plan(pretrained)
        check_heads(pretrained, mesh.size())
        for name, module in pretrained.base_model.named_modules():
            for pattern, style in plan.items():
                if re.fullmatch(pattern, name):
                    parallelize_module(module, mesh, STYLES[style]())


def linear_plan(model: "PreTrainedModel") -> dict[str, str]:
    """Pattern of a layer's name -> how it is split."""
    plan = getattr(model.config.get_text_config(), "base_model_tp_plan", None) or {}
    layers = {name: style for name, style in plan.items() if name.startswith("layers.")}
    if not layers or not set(layers.values()) <= STYLES.keys():
        raise ArgumentError(
            f"tensor_parallel_size: transformers has no plan of plain splits for "
            f"{type(model).__name__}: set it to 1"
        )
    return {name.replace(".", r"\.").replace("*", r"\d+"): style for name, style in layers.items()}


def check_heads(model: "PreTrainedModel", ranks: int) -> None:
    """Refuse a split that would cut an attention head in two."""
    config = model.config.get_text_config()
    heads = cast(int, getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    if heads % ranks or config.num_attention_heads % ranks:
        raise ArgumentError(
            f"tensor_parallel_size={ranks} does not divide the model's {heads} heads of "
            "keys and values: set it to a divisor"
        )
