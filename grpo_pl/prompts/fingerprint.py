"""A fingerprint of prompts: a resumed run learns by it whether its prompts are those it began with."""

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence

from grpo_pl.types import Prompt

Fingerprint = dict[str, str]
"""The number of prompts and, in their order, a hash of each part of them."""
SOURCE = {"questions": "questions", "answers": "gold answers", "columns": "further columns"}
"""The parts that come from the data, and their names in sentences."""


def fingerprint(prompts: Sequence[Prompt]) -> Fingerprint:
    """The fingerprint of a set; what JSON cannot hold, such as a task's verifier, counts by its type."""
    hashes = {part: hashlib.blake2b(digest_size=16) for part in (*SOURCE, "tokens")}
    for prompt in prompts:
        questions = prompt.messages or prompt.text
        for part, value in zip(SOURCE, (questions, prompt.answer, prompt.metadata), strict=True):
            hashes[part].update(_encode(value).encode() + b"\n")
        hashes["tokens"].update(array("q", [len(prompt.token_ids), *prompt.token_ids]).tobytes())
    return {"prompts": str(len(prompts))} | {part: h.hexdigest() for part, h in hashes.items()}


_encode = json.JSONEncoder(skipkeys=True, default=lambda value: type(value).__name__).encode


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
