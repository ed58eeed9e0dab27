"""Metrics over the course of training, over the seeds of a group."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grpo_pl.commands.compare.groups import Group
from grpo_pl.commands.compare.runs import Run
from grpo_pl.commands.compare.statistics import mean_interval

Numbers = NDArray[np.float64]
GRID = 60
"""Points of a curve over tokens or seconds, where no two runs measure at the same places."""


@dataclass(frozen=True)
class Curve:
    """A metric of a group's finished runs: mean, 95 % confidence band over seeds, and each run alone."""

    x: Numbers
    mean: Numbers
    low: Numbers | None
    """None for a single run, which has no spread."""
    high: Numbers | None
    runs: tuple[tuple[Numbers, Numbers], ...]
    unfinished: tuple[tuple[Numbers, Numbers], ...]
    """Runs outside mean and band."""


def path(run: Run, metric: str, along: str | None) -> tuple[Numbers, Numbers]:
    """A metric of a run against iterations, or against the sum of another metric so far."""
    total, x, y = 0.0, [], []
    for row in run.rows:
        total = row["iteration"] if along is None else total + row.get(along, 0.0)
        if np.isfinite(row.get(metric, np.nan)):
            x.append(total)
            y.append(row[metric])
    return np.asarray(x), np.asarray(y)


def curve(group: Group, metric: str, along: str | None = None) -> Curve | None:
    """A group's curve; None where no run has measured it.

    Runs that measured at different places are interpolated linearly over the range that they have in common.
    """
    done = {run.folder for run in group.finished.values()}
    paths = [(run, path(run, metric, along)) for run in group.runs]
    runs = [p for run, p in paths if run.folder in done and len(p[0])]
    unfinished = tuple(p for run, p in paths if run.folder not in done and len(p[0]))
    nothing: Any = np.empty(0)
    if not runs:
        return Curve(nothing, nothing, None, None, (), unfinished) if unfinished else None
    x = runs[0][0]
    if any(len(other) != len(x) or np.any(other != x) for other, _ in runs):
        first, last = max(r[0][0] for r in runs), min(r[0][-1] for r in runs)
        x = np.linspace(first, max(first, last), GRID)
    intervals = np.array([mean_interval(at) for at in np.array([np.interp(x, *r) for r in runs]).T.tolist()])
    mean, low, high = intervals.T
    banded = len(runs) > 1
    return Curve(x, mean, low if banded else None, high if banded else None, tuple(runs), unfinished)


def range_of_runs(curves: list[Curve]) -> tuple[float, float] | None:
    """Least and greatest value of any run: the range of a picture, however wide a band of two seeds is."""
    values = [y for c in curves for _, y in (*c.runs, *c.unfinished)]
    return (float(min(y.min() for y in values)), float(max(y.max() for y in values))) if values else None
