#!/usr/bin/env bash
# The key `logits_scaling` divides logits in one model of transformers and multiplies them in another.
#
# In transformers 5.19.0 GraniteForCausalLM divides its logits by `logits_scaling`, HyperCLOVAXForCausalLM (a Granite with
# other norms) multiplies them by it, and MptForCausalLM, whose `logit_scale` is documented as "scale the logits by this
# value", does nothing with it. Guessed: a key in config.json means the same in all models that have it, as in Cohere,
# which multiplies by `logit_scale`. Whoever computes log-probabilities from states and head must ask each model.
#
# Seen with torch 2.13.0: the logits with the key at 2 over those with it at 1
#   granite logits_scaling: 0.5
#   hyperclovax logits_scaling: 2.0
#   cohere logit_scale: 2.0
#   mpt logit_scale: 1.0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0+cpu transformers==5.19.0 ||
    "$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.19.0

cat >"$folder/look.py" <<'PYTHON'
import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
LIKE_LLAMA = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS = {
    ("granite", "logits_scaling"): LIKE_LLAMA,
    ("hyperclovax", "logits_scaling"): LIKE_LLAMA,
    ("cohere", "logit_scale"): LIKE_LLAMA,
    ("mpt", "logit_scale"): {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 1},
}


def logits(kind, sizes, **changes):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **changes)).eval()
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7]])).logits


for (kind, key), sizes in MODELS.items():
    one, two = (logits(kind, sizes, **{key: value}) for value in (1.0, 2.0))
    print(f"{kind} {key}: {float(two.abs().sum() / one.abs().sum()):.1f}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$seen"
expected="granite logits_scaling: 0.5
hyperclovax logits_scaling: 2.0
cohere logit_scale: 2.0
mpt logit_scale: 1.0"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
