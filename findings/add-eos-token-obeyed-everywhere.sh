#!/usr/bin/env bash
# `add_eos_token: true` in the tokenizer_config.json of a PreTrainedTokenizerFast (the class of Llama 3's tokenizer) does
# nothing in transformers 4; in transformers 5 the same file ends every text, so every plain-text prompt, in the EOS token.
#
# A prompt by a chat template has no such end in either. Guessed: a saved tokenizer means the same in both.
#
# Seen with transformers 4.57.1 and 5.19.0:
#   4.57.1 text: ['a', 'b']
#   4.57.1 chat: ['a', 'b']
#   5.19.0 text: ['a', 'b', '</s>']
#   5.19.0 chat: ['a', 'b']
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/look.py" <<'PYTHON'
import sys

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
made = transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, unk_token="<unk>", eos_token="</s>", add_eos_token=True
)
made.chat_template = "{{ messages[0]['content'] }}"
made.save_pretrained(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
chat = tokenizer.apply_chat_template([{"role": "user", "content": "a b"}], return_dict=False)
for name, ids in (("text", tokenizer("a b")["input_ids"]), ("chat", chat)):
    print(f"{transformers.__version__} {name}: {tokenizer.convert_ids_to_tokens(ids)}")
PYTHON
seen=""
for version in 4.57.1 5.19.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --no-compile "transformers==$version" jinja2==3.1.6
    seen+=$("$folder/$version/bin/python" "$folder/look.py" "$folder/saved-$version" 2>/dev/null)$'\n'
done
echo -n "$seen"
expected="4.57.1 text: ['a', 'b']
4.57.1 chat: ['a', 'b']
5.19.0 text: ['a', 'b', '</s>']
5.19.0 chat: ['a', 'b']
"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
