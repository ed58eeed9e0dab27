"""A fingerprint of prompts: a resumed run learns by it whether its prompts are those it began with."""

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence, Set
from ctypes import c_float
from datetime import date, time, timedelta
from numbers import Number
from pathlib import PurePath
from uuid import UUID

import numpy as np

from grpo_pl.types import Prompt

Fingerprint = dict[str, str]
"""The number of prompts and, in their order, a hash of each part of them."""
SOURCE = {"questions": "questions", "answers": "gold answers", "columns": "further columns"}
"""The parts that come from the data, and their names in sentences."""


def fingerprint(prompts: Sequence[Prompt]) -> Fingerprint:
    """The fingerprint of a set, the same for the same rows of any file.

    Keys count in any order, empty columns as missing ones and fractions with the 24 bits of float32. What has
    no text of its own, such as a task's verifier, counts by its type.
    """
    hashes = {part: hashlib.blake2b(digest_size=16) for part in (*SOURCE, "tokens")}
    for prompt in prompts:
        questions = prompt.messages or prompt.text
        for part, value in zip(SOURCE, (questions, prompt.answer, _plain(prompt.metadata)), strict=True):
            hashes[part].update(_encode(value).encode() + b"\n")
        hashes["tokens"].update(array("q", [len(prompt.token_ids), *prompt.token_ids]).tobytes())
    return {"prompts": str(len(prompts))} | {part: h.hexdigest() for part, h in hashes.items()}


_encode = json.JSONEncoder(sort_keys=True).encode
_JSON = frozenset({str, int, bool, type(None)})
_SPELLED = str, Number, date, time, timedelta, UUID, PurePath


def _plain(value: object) -> object:
    """A value as JSON holds it, the same for the same value of any file format."""
    if type(value) in _JSON:
        return value
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return {_key(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Set):
        return sorted(_encode(_plain(item)) for item in value)
    if isinstance(value, np.ndarray | np.generic):
        native = value.tolist()
        return str(value) if isinstance(native, np.generic) else _plain(native)
    if isinstance(value, bytes | bytearray):
        return value.hex()
    return str(value) if isinstance(value, _SPELLED) else type(value).__name__


def _key(key: object) -> str:
    return key if isinstance(key, str) else _encode(_plain(key))


def _number(value: float) -> int | float:
    """A number that is whole, or rounded to float32 unless it is too small for that."""
    rounded = value if value.is_integer() or abs(value) < _SMALLEST else c_float(value).value
    return int(rounded) if rounded.is_integer() else rounded


_SMALLEST = float(np.finfo(np.float32).tiny)


def change(key: str, before: Mapping[str, str], now: Fingerprint) -> str:
    """A sentence on the first part of the prompts of `key` that is not as before; empty if all are."""
    for part, name in SOURCE.items():
        if before.get(part) != now[part]:
            return (
                f"{key}: its {name} are not those that the checkpoint was trained on "
                f"({before.get('prompts')} prompts then, {now['prompts']} now): give back the data"
            )
    if before.get("tokens") != now["tokens"]:
        return (
            f"data.format: the questions of {key} are those that the checkpoint was trained on, the tokens "
            "of their prompts are not (another chat template, another tokenizer, or a template that shows "
            "today's date): give them back, the date by data.format.date"
        )
    return ""
