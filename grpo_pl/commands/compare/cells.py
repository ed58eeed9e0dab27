"""The names of a factorial study's variants: `critic=none,reference=kl`."""

import re
from collections.abc import Mapping

NAME = r"\w[\w.+-]*"
"""The name of a variant, a factor or a level, which becomes part of the name of a folder."""


def cell_name(levels: Mapping[str, str]) -> str:
    """The variant with these levels of its factors, as a folder is named."""
    return ",".join(f"{factor}={level}" for factor, level in levels.items())


def cell_levels(name: str) -> dict[str, str]:
    """Factor -> its level in the variant with this name; empty for a variant of another design."""
    pairs = [re.fullmatch(f"({NAME})=({NAME})", part) for part in name.split(",")]
    return {pair[1]: pair[2] for pair in pairs if pair} if all(pairs) else {}
