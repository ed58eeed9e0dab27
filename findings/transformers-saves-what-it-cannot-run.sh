#!/usr/bin/env bash
# save_pretrained refuses generation settings that generate runs with, and writes settings that it cannot run with.
#
# transformers 5.19.0 checks them strictly when a model is saved: a temperature without do_sample, as published models have it,
# loads (with a warning that it may be ignored) and generates, and ends the save after the training with an error. With
# do_sample a temperature of -1 passes the same check and is written. Guessed: what from_pretrained takes save_pretrained writes, and
# a strict check would rather stop the second.
#
# Seen with torch 2.13.0:
#   {'temperature': 0.6}: loads, generates, not saved (GenerationConfig is invalid)
#   {'temperature': -1.0, 'do_sample': True}: loads, does not generate (`temperature`), saved
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0+cpu transformers==5.19.0 ||
    "$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.19.0

cat >"$folder/look.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

folder = Path(sys.argv[1])
sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)


def tried(work, done, not_done, word):
    try:
        work()
    except ValueError as error:
        return f"{not_done} ({str(error)[: str(error).index(word) + len(word)]})"
    return done


for settings in {"temperature": 0.6}, {"temperature": -1.0, "do_sample": True}:
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = torch.tensor([[3, 4]])
    generated = tried(
        lambda: model.generate(prompt, max_new_tokens=2), "generates", "does not generate", "`temperature`"
    )
    saved = tried(lambda: model.save_pretrained(folder / "again"), "saved", "not saved", "invalid")
    print(f"{settings}: loads, {generated}, {saved}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" "$folder/model" 2>/dev/null)
echo "$seen"
expected="{'temperature': 0.6}: loads, generates, not saved (GenerationConfig is invalid)
{'temperature': -1.0, 'do_sample': True}: loads, does not generate (\`temperature\`), saved"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
