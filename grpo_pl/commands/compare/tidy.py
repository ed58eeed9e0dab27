"""Tables of runs for pandas: one row a run, a run and iteration, or a comparison with the base."""

from typing import Any

import pandas as pd

from grpo_pl.commands.compare.comparison import Effect, compare
from grpo_pl.commands.compare.costs import COSTS
from grpo_pl.commands.compare.groups import Group, group_runs
from grpo_pl.commands.compare.paired import area_of
from grpo_pl.commands.compare.runs import ACCURACY, SECONDS, TOKENS, Paths, Run, read_runs
from grpo_pl.commands.compare.statistics import Interval


def table(paths: Paths, base: str | None = None) -> pd.DataFrame:
    """One row a run: group, seed, what differs between the groups, costs, and each metric.

    A metric has its last value; those of validation also the area under their curve, over iterations
    (`area/<metric>`) and over tokens generated (`area_by_tokens/<metric>`).
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
            areas = areas_of(run, [key for key in metrics if f"{key}_low" in metrics])
            rows.append(identity(group, run) | {"problem": run.problem} | settings | costs | metrics | areas)
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


def effects(
    paths: Paths, base: str | None = None, metric: str = ACCURACY, margin: float | None = None
) -> pd.DataFrame:
    """One row a group but the base: its difference with all intervals and tests, and what is settled.

    The arguments and what is refused are as in `compare`; intervals have the columns `<name>_low` and
    `<name>_high`.
    """
    comparison = compare(paths, base, metric, margin)
    return pd.DataFrame([effect_row(e) | {"base": comparison.base.name} for e in comparison.effects])


def effect_row(effect: Effect) -> dict[str, Any]:
    """The columns of a comparison with the base."""
    estimate = effect.estimate
    intervals = {
        "difference_over_seeds": effect.test.difference,
        "difference": estimate and estimate.interval(),
        "difference_all_at_once": effect.simultaneous,
        "area": effect.area,
        "improvement": effect.improvement,
    }
    return {
        "group": effect.result.group.name,
        "pairs": len(effect.pairs),
        "on_problems": effect.on_problems,
        **{name: value for key, interval in intervals.items() for name, value in columns(key, interval)},
        "p_seeds": effect.test.p,
        "p_ranks": effect.test.p_ranks,
        "p": float(estimate.p_of()) if estimate is not None and estimate.tested else None,
        "p_adjusted": effect.p_holm,
        "p_equivalent_adjusted": effect.p_equivalent,
        "hedges_g": effect.g,
        "conclusion": effect.conclusion,
    }


def columns(name: str, interval: Interval | None) -> list[tuple[str, float | None]]:
    """An interval as three columns."""
    values = interval or (None, None, None)
    return list(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def areas_of(run: Run, metrics: list[str]) -> dict[str, float | None]:
    """The areas under the curves of metrics."""
    of_iterations = {f"area/{metric}": area_of(run, metric) for metric in metrics}
    return of_iterations | {f"area_by_tokens/{metric}": area_of(run, metric, TOKENS) for metric in metrics}


def identity(group: Group, run: Run) -> dict[str, Any]:
    """The columns that identify a run."""
    return {"group": group.name, "seed": run.seed, "finished": run.finished, "folder": str(run.folder)}
