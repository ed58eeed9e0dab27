"""Where the text of each token ends, for tokenizers of several kinds and tokens in any order."""

import random

import pytest
from helpers.chats import KINDS, SPECIAL, tokenizer_of

from grpo_pl.rollout.assembly import token_ends


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_of_each_token_ends_where_it_stands(kind: str) -> None:
    """Nearly so behind bytes that make no character: with them, what stood before may be read anew."""
    tokenizer, draws = tokenizer_of(kind, "ChatML"), random.Random(3)
    letters = {
        token: text
        for name, token in tokenizer.get_vocab().items()
        if name not in SPECIAL and not name.startswith("<0x")
        if (text := tokenizer.decode([token]).lstrip()).isascii() and text.isalpha()
    }
    for _ in range(300):
        ids = [draws.randrange(len(tokenizer)) for _ in range(24)]
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ends = token_ends(tokenizer, ids, text)
        assert ends == sorted(ends)
        assert ends[-1] <= len(text)
        for token, end in zip(ids, ends, strict=True):
            assert text[:end].endswith(letters.get(token, "")) or "\ufffd" in text[:end]
