#!/usr/bin/env bash
# The same conversation has other tokens tomorrow: some chat templates write today's date into every prompt.
#
# transformers 5.19.0 gives templates a function `strftime_now`. Of the templates that trl 1.16.0 ships, those of Llama 3.2,
# gpt-oss and Muse Glimmer call it though the conversation says nothing of a date; only Llama 3.2's takes another date by a
# variable (`date_string`). Guessed: `apply_chat_template` is a function of its arguments.
#
# Seen with transformers 5.19.0, trl 1.16.0:
#   gptoss.jinja shows today; a variable for it: False
#   gptoss_training.jinja shows today; a variable for it: False
#   llama3_2.jinja shows today; a variable for it: True
#   muse_glimmer.jinja shows today; a variable for it: False
#   muse_glimmer_training.jinja shows today; a variable for it: False
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile transformers==5.19.0 jinja2==3.1.6
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps trl==1.16.0

cat >"$folder/look.py" <<'PYTHON'
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>")
asked = [{"role": "user", "content": "What is 2 + 3?"}]
today = [datetime.now().strftime(form) for form in ("%d %b %Y", "%Y-%m-%d", "%d %B %Y", "%B %d, %Y")]
for path in sorted((Path(find_spec("trl").submodule_search_locations[0]) / "chat_templates").glob("*.jinja")):
    template = path.read_text()
    text = tokenizer.apply_chat_template(asked, chat_template=template, tokenize=False)
    if any(day in text for day in today):
        print(f"{path.name} shows today; a variable for it: {'date_string' in template}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$seen"
expected="gptoss.jinja shows today; a variable for it: False
gptoss_training.jinja shows today; a variable for it: False
llama3_2.jinja shows today; a variable for it: True
muse_glimmer.jinja shows today; a variable for it: False
muse_glimmer_training.jinja shows today; a variable for it: False"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
