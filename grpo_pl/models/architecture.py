"""The sizes of a decoder, as its configuration states them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo_pl.system.refusal import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder of gated layers, such as Llama, Qwen or Gemma.

    Example: SmolLM2-135M is `Architecture(layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3,
    head_dim=64, vocabulary=49152)`.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "Architecture":
        """The sizes in a model's configuration, the largest where layers differ; no heads without attention.

        Refuses a model whose configuration does not state its layers and their width.
        """
        sizes = _sizes(model.config.get_text_config())
        if missing := [key for key in ("num_hidden_layers", "hidden_size", "vocab_size") if not sizes(key)]:
            raise ConfigError(
                f"the sizes of {type(model).__name__} are unknown, because its config.json states no "
                f"{missing[0]}: give a model of another architecture, such as Llama or Qwen3"
            )
        hidden, heads = sizes("hidden_size"), sizes("num_attention_heads")
        return cls(
            layers=sizes("num_hidden_layers"),
            hidden=hidden,
            intermediate=sizes("intermediate_size") or 4 * hidden,
            heads=heads,
            kv_heads=sizes("num_key_value_heads") or heads,
            head_dim=sizes("head_dim") or hidden // max(heads, 1),
            vocabulary=sizes("vocab_size"),
        )

    def cache_bytes(self, tokens: int, element_bytes: int) -> int:
        """Keys and values of so many tokens in all layers."""
        return self.layers * 2 * self.kv_heads * self.head_dim * tokens * element_bytes


def _sizes(config: "PretrainedConfig") -> Callable[[str], int]:
    """Gives the number under a key of a configuration, of several the largest, and 0 if there is none."""
    stated = config.to_dict()

    def size(key: str) -> int:
        name = config.attribute_map.get(key, key)
        value = stated[name] if name in stated else getattr(config, key, None)  # computed from others
        return int(max(value) if isinstance(value, list) else value or 0)

    return size
