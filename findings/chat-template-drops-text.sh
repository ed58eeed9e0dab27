#!/usr/bin/env bash
# The chat templates of some models leave a question out, without a word, if it is given as text.
#
# transformers 5.19.0 renders a message's `content` by the model's own template. Of the 72 templates of chat models that
# trl 1.16.0 ships, those of Idefics3 and SmolVLM go over the parts of `content`; a string has characters for parts, none
# of which is a text part, so the prompt lacks the question and ends in "Assistant:" all the same. LLaVA-NeXT's
# looks for parts of the type "text" likewise. Those of other models for images (Qwen2.5-VL, Gemma 3) read text.
# Guessed: a template shows the content or raises.
#
# Seen with transformers 5.19.0, trl 1.16.0:
#   templates: 72
#   idefics3.jinja: '<|begin_of_text|>User: <end_of_utterance>\nAssistant:'
#   idefics3_training.jinja: '<|begin_of_text|>User: <end_of_utterance>\nAssistant:'
#   llava_next.jinja: '[INST]  [/INST]'
#   llava_next_training.jinja: '[INST]  [/INST]'
#   smolvlm.jinja: '<|im_start|>User: <end_of_utterance>\nAssistant:'
#   smolvlm_training.jinja: '<|im_start|>User: <end_of_utterance>\nAssistant:'
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile transformers==5.19.0 jinja2==3.1.6
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps trl==1.16.0

cat >"$folder/look.py" <<'PYTHON'
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>")
asked = [{"role": "user", "content": "What is 2 + 3?"}]
templates = sorted((Path(find_spec("trl").submodule_search_locations[0]) / "chat_templates").glob("*.jinja"))
print("templates:", len(templates))
for path in templates:
    text = tokenizer.apply_chat_template(
        asked, chat_template=path.read_text(), tokenize=False, add_generation_prompt=True
    )
    if "2 + 3" not in text:
        print(f"{path.name}: {text!r}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$seen"
expected="templates: 72
idefics3.jinja: '<|begin_of_text|>User: <end_of_utterance>\nAssistant:'
idefics3_training.jinja: '<|begin_of_text|>User: <end_of_utterance>\nAssistant:'
llava_next.jinja: '[INST]  [/INST]'
llava_next_training.jinja: '[INST]  [/INST]'
smolvlm.jinja: '<|im_start|>User: <end_of_utterance>\nAssistant:'
smolvlm_training.jinja: '<|im_start|>User: <end_of_utterance>\nAssistant:'"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
