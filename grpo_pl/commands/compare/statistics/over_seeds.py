"""Intervals, paired tests and effect sizes for few repetitions."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy import stats

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
ROUNDING = 1e-9
"""Differences of accuracies that vary by less do not vary."""


class Interval(NamedTuple):
    """An estimate with the bounds of its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def of_share(self) -> "Interval":
        """Cut off at 0 and 1, the bounds of a share; an unbounded interval stays so, for it tells nothing."""
        if math.isinf(self.low):
            return self
        return Interval(self.mean, max(self.low, 0.0), min(self.high, 1.0))

    def within(self, margin: float | None) -> bool:
        """Whether all of it is nearer to 0 than a margin; never, where none is declared."""
        return margin is not None and -margin < self.low and self.high < margin


class PairedTest(NamedTuple):
    """Statistics of the mean of paired differences; None where there are too few pairs."""

    difference: Interval | None
    """Student's; of one pair, the difference without an interval."""
    p: float | None
    """The p of the two-sided paired t-test."""
    p_ranks: float | None
    """The exact p of the two-sided Wilcoxon signed-rank test."""


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean and Student's interval: mean +- t(0.975, n - 1) std / sqrt(n); unbounded for one value."""
    centre = fmean(values)
    if len(values) < 2:
        return Interval(centre, -math.inf, math.inf)
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Interval(centre, centre - half, centre + half)


def paired_test(differences: Sequence[float]) -> PairedTest:
    """Test whether the mean of paired differences is 0.

    Differences that do not vary at all, as few seeds and few problems may give, have neither interval nor
    t-test: nothing in them says how far away another seed would be.
    """
    if not differences:
        return PairedTest(None, None, None)
    interval, p = mean_interval(differences), t_test(differences)
    if p is None:
        interval = Interval(interval.mean, -math.inf, math.inf)
    return PairedTest(interval, p, signed_ranks(differences) if len(differences) > 1 else None)


def t_test(differences: Sequence[float]) -> float | None:
    """The p of Student's two-sided test that their mean is 0; None for one, or if they do not vary."""
    n = len(differences)
    if n < 2 or (spread := stdev(differences)) < ROUNDING:
        return None
    return float(2 * stats.t.sf(abs(fmean(differences)) / spread * math.sqrt(n), n - 1))


def signed_ranks(differences: Sequence[float]) -> float:
    """The exact p of the two-sided Wilcoxon test; without zeros, and with mean ranks for ties.

    Up to 13 differences with ties or zeros all signs are gone through, beyond the normal approximation holds.
    """
    rounded = [round(d / ROUNDING) * ROUNDING for d in differences]  # or equal ones differ by their rounding
    if not any(rounded):
        return 1.0
    return float(stats.wilcoxon(rounded).pvalue)


def smallest_rank_p(pairs: int) -> float:
    """The least p that the exact two-sided Wilcoxon test can give: all differences of one sign, 2 / 2^n."""
    return 2.0 ** (1 - pairs)


def hedges_g(values: Sequence[float], base: Sequence[float]) -> float | None:
    """Hedges' g: the difference of means in units of the pooled standard deviation, corrected for few values.

    g = J(n1 + n2 - 2) (mean1 - mean2) / s_pooled, J(m) = Gamma(m / 2) / (sqrt(m / 2) Gamma((m - 1) / 2))
    (Hedges 1981, eq. 6e: the exact factor, not 1 - 3 / (4m - 1)). It says how far apart two groups of runs
    are, not two runs of one seed: pairing does not enter. None if a group has one value or nothing varies.
    """
    n1, n2 = len(values), len(base)
    if min(n1, n2) < 2:
        return None
    free = n1 + n2 - 2
    pooled = math.sqrt(((n1 - 1) * stdev(values) ** 2 + (n2 - 1) * stdev(base) ** 2) / free)
    if pooled < ROUNDING:
        return None
    correction = math.exp(math.lgamma(free / 2) - math.lgamma((free - 1) / 2)) / math.sqrt(free / 2)
    return correction * (fmean(values) - fmean(base)) / pooled


def newcombe(a: Interval, b: Interval) -> Interval:
    """The difference a - b of two shares, from their Wilson intervals (Newcombe 1998, method 10).

    Holds for independent problems. Two runs see the same ones, so it is rather too wide.
    """
    below = math.hypot(a.mean - a.low, b.high - b.mean)
    above = math.hypot(a.high - a.mean, b.mean - b.low)
    difference = a.mean - b.mean
    return Interval(difference, difference - below, difference + above)


def problems(share: Interval) -> float:
    """The number of problems behind a share, from its Wilson interval.

    With c = z^2 / n, its width is 2 / (1 + c) sqrt(c p (1 - p) + c^2 / 4): quadratic, with one positive root.
    """
    width, spread = share.high - share.low, share.mean * (1 - share.mean)
    a, b, c = width**2 - 1, 2 * width**2 - 4 * spread, width**2
    root = (-b - math.sqrt(b * b - 4 * a * c)) / (2 * a)
    return float(1.96**2 / root)
