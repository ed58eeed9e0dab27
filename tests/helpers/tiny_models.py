"""Every causal language model of transformers, made tiny: some ten thousand random weights."""

import re
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

VOCABULARY = 96
WINDOW = 6
"""The tokens that layers with a window see: fewer than the tests' sequences have."""
SIZES = {
    r"(.*_)?vocab(ulary)?_size(_per_layer_input)?|encoder_hash_byte_group_vocab": VOCABULARY,
    r"pad_token_id": 0,
    r"bos_token_id|decoder_start_token_id": 1,
    r"eos_token_id": 2,
    r"hidden_size|d_model|n_embd|emb_dim|embed_dim|embedding_size|hidden_size_global": 32,
    r"dim_ff|feed_forward_size|n_inner|dff|d_inner|(.*_)?(intermediate_size|ffn_dim|ffn_hidden_size)": 64,
    r"num_hidden_layers|n_layers?|num_layers|(de|en)coder_layers|num_(de|en)coder_layers": 2,
    r"(.*_)?(num_attention_heads|n_heads?|num_heads)|(num_)?(de|en)coder_attention_heads": 4,
    r"n_mamba_heads|(linear_)?num_v(alue)?_heads": 4,
    r"(.*_)?(num_key_value_heads|num_kv_heads)|multi_query_group_num|(linear_)?num_k(ey)?_heads": 2,
    r"(.*_)?head_dim|attention_head_size|dim_head|rotary_dim|d_rel": 8,
    r"(.*_)?(lora_rank|lora_dim|rank)|(mamba_|ssm_)?(d_)?state(_size)?|hidden_size_per_layer_input": 8,
    r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|zero_expert_num": 4,
    r"num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k|top_k": 2,
    r"n_shared_experts|num_shared_experts|(mamba_)?n_?groups?|topk_group|first_k_dense_replace": 1,
    r"num_dense_layers|num_kv_shared_layers": 0,
    r"max_position_embeddings|n_positions|n_ctx|max_seq_len": 128,
    r"index_block_size|index_topk_blocks": 2,
    r"sliding_window(_size)?|window_size|local_attention|.*_window_size|.*_chunk_size|index_topk": WINDOW,
}
"""The pattern of a key in a configuration -> the most that it may be; of tokens' ids, what they are."""
HEAD_DIM = {"head_dim": 8, "num_key_value_heads": 2}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
ONE_OF_EACH = ["sliding_attention", "full_attention"]
ASSISTANT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
}
CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "attn_layer_indices": [1]},
    "cohere_compass_text": {
        "logit_scale": 0.5,
        "layer_types": ONE_OF_EACH,
        "rope_parameters": dict.fromkeys(ONE_OF_EACH, MROPE),
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"lm_head_multiplier": 0.3},
    "gemma3n_text": {
        "layer_types": ONE_OF_EACH,
        "intermediate_size": 64,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_assistant": {"text_config": {"model_type": "gemma4_text"} | ASSISTANT},
    "gemma4_unified_assistant": {"text_config": {"model_type": "gemma4_unified_text"} | ASSISTANT},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"mamba_n_heads": 4, "layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": HEAD_DIM,
    "hunyuan_v1_moe": HEAD_DIM,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"qk_head_dim": 16},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "ministral": HEAD_DIM,
    "nemotron": HEAD_DIM,
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
    },
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "local"]},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2},
}
"""Model type -> what else its configuration needs to be tiny, or to show what is special about it."""
ODD = {"logits_scaling": 4.0, "logit_scale": 0.3, "lm_head_multiplier": 0.3, "final_logit_softcapping": 3.0}
ODD |= {"logits_soft_cap": 3.0, "output_logit_soft_cap": 3.0, "logits_mup_width_multiplier": 3.0}
"""Keys of what happens to logits -> a value that none would overlook."""


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """The sizes in a configuration that must be smaller."""
    small: dict[str, Any] = {}
    for key, value in config.items():
        for pattern, most in SIZES.items():
            if type(value) is int and re.fullmatch(pattern, key):
                small[key] = most if value > most or key.endswith("token_id") else value
    if "kv_lora_rank" in config:  # all heads have keys of their own
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small | {key: value for key, value in ODD.items() if key in config}


def tiny_config(kind: str, **changes: Any) -> PretrainedConfig:
    """The default configuration of a type with small sizes, and with what the type needs besides."""
    cls = CONFIG_MAPPING[kind]
    config = cls()
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    small = {name: shrunk(part.to_dict()) for name, part in parts.items() if part is not None}
    return cls(**{**shrunk(config.to_dict()), **small, **CHANGES.get(kind, {}), **changes})


def tiny(kind: str, **changes: Any) -> PreTrainedModel:
    """A model of a type whose logits spread by about 1, so that what is wrong with them shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    return model.eval()


def saved(model: PreTrainedModel, folder: Path) -> str:
    """Write a model folder."""
    model.save_pretrained(folder)
    return str(folder)
