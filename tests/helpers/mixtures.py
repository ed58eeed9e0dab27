"""Tiny random language models of transformers' architectures, above all mixtures of experts."""

import json
from pathlib import Path
from typing import Any

SIZES = {
    **{"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3},
    **{"intermediate_size": 48, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 256},
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4},
    **{"num_experts_per_tok": 2, "moe_k": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    **{"first_k_dense_replace": 1, "mlp_only_layers": [0], "shared_intermediate_size": 24},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8},
    **{"linear_value_head_dim": 8, "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8},
    **{"mamba_n_groups": 1, "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8},
    **{"n_groups": 1, "state_size": 8, "use_mamba_kernels": False},
    **{"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2},
}
"""What a model's configuration takes of these, it gets."""
LAYERS = ["linear_attention", "full_attention"]
OTHERWISE: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "granitemoehybrid": {"layer_types": LAYERS, "tie_word_embeddings": True},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"num_layers": 1, "expert_ffn_hidden_size": 24, "zero_expert_num": 2, "moe_topk": 2},
    "nemotron_h": {"layers_block_type": [*LAYERS, "moe"], "num_hidden_layers": 3},
    "phimoe": {"router_jitter_noise": 0.0, "input_jitter_noise": 0.0},
    "qwen3_5_moe_text": {"layer_types": LAYERS},
    "qwen3_next": {"layer_types": LAYERS},
}


def make_tiny(model_type: str, folder: Path, **settings: Any) -> Path:
    """Write a random model of an architecture, with a tokenizer of bytes."""
    import torch
    from transformers import AutoConfig

    from grpo_pl.commands.tiny_model import CHAT_TEMPLATE, write_tokenizer
    from grpo_pl.models.loading import untrained_language_model

    folder.mkdir(parents=True, exist_ok=True)
    end, pad = write_tokenizer(folder, SIZES["vocab_size"])
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    known = AutoConfig.for_model(model_type).to_dict()
    sizes = {key: value for key, value in SIZES.items() if key in known}
    ends = {"eos_token_id": end, "pad_token_id": pad}
    AutoConfig.for_model(
        model_type, **sizes | OTHERWISE.get(model_type, {}) | ends | settings
    ).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(ends))
    torch.manual_seed(0)
    model = untrained_language_model(str(folder))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder
