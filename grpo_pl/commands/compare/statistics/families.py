"""Conclusions from many comparisons at once."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from grpo_pl.commands.compare.statistics.over_seeds import LEVEL, Interval

Conclusion = Literal["higher", "lower", "equivalent", "not settled"]
"""What is settled of a difference."""


class Adjusted(NamedTuple):
    """The p of a comparison, adjusted for all tests of all comparisons."""

    different: float
    """That there is no difference."""
    equivalent: float | None
    """That the difference is at least the margin; None without a margin."""


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): p below a level holds for all comparisons at once."""
    return [adjusted.different for adjusted in step_down(ps)]


def step_down(different: Sequence[float], equivalent: Sequence[float] | None = None) -> list[Adjusted]:
    """Adjust the tests of differences and of equivalence of all comparisons, as one family.

    Shaffer's step-down procedure (1986, S1): the k-th smallest p is multiplied by the most hypotheses that
    can be true when the k - 1 before it are false. A difference cannot be 0 and at least the margin, so that
    a comparison has at most one true hypothesis, and none once all of its own are rejected. Without
    equivalence that is Holm's adjustment. All conclusions of a report are right with 1 - level.
    """
    tests = [(p, i, 0) for i, p in enumerate(different)]
    tests += [(p, i, 1) for i, p in enumerate(equivalent or [])]
    left = [1 + (equivalent is not None)] * len(different)
    adjusted = [[0.0, 0.0] for _ in different]
    highest = 0.0
    for p, i, which in sorted(tests):
        highest = max(highest, min(sum(map(bool, left)) * p, 1.0))
        adjusted[i][which] = highest
        left[i] -= 1
    return [Adjusted(d, None if equivalent is None else e) for d, e in adjusted]


def conclude(difference: float, adjusted: Adjusted) -> Conclusion:
    """What is settled of a difference; equivalent, if it is both shown and shown to be below the margin."""
    if adjusted.equivalent is not None and adjusted.equivalent <= LEVEL:
        return "equivalent"
    if adjusted.different > LEVEL:
        return "not settled"
    return "higher" if difference > 0 else "lower"


def conclude_by(interval: Interval, margin: float | None) -> Conclusion:
    """What an interval settles: that the difference is within the margin, or that it is not 0."""
    if interval.within(margin):
        return "equivalent"
    if interval.low <= 0 <= interval.high:
        return "not settled"
    return "higher" if interval.low > 0 else "lower"
