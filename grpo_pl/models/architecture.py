"""The sizes of a decoder, as its configuration states them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        """The sizes in a model's configuration."""
        config: Any = model.config.get_text_config()
        hidden, heads = config.hidden_size, config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            hidden=hidden,
            intermediate=getattr(config, "intermediate_size", None) or 4 * hidden,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or hidden // heads,
            vocabulary=config.vocab_size,
        )

    def cache_bytes(self, tokens: int, element_bytes: int) -> int:
        """Keys and values of so many tokens in all layers."""
        return self.layers * 2 * self.kv_heads * self.head_dim * tokens * element_bytes
