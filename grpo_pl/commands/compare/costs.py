"""The costs of a group's runs."""

from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from grpo_pl.commands.compare.groups import Group
from grpo_pl.commands.compare.runs import SECONDS, TOKENS, VALIDATION, Run


class Cost(NamedTuple):
    """A cost of a run."""

    name: str
    unit: str
    digits: int
    metric: str
    over: Callable[[list[float]], float]
    """Reduces iterations: `max`, `sum`, or `median`, since the first one pays one-time costs."""
    divisor: float = 1

    def of(self, run: Run) -> float | None:
        """A run's cost; None where it was not measured."""
        values = run.measured(self.metric)
        return self.over(values) / self.divisor if values else None


MEMORY = Cost("peak memory", "GiB", 2, "memory/peak_gib", max)
TIME = Cost("training", "s", 0, SECONDS, sum)
STAGES = tuple(
    Cost(stage, "s", 2, f"time/{stage}_s", median) for stage in ("sync", "generate", "score", "update")
)
COSTS = (
    Cost("models held", "", 0, "memory/models", max),
    Cost("parameters", "M", 1, "memory/parameters", max, 1e6),
    MEMORY,
    *STAGES,
    Cost("iteration", "s", 2, SECONDS, median),
    Cost("tokens", "", 0, TOKENS, sum),
    Cost("tokens a second", "", 0, "time/tokens_per_s", median),
    TIME,
    Cost("validation", "s", 0, VALIDATION, sum),
)
"""As in `metrics.csv`: tokens of all ranks, memory of rank 0, seconds of rank 0 or means of ranks."""


def cost_of(group: Group, cost: Cost) -> float | None:
    """Median over the group's finished runs that have measured it: one disturbed run moves it little."""
    values = [value for run in group.finished.values() if (value := cost.of(run)) is not None]
    return median(values) if values else None


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front of (cost, gain), by cost."""
    best, front = float("-inf"), []
    for cost, gain in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if gain > best:
            best = gain
            front.append((cost, gain))
    return front
