"""Texts of an environment as token ids: whatever they say, none of them becomes a control token."""

import json
import re
import secrets
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

from grpo_pl.prompts.chat import Tokenizer
from grpo_pl.system.refusal import ConfigError

_MARKER = re.compile(r"<[^<>\s'\"{}]{1,60}>|\[/?[A-Z_]{2,40}\]")
"""What looks like a marker in the source of a chat template."""


@runtime_checkable
class FastTokenizer(Tokenizer, Protocol):
    """The part of `transformers.PreTrainedTokenizerFast` that texts of an environment need."""

    @property
    def backend_tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` underneath."""

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text."""


class HarmlessEncoder:
    """Encodes what a chat template writes, in which no text of the environment yields a control token.

    `split_special_tokens` would be state of the tokenizer, and leaves tokens that were merely added, such as
    `<tool_call>`. Here a private copy of the tokenizer knows its control tokens by secret names alone. Those
    that the template itself has written are renamed before a rendering is encoded. A masked text's are not,
    and are words like others to the copy. All is encoded in one piece, so that ids are those of the template.

    Control tokens are all added tokens, special or not, and the entries of the vocabulary that look like a
    marker of the template. Blanks and single characters are none, which some tokenizers add to read them.

    Args:
        tokenizer: Stays as it is.
        template: The chat template.
    """

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        if not isinstance(tokenizer, FastTokenizer):
            raise ConfigError(
                f"the tokenizer is a {type(tokenizer).__name__}, whose control tokens a tool's output could "
                "forge: give a model folder with a tokenizer.json"
            )
        secret = secrets.token_hex(8)
        settings = json.loads(tokenizer.backend_tokenizer.to_str())
        found = _control_tokens(settings, tokenizer, template)
        self._names = {token: f"<|{secret}-{number}|>" for token, number in found.items()}
        self._numbers = {name: found[token] for token, name in self._names.items()}
        self._copy = type(tokenizer.backend_tokenizer).from_str(json.dumps(_renamed(settings, self._names)))
        if any(self._copy.token_to_id(name) != number for name, number in self._numbers.items()):
            raise ConfigError("the tokenizer's control tokens are not where its tokenizer.json says: mend it")
        model = settings["model"]
        unknown = {found.get(model.get("unk_token")), model.get("unk_id")} - {None, tokenizer.eos_token_id}
        # what a model of words makes of a character that it does not know; it marks nothing
        self.control = frozenset(found.values()) - unknown
        special = {t["content"] for t in settings["added_tokens"] if t["special"]} & found.keys()
        special = {token for token in special if not _OF_THOUGHTS.search(token)}
        self._any, self._special = _one_of(found), _one_of(special)
        self._firsts = sorted({token[0] for token in found})
        self._first = _one_of(self._firsts)
        self._mask, self._masked = secret + "-{}.", re.compile(secret + r"-(\d+)\.")

    def mask(self, text: str) -> str:
        """A text of the environment, to be put into a template: no marker is left in it until it is encoded.

        Halves of surrogate pairs, which are no text, become U+FFFD.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._first.sub(lambda first: self._mask.format(self._firsts.index(first[0])), text)

    def mask_special(self, text: str) -> str:
        """A text of the policy, which may hold the markers of a thought or a call, but no end of a turn."""
        return self._special.sub(lambda marker: self.mask(marker[0]), text)

    def unmask(self, text: str) -> str:
        """A template's rendering, as it would be read."""
        return self._masked.sub(lambda mask: self._firsts[int(mask[1])], text)

    def markers(self, rendered: str) -> list[tuple[int, int]]:
        """Where the template itself has written control tokens, and which."""
        found = [(m.start(), self._numbers[self._names[m[0]]]) for m in self._any.finditer(rendered)]
        return [(start, token) for start, token in found if token in self.control]

    def encode(self, rendered: str) -> list[int]:
        """The token ids of a template's rendering."""
        named = self._any.sub(lambda marker: self._names[marker[0]], rendered)
        ids: list[int] = self._copy.encode(self.unmask(named), add_special_tokens=False).ids
        own = [token for _, token in self.markers(rendered)]
        if [token for token in ids if token in self.control] != own:
            raise ConfigError(
                f"the tokenizer makes control tokens of the text {self.unmask(rendered)!r:.200}, which an "
                "environment must not write: take another tokenizer"
            )
        return ids


harmless_encoder: Callable[[Any, str], HarmlessEncoder] = lru_cache(maxsize=4)(HarmlessEncoder)
"""The encoder of a tokenizer and its chat template, which takes a second to make for a large one."""


_OF_THOUGHTS = re.compile("think|thought|reasoning|channel", re.IGNORECASE)
"""Special tokens around thoughts, which a template drops by them: `</think>`, `<|channel>`."""


def _one_of(tokens: Collection[str]) -> re.Pattern[str]:
    """Finds any of the tokens, the longest first, as tokenizers do."""
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _control_tokens(settings: dict[str, Any], tokenizer: FastTokenizer, template: str) -> dict[str, int]:
    """Control tokens and their ids; `settings` are those of tokenizer.json."""
    found = {
        token["content"]: token["id"]
        for token in settings["added_tokens"]
        if token["special"] or (len(token["content"]) > 1 and token["content"].strip())
    }
    backend = tokenizer.backend_tokenizer
    for marker in set(_MARKER.findall(template)) - found.keys():
        number = backend.token_to_id(marker)
        if number is not None and number in backend.encode(marker, add_special_tokens=False).ids:
            found[marker] = number
            settings["added_tokens"].append(_ADDED | {"id": number, "content": marker})
    return found


_ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


def _renamed(settings: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The settings of the same tokenizer with other names for some tokens."""
    added = [
        token | {"content": names.get(token["content"], token["content"])}
        for token in settings["added_tokens"]
    ]
    model = dict(settings["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not _made_of(pair) & names.keys()]
    return settings | {"added_tokens": added, "model": model, "truncation": None, "padding": None}


def _made_of(pair: Any) -> set[str]:
    """The tokens that a merge takes and gives."""
    first, second = pair.split(" ") if isinstance(pair, str) else pair
    return {first, second, first + second}
