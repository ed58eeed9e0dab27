#!/usr/bin/env bash
# AutoModelForCausalLM makes a model of Emu3's configuration and cannot load it again from where it was saved.
#
# In transformers 5.19.0 the mapping holds Emu3Config -> Emu3ForCausalLM, whose own configuration is Emu3TextConfig, which
# the mapping does not hold. `from_config` works, `save_pretrained` writes the text configuration, `from_pretrained` of
# that folder refuses it. Guessed: what AutoModelForCausalLM has made and saved it loads, as it does for Llama and GPT-2.
#
# Seen with torch 2.13.0:
#   llama: made, saved as llama, loaded
#   gpt2: made, saved as gpt2, loaded
#   emu3: made, saved as emu3_text_model, refused
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

from transformers import AutoConfig, AutoModelForCausalLM

TEXT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}

for kind, settings in {"llama": TEXT, "gpt2": GPT2, "emu3": {"text_config": TEXT}}.items():
    place = Path(sys.argv[1]) / kind
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).save_pretrained(place)
    saved_as = json.loads((place / "config.json").read_text())["model_type"]
    try:
        AutoModelForCausalLM.from_pretrained(place)
        end = "loaded"
    except ValueError as error:
        end = "refused" if "Unrecognized configuration class" in str(error) else "failed"
    print(f"{kind}: made, saved as {saved_as}, {end}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" "$folder" 2>/dev/null)
echo "$seen"
expected="llama: made, saved as llama, loaded
gpt2: made, saved as gpt2, loaded
emu3: made, saved as emu3_text_model, refused"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
