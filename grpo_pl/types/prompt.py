"""What is asked; imports no torch, as the processes of environments import it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Prompt:
    """One question, as the engine reads it: made by the DataModule, kept by the rollout, read by rewards.

    Example: `Prompt(token_ids=[5, 6], text="What is 2 + 3?", answer="5", seed=17)`.
    """

    token_ids: list[int]
    text: str
    """The question in words, without the chat template, for rewards and for people."""
    answer: str
    """The gold answer, as the data set spells it. Empty where the task has none."""
    messages: list[dict[str, str]] = field(default_factory=list)
    """The whole conversation that ends with `text`, each message with `role` and `content`."""
    opened: str = ""
    r"""What the prompt has opened for the response, such as `<think>\n`: the response goes on from there."""
    templated: bool = True
    """Whether a chat template holds the conversation; False for plain text."""
    gold: dict[str, Any] = field(default_factory=dict, compare=False)
    """The gold answer as the data has it, by the name of its column; empty where `answer` alone is known."""
    metadata: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    """Response `g` is sampled with `functional.derive_seed(seed, g)`; unique to the visit."""
    asked: list[int] = field(default_factory=list, compare=False)
    """The tokens that the data asked with, where an environment has opened the episode with others."""
    row: int = field(default=-1, compare=False)
    """Its place among the prompts of `data.train` or `data.val`; -1 where it is none of these."""
