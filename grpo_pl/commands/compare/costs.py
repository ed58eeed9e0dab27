"""What a group's runs cost."""

from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from grpo_pl.commands.compare.groups import Group
from grpo_pl.commands.compare.runs import SECONDS, TOKENS, VALIDATION, Run

STAGES = ("sync", "generate", "score", "update")


class Cost(NamedTuple):
    """A quantity of a run that one has to pay."""

    name: str
    unit: str
    of: Callable[[Run], float | None]
    digits: int


def largest(metric: str, divisor: float = 1) -> Callable[[Run], float | None]:
    """The greatest value of a metric."""

    def of(run: Run) -> float | None:
        values = run.measured(metric)
        return max(values) / divisor if values else None

    return of


def typical(metric: str) -> Callable[[Run], float | None]:
    """The median over iterations: the first one pays for what is made once."""

    def of(run: Run) -> float | None:
        values = run.measured(metric)
        return median(values) if values else None

    return of


def total(metric: str, divisor: float = 1) -> Callable[[Run], float | None]:
    """The sum over iterations."""

    def of(run: Run) -> float | None:
        values = run.measured(metric)
        return sum(values) / divisor if values else None

    return of


MEMORY = Cost("peak memory", "GiB", largest("memory/peak_gib"), 2)
TIME = Cost("training", "s", total(SECONDS), 0)
COSTS = (
    Cost("models held", "", largest("memory/models"), 0),
    Cost("parameters", "M", largest("memory/parameters", 1e6), 1),
    MEMORY,
    *(Cost(stage, "s", typical(f"time/{stage}_s"), 2) for stage in STAGES),
    Cost("iteration", "s", typical(SECONDS), 2),
    Cost("tokens", "", total(TOKENS), 0),
    Cost("tokens a second", "", typical("time/tokens_per_s"), 0),
    TIME,
    Cost("validation", "s", total(VALIDATION), 0),
)
"""Of the process of rank 0, and of all ranks together for tokens, as `metrics.csv` has them."""


def cost_of(group: Group, cost: Cost) -> float | None:
    """Median over the group's finished runs that have measured it: one disturbed run moves it little."""
    values = [value for run in group.finished.values() if (value := cost.of(run)) is not None]
    return median(values) if values else None


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (cost, gain) that no other beats in one of the two and at least equals in the other."""
    best, front = float("-inf"), []
    for cost, gain in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if gain > best:
            best = gain
            front.append((cost, gain))
    return front
