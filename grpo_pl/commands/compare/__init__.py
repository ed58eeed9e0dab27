"""Runs, compared: `compare(folders)` for the statistics, `table`, `history` and `effects` for pandas."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo_pl.commands.compare.comparison import Comparison, compare
    from grpo_pl.commands.compare.tidy import effects, history, table

__all__ = ["Comparison", "compare", "effects", "history", "table"]


def __getattr__(name: str) -> Any:
    """Import scipy and pandas only for a caller that compares."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "tidy" if name in ("effects", "history", "table") else "comparison"
    return getattr(import_module(f"{__name__}.{module}"), name)
