"""A key-value cache with room for tokens to come: transformers copies the whole cache for each token."""

from functools import cache
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from grpo_pl.models.loading import dynamic_cache

SPARE = 32
"""Tokens for which there is room after a copy."""
States = Float[Tensor, "N H _ D"]
"""Keys or values, of any number of tokens."""


class Room:
    """The keys or the values of a layer, at the beginning of a tensor that has room for more.

    Args:
        states: The first ones.
    """

    def __init__(self, states: States) -> None:
        self._whole, self._tokens = states, states.shape[-2]

    def append(self, new: States) -> States:
        """All states with the `new` ones behind the others: a view of what holds them."""
        before, self._tokens = self._tokens, self._tokens + new.shape[-2]
        if self._whole.shape[-2] < self._tokens:
            larger = new.new_empty(*new.shape[:-2], self._tokens + SPARE, new.shape[-1])
            larger[..., :before, :] = self._whole[..., :before, :]
            self._whole = larger
        self._whole[..., before : self._tokens, :] = new
        return self._whole[..., : self._tokens, :]

    def keep(self, sequences: Int[Tensor, "M"]) -> States:
        """The states of these sequences alone, which it holds from now on."""
        self._whole = self._whole[sequences]
        return self._whole[..., : self._tokens, :]


def grow_in_place(states: Any) -> None:
    """Have a cache of transformers append to its layers in place: those that keep all tokens as they are."""
    cache_type, layer_type = dynamic_cache()
    if type(states) is cache_type:
        for i, layer in enumerate(states.layers):
            if type(layer) is layer_type and layer.is_initialized:
                states.layers[i] = growing_layer()(layer)


def keep_sequences(states: Any, sequences: Int[Tensor, "M"]) -> bool:
    """Have a cache hold these sequences alone, if all of its layers grow in place; says whether they do."""
    cache_type, _ = dynamic_cache()
    grows = type(states) is cache_type and all(isinstance(one, growing_layer()) for one in states.layers)
    if grows:
        for layer in states.layers:
            layer.keep(sequences)
    return grows


@cache
def growing_layer() -> Any:
    """The type of such a layer."""
    _, layer_type = dynamic_cache()

    class GrowingLayer(layer_type):  # type: ignore[misc, valid-type]
        def __init__(self, layer: Any) -> None:
            self.__dict__.update(vars(layer))
            self._keys, self._values = Room(layer.keys), Room(layer.values)

        def update(self, keys: States, values: States, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            self.keys, self.values = self._keys.append(keys), self._values.append(values)
            return self.keys, self.values

        def keep(self, sequences: Int[Tensor, "M"]) -> None:
            self.keys, self.values = self._keys.keep(sequences), self._values.keep(sequences)

    return GrowingLayer
