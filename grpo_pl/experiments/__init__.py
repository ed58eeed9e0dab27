"""Runs, compared: `compare(folders)` for the statistics, `table` and `history` for pandas."""

from grpo_pl.experiments.comparison import Comparison, compare
from grpo_pl.experiments.tidy import history, table

__all__ = ["Comparison", "compare", "history", "table"]
