#!/usr/bin/env bash
# `target_modules="all-linear"` leaves out linear layers of a mixture of experts, and takes in its router.
#
# transformers 5 keeps all experts' matrices in one tensor, which is no linear layer. For the types in its conversion table
# peft 0.21.0 therefore turns the names gate_proj, up_proj and down_proj into the fused parameters' names, for all layers:
# the dense first layer and the shared experts of DeepSeek-V3, which are plain linear layers of these names, get no adapter,
# while every router does. For types that have no per-expert checkpoint, such as GPT-OSS, it adapts attention alone. No
# warning is given. Guessed: "all-linear" is every linear layer but the output layer, as peft's documentation says.
#
# Seen with torch 2.13.0, transformers 5.19.0, a DeepSeek-V3 whose layer 0 is dense, and a GPT-OSS:
#   deepseek_v3 linear without: 0.mlp.down_proj 0.mlp.gate_proj 0.mlp.up_proj 1.mlp.shared_experts.down_proj (and two more)
#   deepseek_v3 others with: 1.mlp.experts 1.mlp.gate
#   gpt_oss linear without:
#   gpt_oss others with:
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0+cpu transformers==5.19.0 peft==0.21.0 ||
    "$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.19.0 peft==0.21.0

cat >"$folder/look.py" <<'PYTHON'
import re

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
SIZES |= dict(intermediate_size=48, num_experts_per_tok=2)
DEEPSEEK = dict(first_k_dense_replace=1, n_routed_experts=4, n_shared_experts=1, n_group=1, topk_group=1)
DEEPSEEK |= dict(moe_intermediate_size=24, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8)
DEEPSEEK |= dict(qk_nope_head_dim=8, v_head_dim=8, head_dim=8)


def short(name):
    return re.sub(r"model\.layers\.|\.base_layer", "", name)


def look(kind, **sizes):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **sizes))
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    inject_adapter_in_model(LoraConfig(r=2, target_modules="all-linear"), model)
    adapted = {n for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    for words, names in (("linear without:", linear - adapted), ("others with:", adapted - linear)):
        print(kind, words, *sorted(set(map(short, names))))


look("deepseek_v3", **DEEPSEEK)
look("gpt_oss", num_local_experts=4, head_dim=8)
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$seen"
experts=1.mlp.shared_experts
expected="deepseek_v3 linear without: 0.mlp.down_proj 0.mlp.gate_proj 0.mlp.up_proj $experts.down_proj $experts.gate_proj $experts.up_proj
deepseek_v3 others with: 1.mlp.experts 1.mlp.gate
gpt_oss linear without:
gpt_oss others with:"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
