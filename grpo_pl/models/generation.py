"""Mends generation settings that transformers loads, runs with, and refuses to save."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import GenerationConfig

REFUSED = re.compile(r"^- `(\w+)`:", re.MULTILINE)
"""How transformers 5.19 begins its line on a setting that has no use beside the others."""
UP_TO_1 = "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"
SAMPLING = "temperature", "top_k", *UP_TO_1
"""The settings that mean something only where `do_sample` is true."""


def mend(config: "GenerationConfig") -> str:
    """Change settings until transformers would save them; says which, and nothing if it would as they are.

    Sampling settings where `do_sample` is not set mean that it is true. Any other setting that transformers
    calls useless (sampling settings where it is false, `early_stopping` without beams) goes.

    Raises:
        ValueError: That of transformers on settings that it would not load either.
    """
    useless = useless_settings(config)
    sampled = [name for name in useless if name in SAMPLING and can_sample(name, getattr(config, name))]
    changes = []
    if sampled and config.do_sample is not False and config.temperature != 0:
        changes = [f"do_sample=true, which {listed(config, sampled)} need{'s' * (len(sampled) == 1)}"]
        config.do_sample = True
        useless = [name for name in useless if name not in sampled]
    if useless:
        changes.append(f"no {listed(config, useless)}, which {'have' if len(useless) > 1 else 'has'} no use")
    for name in useless:
        setattr(config, name, None)
    config.validate(strict=True)
    return ", ".join(changes)


def useless_settings(config: "GenerationConfig") -> list[str]:
    """The settings for which transformers refuses to save the others."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        names = REFUSED.findall(str(error))
        if not names:
            raise
        return names
    return []


def can_sample(name: str, value: Any) -> bool:
    """Whether a value of a sampling setting is one that transformers can sample with."""
    if isinstance(value, bool) or not isinstance(value, int if name == "top_k" else int | float):
        return False
    return bool(0 < value <= 1 if name in UP_TO_1 else value > 0)


def listed(config: "GenerationConfig", names: list[str]) -> str:
    """Settings with their values, for a message."""
    return " and ".join(f"{name}={getattr(config, name)!r:.30}" for name in names)
