"""The power of a paired t-test before it is made, as pure functions of a standard deviation."""

import math

from scipy import optimize, stats

from grpo_pl.commands.compare.statistics import CONFIDENCE, LEVEL, Interval

POWER = 0.8
MOST_PAIRS = 100_000


def power(difference: float, deviation: float, pairs: int, level: float = LEVEL) -> float:
    """The probability that the two-sided t-test of paired differences finds a true difference.

    P(|T| > t(1 - level / 2, n - 1)), with T noncentral t around difference sqrt(n) / deviation (Cohen,
    Statistical Power Analysis, 2nd ed., sec. 2.2, exact and not his approximation).

    Args:
        difference: The true mean of the differences.
        deviation: Their standard deviation over seeds.
        pairs: The number of seeds; one alone finds nothing.
        level: The test's, after its correction for many comparisons.
    """
    if pairs < 2:
        return 0.0
    free, centre = pairs - 1, abs(difference) * math.sqrt(pairs) / deviation
    critical = float(stats.t.ppf(1 - level / 2, free))
    if centre > critical + 40:  # beyond the range of scipy's noncentral t, and certain
        return 1.0
    wrong_side = float(stats.nct.cdf(-critical, free, centre))  # NaN where scipy cannot tell it from 0
    return float(stats.nct.sf(critical, free, centre)) + (0.0 if math.isnan(wrong_side) else wrong_side)


def detectable(deviation: float, pairs: int, level: float = LEVEL, wanted: float = POWER) -> float:
    """The smallest true difference that the test finds with a wanted probability; infinite for one pair."""
    if pairs < 2:
        return math.inf
    high = deviation
    while power(high, deviation, pairs, level) < wanted:
        high *= 2
    return float(optimize.brentq(lambda d: power(d, deviation, pairs, level) - wanted, 0.0, high))


def pairs_needed(difference: float, deviation: float, level: float = LEVEL, wanted: float = POWER) -> int:
    """The fewest pairs with which the test finds a difference as often as wanted; `MOST_PAIRS` at most."""
    low, high = 1, 2
    while power(difference, deviation, high, level) < wanted:
        low, high = high, 2 * high
        if high >= MOST_PAIRS:
            return MOST_PAIRS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, deviation, middle, level) >= wanted else (middle, high)
    return high


def deviation_interval(deviation: float, free: int) -> Interval:
    """The interval of a standard deviation: s sqrt(free / chi2(q, free)) for q = 0.975 and 0.025.

    Args:
        deviation: The estimate, s.
        free: Its degrees of freedom; the seeds - 1.
    """
    low, high = (deviation * math.sqrt(free / q) for q in stats.chi2.ppf(_ENDS, free))
    return Interval(deviation, low, high)


_ENDS = [(1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2]
