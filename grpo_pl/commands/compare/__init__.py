"""Runs, compared: `compare(folders)` for the statistics, `table` and `history` for pandas."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo_pl.commands.compare.comparison import Comparison, compare
    from grpo_pl.commands.compare.tidy import history, table

__all__ = ["Comparison", "compare", "history", "table"]


def __getattr__(name: str) -> Any:
    """Import scipy and pandas only for a caller that compares."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "tidy" if name in ("history", "table") else "comparison"
    return getattr(import_module(f"{__name__}.{module}"), name)
