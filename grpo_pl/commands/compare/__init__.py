"""Runs, compared: `compare(folders)` for the statistics, `table` and `history` for pandas."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo_pl.commands.compare.comparison import Comparison, compare
    from grpo_pl.commands.compare.tidy import history, table

__all__ = ["Comparison", "compare", "history", "table"]


def __getattr__(name: str) -> Any:
    """Import scipy and pandas for who compares, and for nobody else."""
    if name in ("Comparison", "compare"):
        from grpo_pl.commands.compare import comparison

        return getattr(comparison, name)
    if name in ("history", "table"):
        from grpo_pl.commands.compare import tidy

        return getattr(tidy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
