"""Sizes as configurations state them, in whatever words."""

import pytest
from helpers.tiny_models import tiny

from grpo_pl.models.architecture import Architecture
from grpo_pl.system.refusal import ConfigError


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma4_text", "gemma3n_text", "nemotron_h"])
def test_every_size_is_a_number(kind: str) -> None:
    sizes = Architecture.of(tiny(kind))
    assert (sizes.hidden, sizes.layers, sizes.heads, sizes.vocabulary) == (32, 2, 4, 96)
    assert sizes.head_dim >= 8


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "xlstm"])
def test_without_attention_there_are_no_heads_and_no_cache(kind: str) -> None:
    sizes = Architecture.of(tiny(kind))
    assert (sizes.heads, sizes.cache_bytes(tokens=100, element_bytes=4)) == (0, 0)


def test_a_model_of_models_is_refused() -> None:
    with pytest.raises(ConfigError, match="BltForCausalLM are unknown"):
        Architecture.of(tiny("blt"))
