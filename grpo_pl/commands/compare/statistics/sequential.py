"""Group-sequential tests: looks at a study under way that keep its error rate, as pure functions."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from grpo_pl.commands.compare.statistics import LEVEL, Interval, mean_interval, t_test

POINTS, HALVINGS = 400, 60
FARTHEST = 38.0
"""Beyond it a normal tail is 0 in double precision."""


def spent(fraction: float, level: float = LEVEL) -> float:
    """The error to spend up to a fraction of the seeds: 4 - 4 Phi(z(1 - level / 4) / sqrt(fraction)).

    Lan & DeMets (1983), the function that resembles O'Brien and Fleming's boundary, half the level on each
    side: little is spent at first, so that the last look is nearly as if it was the only one.
    """
    return float(4 * stats.norm.sf(stats.norm.isf(level / 4) / np.sqrt(fraction)))


def look_levels(looks: Sequence[int], level: float = LEVEL) -> list[float]:
    """The level of the two-sided test at each look; all looks together err with `level` at most.

    The boundary of each look spends what the spending function adds there, by recursive integration over the
    paths that no look before has ended (Armitage, McPherson & Rowe 1969; Gauss-Legendre with 400 points). It
    is computed for normal sums and taken as a level, which a t-test meets with its own quantile (Jennison &
    Turnbull, Group Sequential Methods, sec. 4.4). By simulation that keeps the error from five seeds on
    (tests/commands/compare/test_sequential.py).

    Args:
        looks: The number of seeds at each look, growing.
        level: Of all looks together, after the correction for many comparisons.
    """
    nodes, node_weights = np.polynomial.legendre.leggauss(POINTS)
    paths = Paths(np.zeros(1), np.ones(1))
    levels, before, already = [], 0, 0.0
    for look in looks:
        to_spend, root = spent(look / looks[-1], level) - already, np.sqrt(look)
        spread = float(np.sqrt(look - before))
        low, high = 0.0, FARTHEST
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if paths.leave(middle * root, spread) > to_spend else (low, middle)
        levels.append(float(2 * stats.norm.sf(high)))
        paths = paths.on(nodes * high * root, node_weights * high * root, spread)
        before, already = look, already + to_spend
    return levels


class Paths(NamedTuple):
    """Where the sum over seeds can be that no look has ended."""

    at: Float[np.ndarray, "points"]
    mass: Float[np.ndarray, "points"]
    """The probability at each point."""

    def leave(self, edge: float, spread: float) -> float:
        """The probability that the next seeds, of this spread, carry the sum beyond +-edge."""
        above, below = stats.norm.sf((edge - self.at) / spread), stats.norm.cdf((-edge - self.at) / spread)
        return float(self.mass @ (above + below))

    def on(
        self, points: Float[np.ndarray, "new"], widths: Float[np.ndarray, "new"], spread: float
    ) -> "Paths":
        """The paths that the next seeds carry to new points, each standing for a width."""
        density = stats.norm.pdf((points[:, None] - self.at) / spread) @ self.mass / spread
        return Paths(points, density * widths)


def repeated_interval(values: Sequence[float], level: float) -> Interval:
    """The interval of a mean at the level of its look: all looks' intervals hold at once.

    Jennison & Turnbull (1989). Unbounded for one value and for values that do not vary.
    """
    if t_test(values) is None:
        return Interval(fmean(values), -math.inf, math.inf)
    return mean_interval(values, 1 - level)
