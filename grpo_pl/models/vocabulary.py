"""Whether two models read the same tokens: else nothing that they say of a sequence can be compared."""

from pathlib import Path
from typing import Any

from grpo_pl.models.folders import resolve_pretrained
from grpo_pl.models.loading import load_tokenizer, vocabulary_size
from grpo_pl.system.refusal import ArgumentError

TOKENIZER_FILES = "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"
"""The files of which a folder with a tokenizer has one."""


def check_same_vocabulary(pretrained: str, policy: str) -> None:
    """Refuse a model that does not read the policy's tokens as the policy does, before any weight is read.

    Each token of the policy's tokenizer must have the same id in the model's, and the model's embeddings must
    have a row for each id that the policy can sample. So models of one family pass whose embeddings are
    padded to different sizes, and a model that knows further tokens: its log-probabilities are then
    normalised over a few rows more than the policy's. A folder without a tokenizer is compared by its number
    of rows alone, which must be the policy's. A policy that does not exist is refused where it is built, if
    it is.
    """
    try:
        folder = resolve_pretrained(policy)
    except ArgumentError:
        return
    if pretrained == policy or resolve_pretrained(pretrained) == folder:
        return
    size, of_policy = vocabulary_size(pretrained), vocabulary_size(policy)
    tokens, tokens_of_policy = vocabulary(pretrained), vocabulary(policy)
    known = tokens is not None and tokens_of_policy is not None
    if size < of_policy or (size != of_policy and not known):
        raise ArgumentError(
            f"pretrained={pretrained} has a vocabulary of {size} tokens and the policy one of {of_policy}: "
            f"give a model of the policy's family{', with its tokenizer' if size > of_policy else ''}"
        )
    if tokens is None or tokens_of_policy is None:
        return
    other = [token for token, number in tokens_of_policy.items() if tokens.get(token) != number]
    if other:
        first = min(other, key=lambda token: tokens_of_policy[token])
        instead = f"token {tokens[first]}" if first in tokens else "no token"
        raise ArgumentError(
            f"pretrained={pretrained} has another tokenizer than the policy: {len(other)} of its "
            f"{len(tokens_of_policy)} tokens differ, such as {first!r}, token {tokens_of_policy[first]} of "
            f"the policy and {instead} there: give a model of the policy's family"
        )


def vocabulary(pretrained: str) -> dict[str, int] | None:
    """The id of each token of a model's tokenizer; None for a folder without a tokenizer."""
    folder = Path(resolve_pretrained(pretrained))
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    tokenizer: Any = load_tokenizer(pretrained)
    return dict(tokenizer.get_vocab())
