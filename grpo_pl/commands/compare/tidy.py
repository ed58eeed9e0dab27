"""Tables of runs for pandas: one row a run, or one row a run and iteration."""

from typing import Any

import pandas as pd

from grpo_pl.commands.compare.costs import COSTS
from grpo_pl.commands.compare.groups import Group, group_runs
from grpo_pl.commands.compare.runs import SECONDS, TOKENS, Paths, Run, read_runs


def table(paths: Paths, base: str | None = None) -> pd.DataFrame:
    """One row a run: group, seed, what differs between the groups, costs, and the last value of each metric.

    `paths`, `base` and what is refused are as in `compare`.
    """
    groups = group_runs(read_runs(paths), base)
    keys = {d.key: d.base for group in groups for d in group.differences}
    rows = []
    for group in groups:
        settings = keys | {d.key: d.other for d in group.differences}
        for run in group.runs:
            costs = {f"cost/{cost.name}": cost.of(run) for cost in COSTS}
            metrics = {key: run.last(key) for row in run.rows for key in row}
            rows.append(identity(group, run) | {"problem": run.problem} | settings | costs | metrics)
    return pd.DataFrame(rows)


def history(paths: Paths, base: str | None = None) -> pd.DataFrame:
    """One row a run and iteration, with all metrics, and tokens and training seconds so far.

    `paths`, `base` and what is refused are as in `compare`.
    """
    rows = []
    for group in group_runs(read_runs(paths), base):
        for run in group.runs:
            tokens = seconds = 0.0
            for row in run.rows:
                tokens, seconds = tokens + row.get(TOKENS, 0.0), seconds + row.get(SECONDS, 0.0)
                rows.append(identity(group, run) | {"tokens": tokens, "seconds": seconds} | row)
    return pd.DataFrame(rows)


def identity(group: Group, run: Run) -> dict[str, Any]:
    """The columns that identify a run."""
    return {"group": group.name, "seed": run.seed, "finished": run.finished, "folder": str(run.folder)}
