"""Words for numbers and findings."""

from grpo_pl.commands.compare.comparison import Comparison, Effect
from grpo_pl.commands.compare.costs import MEMORY, TIME, Cost, cost_of
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


def tested_interval(effect: Effect) -> Interval | None:
    """The interval that the verdict goes with, not adjusted for other comparisons."""
    return effect.estimate and effect.estimate.interval()


def finding(comparison: Comparison, effect: Effect) -> str:
    """A group's difference and costs in a sentence."""
    name, base = effect.result.group.name, comparison.base.name
    difference = effect.test.difference
    if difference is None:
        return f"{name}: no finished run shares a seed with {base}."
    if abs(difference.mean) < 5e-4:
        where = f"ends where {base} does"
    else:
        direction = "above" if difference.mean > 0 else "below"
        where = f"ends {number(abs(difference.mean))} {direction} {base}"
    interval = ends(tested_interval(effect), sign=True)
    evidence = [] if interval == NONE else [f"95 % {interval}"]
    evidence.append(f"{len(effect.pairs)} pair{'s' if len(effect.pairs) > 1 else ''}")
    if effect.p_holm is not None:
        p = p_value(effect.p_holm)
        evidence.append(f"adjusted p {p}" if p.startswith("<") else f"adjusted p = {p}")
    outcome = f"{name} {where} ({', '.join(evidence)}): {verdict(comparison, effect)}."
    costs = [text for cost in (MEMORY, TIME) if (text := relative(comparison, effect, cost))]
    return outcome + (f" It takes {' and '.join(costs)}." if costs else "")


def effect_name(effect: FactorEffect) -> str:
    """`critic: none against value`, or `critic none x reference kl`."""
    if len(effect.steps) == 1:
        return f"{effect.steps[0].factor}: {effect.steps[0].level} against {effect.steps[0].base}"
    return " x ".join(f"{step.factor} {step.level}" for step in effect.steps)


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
    within = -margin < effect.simultaneous.low and effect.simultaneous.high < margin
    claims = [direction] * different + [f"within +-{margin:g}"] * within
    return ", ".join(claims) or "not settled"


def factor_finding(effect: FactorEffect, margin: float | None) -> str:
    """An effect of a factor in a sentence."""
    evidence = [f"{number(effect.interval.mean, sign=True)}"]
    if (interval := ends(effect.simultaneous, sign=True)) != NONE:
        evidence.append(f"95 % of all at once {interval}")
    evidence.append(f"{len(effect.by_seed)} seed{'s' if len(effect.by_seed) > 1 else ''}")
    return f"{effect_name(effect)}: {factor_verdict(effect, margin)} ({', '.join(evidence)})."


def relative(comparison: Comparison, effect: Effect, cost: Cost) -> str:
    """A cost as a multiple of the base's."""
    ours, theirs = cost_of(effect.result.group, cost), cost_of(comparison.base, cost)
    if ours is None or not theirs:
        return ""
    what = "training time" if cost is TIME else cost.name
    return f"{ours / theirs:.2f} times the {what}"
