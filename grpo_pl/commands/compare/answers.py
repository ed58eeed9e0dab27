"""The answers of a study: each variant against the base, or each effect of a factor."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np

from grpo_pl.commands.compare.comparison import Comparison, Effect, Result
from grpo_pl.commands.compare.costs import MEMORY, TIME, Cost
from grpo_pl.commands.compare.factors import effects_of_factors
from grpo_pl.commands.compare.statistics import LEVEL, Conclusion, Estimate, Interval, conclude_by, of_means
from grpo_pl.commands.compare.statistics.factorial import FactorEffect, Step
from grpo_pl.commands.compare.statistics.power import POWER

MOST_MORE = 1000
"""Seeds that nobody runs."""
Kind = Literal["variant", "effect", "interaction"]


@dataclass(frozen=True)
class Answer:
    """What is settled of one question of a study."""

    kind: Kind
    steps: tuple[Step, ...]
    """The levels of an effect or an interaction; empty for a variant."""
    variant: str
    """The name of a variant's group; empty for effects."""
    seeds: int
    gain: Interval | None
    """The difference of the metric; its interval holds for all questions of the kind at once, with 95 %. None
    without pairs."""
    verdict: Conclusion | None
    """None where there is no test."""
    more_seeds: int | None = None
    """How many more would settle it with a probability of 0.8, if the true effect is the measured one; None
    if it is settled, or if that is not known."""
    time: Interval | None = None
    """The ratio of the training times, over pairs; None where they were not measured."""
    memory: Interval | None = None
    """The ratio of the peak memories."""


def answers(comparison: Comparison, looks: Mapping[str, Interval] | None = None) -> list[Answer]:
    """The answers of a comparison: variants in their order, or main effects before interactions.

    Args:
        comparison: Of a study's runs.
        looks: Of a sequential study: question, as `name_of` has it, -> the interval that holds at all looks,
            which decides it.
    """
    found = of_factors(comparison) if comparison.factors else of_variants(comparison)
    decided = looks or {}
    return [
        at_look(each, decided[name_of(each)], comparison.margin) if name_of(each) in decided else each
        for each in found
    ]


def name_of(answer: Answer) -> str:
    """The question in short: a variant, `critic: none instead of value`, or `critic none x kl none`."""
    return effect_name(answer.steps) if answer.steps else answer.variant


def effect_name(steps: Sequence[Step]) -> str:
    """`critic: none instead of value`, or `critic none x reference kl`."""
    if len(steps) == 1:
        return f"{steps[0].factor}: {steps[0].level} instead of {steps[0].base}"
    return " x ".join(f"{step.factor} {step.level}" for step in steps)


def at_look(answer: Answer, interval: Interval, margin: float | None) -> Answer:
    """An answer that goes by the interval of a look."""
    return replace(answer, gain=interval, verdict=conclude_by(interval, margin), more_seeds=None)


def of_variants(comparison: Comparison) -> list[Answer]:
    """Each variant against the base."""
    many = max(sum(effect.conclusion is not None for effect in comparison.effects), 1)
    return [of_variant(comparison, effect, many) for effect in comparison.effects]


def of_variant(comparison: Comparison, effect: Effect, many: int) -> Answer:
    """A variant against the base, as one of so many that are tested."""
    base = comparison.results[0]
    differences = [effect.result.by_seed[seed] - base.by_seed[seed] for seed in effect.pairs]
    time, memory = (ratio(effect.result, base, effect.pairs, cost, many) for cost in (TIME, MEMORY))
    gain = effect.simultaneous or effect.test.difference
    more = None
    if effect.conclusion == "not settled" and gain is not None:
        more = more_seeds(differences, gain, comparison.margin, many)
    return Answer(
        "variant",
        (),
        effect.result.group.name,
        len(effect.pairs),
        gain,
        effect.conclusion,
        more,
        time,
        memory,
    )


def ratio(ours: Result, theirs: Result, seeds: Sequence[str], cost: Cost, many: int) -> Interval | None:
    """The geometric mean of a cost's ratios over pairs of runs, with Student's interval of its logarithm."""
    a, b = ({s: v for s, v in logarithms(r, cost).items() if s in seeds} for r in (ours, theirs))
    differences = np.array([a[seed] - b[seed] for seed in a if seed in b])
    return exponential(of_means(differences).interval(1 - LEVEL / many)) if len(differences) else None


def logarithms(result: Result, cost: Cost) -> dict[str, float]:
    """Seed -> the logarithm of its cost, of the runs that are compared and have measured it."""
    costs = {seed: cost.of(result.group.finished[seed]) for seed in result.by_seed}
    return {seed: math.log(value) for seed, value in costs.items() if value}


def exponential(interval: Interval) -> Interval:
    """A ratio from its logarithm; unbounded stays unbounded."""
    if math.isinf(interval.low):
        return Interval(math.exp(interval.mean), -math.inf, math.inf)
    return Interval(*map(math.exp, interval))


def of_factors(comparison: Comparison) -> list[Answer]:
    """Main effects, then interactions."""
    ratios = {
        cost: {
            effect.steps: exponential(effect.simultaneous)
            for effect in effects_of_factors(
                {result.group.name: logarithms(result, cost) for result in comparison.results}, None
            )[0]
        }
        for cost in (TIME, MEMORY)
    }
    tested = [len(effect.steps) for effect in comparison.factors if effect.p is not None]
    found = []
    for effect in comparison.factors:
        verdict, more = verdict_of(effect, comparison.margin), None
        if verdict == "not settled":
            many = tested.count(len(effect.steps))
            more = more_seeds(effect.by_seed, effect.simultaneous, comparison.margin, many)
        kind: Kind = "effect" if len(effect.steps) == 1 else "interaction"
        costs = [ratios[cost].get(effect.steps) for cost in (TIME, MEMORY)]
        seeds = len(effect.by_seed)
        found.append(Answer(kind, effect.steps, "", seeds, effect.simultaneous, verdict, more, *costs))
    return found


def verdict_of(effect: FactorEffect, margin: float | None) -> Conclusion | None:
    """What is settled of an effect; equivalent, if it is both shown and within the margin."""
    if effect.p_adjusted is None:
        return None
    if effect.simultaneous.within(margin):
        return "equivalent"
    if effect.p_adjusted > LEVEL:
        return "not settled"
    return "higher" if effect.interval.mean > 0 else "lower"


def more_seeds(
    differences: Sequence[float], simultaneous: Interval, margin: float | None, many: int
) -> int | None:
    """The fewest more seeds that would settle a difference with a probability of 0.8, if it is as measured.

    Settled is an interval that excludes 0 or lies within the margin, whichever is nearer. Its half-width is
    taken for two parts, added as squares: that of seeds, Student's, and that of problems, which more seeds
    leave as it is.

    Args:
        differences: One a seed.
        simultaneous: Their interval, at the level of so many comparisons.
        margin: The largest difference that does not matter; None declares none.
        many: The number of comparisons.

    Returns:
        None where they do not vary, or where `MOST_MORE` more would not do.
    """
    now = of_means(np.array(differences))
    if not now.tested:
        return None
    n, mean = len(differences), float(now.mean)
    goal = max(abs(mean), (margin or 0.0) - abs(mean))
    reserve = NormalDist().inv_cdf(POWER)

    def of_seeds(seeds: int) -> tuple[float, float]:
        error = now.error * math.sqrt(n / seeds)
        interval = Estimate(now.mean, error, np.ones(()), (seeds - 1, seeds - 1)).interval(1 - LEVEL / many)
        return interval.high - mean, float(error)

    rest = max(((simultaneous.high - simultaneous.low) / 2) ** 2 - of_seeds(n)[0] ** 2, 0.0)

    def settles(more: int) -> bool:
        half, error = of_seeds(n + more)
        return math.hypot(half, math.sqrt(rest)) + reserve * error < goal

    more = bisect_left(range(1, MOST_MORE + 1), x=True, key=settles) + 1
    return None if more > MOST_MORE else more
