#!/usr/bin/env bash
# An adapter of fused experts names no parameter, and its two factors lie in different orders of experts and ranks.
#
# peft 0.21.0 adapts two matrices of one module by layers around each other: in a checkpoint `experts.lora_A` belongs to
# down_proj and `experts.base_layer.lora_A` to gate_up_proj, and nothing but the nesting says so. The rows of A go expert by
# expert, the columns of B rank by rank: with rank r, expert e of E has A[e * r : (e + 1) * r], but B[:, e::E]. Guessed:
# a name for each parameter, and both factors expert by expert, as transformers fuses the weights themselves; a merge
# or a shard made so has the right shapes and other numbers, above all where r and E are the same.
#
# Seen with torch 2.13.0, transformers 5.19.0, an OLMoE of 4 experts:
#   experts.base_layer.lora_A.default.weight (8, 32)
#   experts.base_layer.lora_B.default.weight (48, 8)
#   experts.lora_A.default.weight (8, 24)
#   experts.lora_B.default.weight (32, 8)
#   the change of expert 1 is B A by columns 2 to 3 of B: False, by columns 1 and 5: True
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0+cpu transformers==5.19.0 peft==0.21.0 ||
    "$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.19.0 peft==0.21.0

cat >"$folder/look.py" <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4)
SIZES |= dict(num_key_value_heads=4, num_experts=4, num_experts_per_tok=2)
PLACE = "model.layers.0.mlp."
model = AutoModelForCausalLM.from_config(AutoConfig.for_model("olmoe", **SIZES))
before = model.get_parameter(PLACE + "experts.down_proj").detach().clone()
matrices = ["experts.gate_up_proj", "experts.down_proj"]
adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=2, target_modules=[], target_parameters=matrices))
for name, parameter in model.named_parameters():
    if "lora_" in name:
        torch.nn.init.normal_(parameter)
        print(name.removeprefix(PLACE), tuple(parameter.shape))
layer = model.get_submodule(PLACE + "experts")
a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
change = adapted.merge_and_unload().get_parameter(PLACE + "experts.down_proj").detach() - before
contiguous, interleaved = (torch.allclose(change[1], b[:, c] @ a[2:4], atol=1e-4) for c in ([2, 3], [1, 5]))
print(f"the change of expert 1 is B A by columns 2 to 3 of B: {contiguous}, by columns 1 and 5: {interleaved}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$seen"
expected="experts.base_layer.lora_A.default.weight (8, 32)
experts.base_layer.lora_B.default.weight (48, 8)
experts.lora_A.default.weight (8, 24)
experts.lora_B.default.weight (32, 8)
the change of expert 1 is B A by columns 2 to 3 of B: False, by columns 1 and 5: True"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
