"""Explains the words of the field that stand in a study's question and names."""

import re
from collections.abc import Iterable

WORDS = {
    "PPO": "reinforcement learning in small steps, with a critic",
    "GRPO": "reinforcement learning that compares several responses to the same prompt",
    "SFT": "learning to write given responses, without rewards",
    "DPO": "learning from pairs of a better and a worse response",
    "distillation": "learning to write as a teacher model does",
    "best of n": "keeping the best of n responses",
    "policy": "the model that is trained",
    "critic": "a model that predicts how much reward a response will get",
    "reference": "a frozen copy of the model, from which training is kept from straying",
    "reward model": "a model trained to judge responses, in place of a rule",
    "rule": "a program that checks the answer",
    "outcome": "a response's final answer",
    "process": "the steps on the way to an answer",
    "KL": "how far the trained model has moved from its reference",
    "advantage": "how much better a response is than was expected",
    "group": "the responses to one prompt",
    "epochs": "how often training goes over the same responses",
    "clip": "the limit on how far one update may change the model",
    "warmup": "a slow start",
    "model organism": "a model small enough to be trained in a minute, in place of a large one",
}
"""Word -> its meaning, in words that stand before it or in none of the field."""


def glossary(texts: Iterable[str]) -> str:
    """`Critic: ... KL: ...`, of the words that stand in the texts; empty if none does."""
    text = re.sub(r"[_=:,.-]+", " ", " ".join(texts))
    found = {word: meaning for word, meaning in WORDS.items() if re.search(rf"\b{word}s?\b", text, re.I)}
    return "; ".join(f"{word}: {meaning}" for word, meaning in found.items()) + "." * bool(found)
