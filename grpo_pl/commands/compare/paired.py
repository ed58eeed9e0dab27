"""The verdicts of runs as numbers on problems: what pairs two runs problem by problem."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from grpo_pl.commands.compare.curves import path
from grpo_pl.commands.compare.runs import Run
from grpo_pl.commands.compare.statistics import area_under
from grpo_pl.functional import pass_at_k
from grpo_pl.runs.verdicts import ProblemVerdicts


class OnProblems(NamedTuple):
    """A number on each of `P` problems."""

    problems: tuple[str, ...]
    numbers: Float[np.ndarray, "P"]


Measure = Callable[[Run, str], OnProblems | None]
"""What a run has, in a metric, on each problem; None where no verdicts tell it."""


def last_value(run: Run, metric: str) -> OnProblems | None:
    """The last value of the metric on each problem: their mean is the run's."""
    measured = [int(row["iteration"]) for row in run.rows if metric in row]
    return value_at(run, metric, measured[-1]) if measured else None


def area(run: Run, metric: str) -> OnProblems | None:
    """The area under each problem's curve over iterations: their mean is the run's."""
    measured = [int(row["iteration"]) for row in run.rows if metric in row]
    values = [value for i in measured if (value := value_at(run, metric, i)) is not None]
    if len(values) < len(measured) or len({value.problems for value in values}) != 1:
        return None
    areas = area_under(np.array(measured, dtype=float), np.array([v.numbers for v in values]).T)
    return None if areas is None else OnProblems(values[0].problems, areas)


def value_at(run: Run, metric: str, iteration: int) -> OnProblems | None:
    """The metric on each problem in the validation of an iteration."""
    of_iteration = run.verdicts.get(iteration, {})
    if metric in of_iteration:
        return OnProblems(of_iteration[metric].problems, of_iteration[metric].solved.mean(1))
    if sampled := re.fullmatch(r"val/(.+)_pass@(\d+)", metric):
        verdicts = of_iteration.get(f"val_sampled/{sampled[1]}")
        return None if verdicts is None else passed(verdicts, int(sampled[2]))
    return None


def passed(verdicts: ProblemVerdicts, k: int) -> OnProblems:
    """pass@k of each problem."""
    return OnProblems(verdicts.problems, np.array([pass_at_k(v, k) for v in verdicts.solved.tolist()]))


def on_common_problems(runs: Sequence[Run], metric: str, of: Measure) -> Float[np.ndarray, "runs P"] | None:
    """What each run has on each problem; None unless all have verdicts on the same problems, two or more."""
    found = [of(run, metric) for run in runs]
    known = [one for one in found if one is not None]
    if len(known) < len(found) or len({one.problems for one in known}) != 1 or len(known[0].problems) < 2:
        return None
    return np.array([one.numbers for one in known])


def area_of(run: Run, metric: str, along: str | None = None) -> float | None:
    """The area under a run's curve over iterations, or over the sum of another metric so far."""
    found = area_under(*path(run, metric, along))
    return None if found is None else float(found)
