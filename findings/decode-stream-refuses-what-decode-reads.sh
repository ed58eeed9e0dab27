#!/usr/bin/env bash
# DecodeStream of tokenizers raises on tokens that `decode` reads, with every tokenizer that falls back to bytes.
#
# With the decoder of Llama 2, Mistral and Gemma (ByteFallback) bytes in a row that are no UTF-8 all become U+FFFD, also
# those of the row that were whole characters before. DecodeStream, which vLLM and TGI stream text with, waits while a
# text ends with U+FFFD, and at the next letter finds that what it has given does not begin the text any more: it raises.
# Three tokens are enough, which a model may sample at any temperature above 0. Guessed: what it gives in pieces is the
# text of `decode`. Whoever reads sampled tokens by it must catch a plain `Exception` and begin anew.
#
# Seen with tokenizers 0.23.3:
#   letter, byte, letter: Exception: Invalid prefix encountered
#   decode of the same: '\ufffd\ufffdthe'
#   word, byte, letter: ['j', None, '\ufffdthe'], decode 'j\ufffdthe'
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3

cat >"$folder/look.py" <<'PYTHON'
from tokenizers import Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream

vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)} | {"j": 257, "the": 258}
tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])


def streamed(*tokens):
    stream = DecodeStream(skip_special_tokens=True)
    try:
        return str([stream.step(tokenizer, tokenizer.token_to_id(token)) for token in tokens]).replace("\ufffd", "\\ufffd")
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:26]}"


def whole(*tokens):
    return ascii(tokenizer.decode([tokenizer.token_to_id(token) for token in tokens]))


in_bytes, in_a_word = ("<0x6A>", "<0xFA>", "the"), ("j", "<0xFA>", "the")
print(f"letter, byte, letter: {streamed(*in_bytes)}")
print(f"decode of the same: {whole(*in_bytes)}")
print(f"word, byte, letter: {streamed(*in_a_word)}, decode {whole(*in_a_word)}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py")
echo "$seen"
expected="letter, byte, letter: Exception: Invalid prefix encountered
decode of the same: '\\ufffd\\ufffdthe'
word, byte, letter: ['j', None, '\\ufffdthe'], decode 'j\\ufffdthe'"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
