"""Words for numbers and findings."""

from grpo_pl.commands.compare.comparison import Comparison, Effect
from grpo_pl.commands.compare.statistics import LEVEL, Interval
from grpo_pl.commands.compare.statistics.factorial import FactorEffect

NONE = "-"


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number with thousands separators; a dash for None."""
    return NONE if value is None else f"{value:{'+' if sign else ''},.{digits}f}"


def p_value(p: float | None) -> str:
    """Three digits, or `<0.001`."""
    return NONE if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def of_mean(interval: Interval | None) -> float | None:
    """The estimate, if there is one."""
    return interval.mean if interval else None


def ends(interval: Interval | None, sign: bool = False) -> str:
    """`0.694 to 0.756`; a dash where the interval is unbounded."""
    if interval is None or interval.low == float("-inf"):
        return NONE
    return f"{number(interval.low, sign=sign)} to {number(interval.high, sign=sign)}"


def verdict(comparison: Comparison, effect: Effect) -> str:
    """What is settled at the 5 % level, corrected for all comparisons."""
    if not effect.pairs:
        return "no pairs"
    if len(effect.pairs) == 1:
        return "one pair: not known"
    if effect.conclusion is None:
        return "every pair alike: no test"
    if effect.conclusion == "equivalent":
        return f"equivalent within +-{comparison.margin:g}"
    if effect.conclusion == "not settled":
        return "no difference shown" if comparison.margin is None else "not settled"
    if comparison.results[0].over_problems is None:  # no accuracy: nobody knows which way is better
        return effect.conclusion
    return "better" if effect.conclusion == "higher" else "worse"


def factor_verdict(effect: FactorEffect, margin: float | None) -> str:
    """What is settled of an effect at the 5 % level, corrected for its family."""
    if len(effect.by_seed) == 1:
        return "one seed: not known"
    if effect.p_adjusted is None:
        return "every seed alike: no test"
    different = effect.p_adjusted <= LEVEL
    direction = "higher" if effect.interval.mean > 0 else "lower"
    if margin is None:
        return direction if different else "no difference shown"
    within = effect.simultaneous.within(margin)
    claims = [direction] * different + [f"within +-{margin:g}"] * within
    return ", ".join(claims) or "not settled"
