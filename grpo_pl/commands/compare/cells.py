"""The names of a factorial study's variants: `critic=none,reference=kl`."""

from collections.abc import Mapping


def cell_name(levels: Mapping[str, str]) -> str:
    """The variant with these levels of its factors, as a folder is named."""
    return ",".join(f"{factor}={level}" for factor, level in levels.items())


def cell_levels(name: str) -> dict[str, str]:
    """Factor -> its level in the variant with this name; empty for a variant of another design."""
    pairs = [part.split("=") for part in name.split(",")]
    return dict(pairs) if all(len(pair) == 2 for pair in pairs) else {}
