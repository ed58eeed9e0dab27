"""How a model's states become logits: by one layer, or by all that its own forward does behind its trunk."""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from typing_extensions import override

from grpo_pl.models.loading import pretrained_models
from grpo_pl.system.refusal import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


HeadDType: TypeAlias = Literal["float32"] | None
"""The type that an LM head multiplies in; None for that of all other layers."""


def in_float32(layer: nn.Linear, states: Float[Tensor, "*shape H"]) -> Float[Tensor, "*shape O"]:
    """The output of a layer, multiplied in float32 whatever the types of states, weights and autocast."""
    with torch.autocast("cpu" if states.is_meta else states.device.type, enabled=False):
        bias = None if layer.bias is None else layer.bias.float()
        return nn.functional.linear(states.float(), layer.weight.float(), bias)


def float32_scores(layer: nn.Linear, states: Float[Tensor, "*shape H"]) -> Float[Tensor, "*shape"]:
    """The scores of a layer with one output, computed in float32 whatever the states and the autocast are.

    bfloat16 has 8 bits: a value of 0.5 would be rounded by up to 0.001.
    """
    return in_float32(layer, states)[..., 0]


class Float32Linear(nn.Linear):
    """A linear layer that multiplies in float32, whatever the types of weights, input and autocast.

    A logit of 30 in bfloat16 is off by up to 0.06 nats. Engines need the same (`head_dtype` of both sides).
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        return in_float32(self, input)


def compute_head_in(dtype: HeadDType, language_model: "PreTrainedModel") -> None:
    """Let a model's LM head multiply in a type; refuses a head that is no linear layer."""
    if dtype is None:
        return
    layer = language_model.get_output_embeddings()
    if type(layer) is not nn.Linear:
        model, has = type(language_model).__name__, "none" if layer is None else type(layer).__name__
        raise ArgumentError(
            f"head_dtype={dtype} needs an LM head that is one linear layer, and {model} has {has}: set it to "
            "null"
        )
    layer.__class__ = Float32Linear  # the weights, tied or not, stay where they are


@dataclass(frozen=True)
class LayerHead:
    """The head of most models: one layer, and what their configuration says about its output."""

    layer: nn.Module
    scale: float
    """The factor of the layer's output."""
    cap: float | None
    """The cap of the logits (`cap * tanh(logits / cap)`); None for none."""

    @classmethod
    def of(cls, language_model: "PreTrainedModel") -> "LayerHead":
        """The head that a model's configuration speaks of, with the model's own weights."""
        config = language_model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
        layer = cast(nn.Module, language_model.get_output_embeddings())
        return cls(layer, scale, getattr(config, "final_logit_softcapping", None))

    @property
    def is_plain(self) -> bool:
        """Whether it is a whole linear layer and at most a factor."""
        linear_layer = type(self.layer) in (nn.Linear, Float32Linear)
        whole_layer = linear_layer and not isinstance(self.layer.weight, DTensor)
        return whole_layer and self.cap is None

    @property
    def in_float32(self) -> bool:
        """Whether it multiplies in float32, even in autocast."""
        return isinstance(self.layer, Float32Linear)

    def logits(self, hidden: Float[Tensor, "M H"], temperature: float = 1.0) -> Float[Tensor, "M V"]:
        """The logits divided by the temperature, float32: for few rows at a time."""
        logits: Tensor = self.layer(hidden).float()
        if self.cap is None:
            return logits * (self.scale / temperature)
        return self.cap * torch.tanh(logits * self.scale / self.cap) / temperature


@dataclass(frozen=True)
class OwnHead:
    """The model's own forward, with the given states in the place of its trunk's.

    Whatever it does to them happens here too: layers before the head, factors, caps, a smaller vocabulary.
    """

    behind_trunk: nn.Module

    @classmethod
    def of(cls, language_model: "PreTrainedModel") -> "OwnHead":
        """The head of a model, with the model's own weights."""
        trunk = trunk_of(language_model)
        given = _given_states(trunk)
        if (decoder := language_model.get_decoder()) in trunk.children():  # OPT calls it, not the trunk
            _replace(given, decoder, _given_states(decoder))
        model = copy.copy(language_model)
        _replace(model, trunk, given)
        return cls(model)

    def logits(self, hidden: Float[Tensor, "M H"], temperature: float = 1.0) -> Float[Tensor, "M V"]:
        """The logits divided by the temperature, float32: for few rows at a time."""
        logits: Tensor = self.behind_trunk(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return logits.float() / temperature


Head: TypeAlias = LayerHead | OwnHead
HeadKind: TypeAlias = type[LayerHead] | type[OwnHead]


def trunk_of(language_model: "PreTrainedModel") -> "PreTrainedModel":
    """The part of a language model that turns tokens into states."""
    trunk = cast("PreTrainedModel", language_model.base_model)
    if trunk is not language_model:
        return trunk
    (trunk,) = (inner for child in language_model.children() for inner in pretrained_models(child))
    return trunk


def possible_widths(language_model: "PreTrainedModel") -> list[int]:
    """What a model says about the width of its states: by its LM head, then by its configuration."""
    layer = language_model.get_output_embeddings()
    said = [
        getattr(layer, "in_features", None),
        getattr(language_model.config.get_text_config(), "hidden_size", None),
    ]
    return [width for width in dict.fromkeys(said) if isinstance(width, int)]


class _TrunkOutput(tuple[Tensor]):
    """The output of a trunk that computes nothing besides states."""

    __slots__ = ()

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        """None: caches, attention maps, losses of routers."""


def _given_states(trunk: nn.Module) -> nn.Module:
    """The trunk with a forward that passes on the states that it is given."""
    given = copy.copy(trunk)

    def forward(*_: Any, inputs_embeds: Tensor, **__: Any) -> _TrunkOutput:
        return _TrunkOutput((inputs_embeds,))

    given.forward = forward
    return given


def _replace(parent: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Give a shallow copy of a module another child, and leave the original its own."""
    children = parent.named_children()
    parent._modules = {name: new if child is old else child for name, child in children}
