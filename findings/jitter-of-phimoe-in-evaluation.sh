#!/usr/bin/env bash
# A router's jitter noise, of PhiMoE, changes what the model computes in evaluation, where it draws no noise at all.
#
# In transformers 5.19.0 PhiMoE has `router_jitter_noise` 0.01 by default. In training it draws among experts whose scores
# are near, so two passes with all dropouts at 0 differ. In evaluation it draws nothing, but the same number decides which
# scores enter the softmax that weighs the experts. Guessed: jitter is noise of the training, as in Mixtral, and can be set
# to 0 for two equal passes without another effect. A policy gradient wants both: the passes equal, and the model the same.
#
# Seen with torch 2.13.0:
#   two passes in training agree: phimoe False, mixtral False
#   evaluation is the same without jitter: phimoe False, mixtral True
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0+cpu transformers==5.19.0 ||
    "$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.19.0

cat >"$folder/look.py" <<'PYTHON'
import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 4, "num_local_experts": 8, "num_experts_per_tok": 2}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2}


def model(kind, jitter):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, router_jitter_noise=jitter)
    return AutoModelForCausalLM.from_config(config)


@torch.no_grad()
def logits(network):
    return network(torch.arange(3, 63)[None]).logits


passes, evaluations = [], []
for kind in ("phimoe", "mixtral"):
    trained, with_jitter, without = model(kind, 0.3).train(), model(kind, 0.3).eval(), model(kind, 0.0).eval()
    passes.append(f"{kind} {torch.equal(logits(trained), logits(trained))}")
    evaluations.append(f"{kind} {torch.equal(logits(with_jitter), logits(without))}")
print("two passes in training agree:", ", ".join(passes))
print("evaluation is the same without jitter:", ", ".join(evaluations))
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$seen"
expected="two passes in training agree: phimoe False, mixtral False
evaluation is the same without jitter: phimoe False, mixtral True"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
