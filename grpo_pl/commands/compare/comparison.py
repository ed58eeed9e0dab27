"""Compares groups of runs: final accuracies, and their paired differences from the base."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np

from grpo_pl.commands.compare.differences import settings
from grpo_pl.commands.compare.factors import effects_of_factors
from grpo_pl.commands.compare.groups import Group, group_runs
from grpo_pl.commands.compare.paired import Measure, area, area_of, last_value, on_common_problems
from grpo_pl.commands.compare.runs import ACCURACY, Paths, Run, read_runs
from grpo_pl.commands.compare.statistics import (
    LEVEL,
    Conclusion,
    Estimate,
    Interval,
    PairedTest,
    conclude,
    crossed,
    hedges_g,
    iqm_interval,
    mean_interval,
    newcombe,
    of_means,
    paired_test,
    probability_of_improvement,
    problems,
    step_down,
)
from grpo_pl.commands.compare.statistics.factorial import FactorEffect
from grpo_pl.system.refusal import ConfigError


@dataclass(frozen=True)
class Result:
    """A group's final values of the metric."""

    group: Group
    by_seed: dict[str, float]
    """Seed -> the last value of the metric, of finished runs."""
    over_seeds: Interval | None
    over_problems: Interval | None
    """Mean over runs of the interval by the number of validation problems alone."""
    iqm: Interval | None = None
    """The interquartile mean over seeds, with its bootstrap interval."""
    area: Interval | None = None
    """The area under the curve over iterations: mean over seeds, with Student's interval."""


@dataclass(frozen=True)
class Effect:
    """A group's difference from the base."""

    result: Result
    pairs: tuple[str, ...]
    """Seeds that both have."""
    alone: tuple[str, ...]
    """Seeds that only one of them has."""
    test: PairedTest
    """Over seeds alone: for these problems."""
    estimate: Estimate | None
    """What the verdict goes by: over problems and seeds where verdicts are kept, else over seeds alone; None
    without pairs."""
    on_problems: bool
    """Whether it is over problems and seeds."""
    g: float | None
    """Hedges' g over the paired seeds."""
    over_problems: Interval | None
    """Mean difference with Newcombe's interval, by the number of problems alone."""
    area: Interval | None
    """The difference of the areas under the curves over iterations."""
    improvement: Interval | None
    """The probability that a run is better than one of the base."""
    p_holm: float | None = None
    """The p of `estimate`, adjusted for all comparisons of the report."""
    p_equivalent: float | None = None
    """The adjusted p of the test that the difference is at least the margin; None without a margin."""
    simultaneous: Interval | None = None
    """The interval of `estimate` that holds for all comparisons at once (Bonferroni's)."""
    conclusion: Conclusion | None = None
    """None where there is no test."""


@dataclass(frozen=True)
class Comparison:
    """The content of a report."""

    metric: str
    results: list[Result]
    """The base first."""
    effects: list[Effect]
    """One for each group but the base."""
    problems: int | None
    """In the validation set."""
    remarks: list[str]
    factors: list[FactorEffect] = field(default_factory=list)
    """Of a factorial study: main effects and interactions."""
    margin: float | None = None
    """The largest difference that does not matter; None if none was declared."""

    @property
    def base(self) -> Group:
        """The group that the others are compared with."""
        return self.results[0].group

    @property
    def groups(self) -> list[Group]:
        """All groups, the base first."""
        return [result.group for result in self.results]


def compare(
    paths: Paths, base: str | None = None, metric: str = ACCURACY, margin: float | None = None
) -> Comparison:
    """Read runs and compare their last value of a metric.

    Args:
        paths: Run folders, folders with `seed-<n>` in them, or folders of studies.
        base: Name of the base group, or the folder of one of its runs; None for the first group.
        metric: A column of `metrics.csv`.
        margin: The largest difference of the metric that does not matter; None declares none.

    Raises:
        ConfigError: If a folder is no run, if two runs are the same, if runs cannot be compared, or if none
            has measured the metric.
    """
    groups = group_runs(read_runs(paths), base)
    check_comparable(groups, metric)
    results = [result_of(group, metric) for group in groups]
    effects = concluded([effect_of(result, results[0], metric) for result in results[1:]], margin)
    known = [n for group in groups for run in group.finished.values() if (n := problems_of(run, metric))]
    of = {result.group.name: result for result in results}
    factors, more = effects_of_factors(
        {name: result.by_seed for name, result in of.items()},
        margin,
        lambda runs: on_common_problems(
            [of[name].group.finished[seed] for name, seed in runs], metric, last_value
        ),
    )
    notes = [*remarks(groups, effects), *without_verdicts(effects, metric), *more]
    return Comparison(metric, results, effects, known[0] if known else None, notes, factors, margin)


def check_comparable(groups: list[Group], metric: str) -> None:
    """Refuse runs of different jobs or validation sets, and a metric that no run has."""
    started = [group.runs[0] for group in groups if group.runs[0].config]
    for key in ("job", "data.val"):
        for run in started[1:]:
            if setting(run, key) != setting(started[0], key):
                raise ConfigError(
                    f"compare: {started[0].folder} and {run.folder} have different {key}, so that their "
                    "results mean different things: compare runs of one"
                )
    measured = {key for group in groups for run in group.runs for row in run.rows for key in row}
    if metric not in measured:
        has = ", ".join(sorted(k.removesuffix("_low") for k in measured if k.endswith("_low"))) or "none"
        raise ConfigError(f"compare: --metric {metric}: no run has measured it; they have {has}")


def setting(run: Run, key: str) -> Any:
    """A value of a run's settings."""
    value: Any = settings(run)
    for name in key.split("."):
        value = (value or {}).get(name)
    return value


def result_of(group: Group, metric: str) -> Result:
    """A group's last values of the metric."""
    by_seed = {s: v for s, run in group.finished.items() if (v := run.last(metric)) is not None}
    of_runs = [i for run in group.finished.values() if (i := interval_of(run, metric)) is not None]
    if not by_seed:
        return Result(group, by_seed, None, None)
    areas = [a for run in group.finished.values() if (a := area_of(run, metric)) is not None]
    over_seeds, of_curve = mean_interval(list(by_seed.values())), mean_interval(areas) if areas else None
    if of_runs:
        over_seeds, of_curve = over_seeds.of_share(), of_curve and of_curve.of_share()
    iqm = iqm_interval(list(by_seed.values()))
    return Result(group, by_seed, over_seeds, average(of_runs) if of_runs else None, iqm, of_curve)


def average(intervals: list[Interval]) -> Interval:
    """The means of the estimates and of their bounds."""
    return Interval(*map(fmean, zip(*intervals, strict=True)))


def interval_of(run: Run, metric: str) -> Interval | None:
    """The Wilson interval of the run's last validation."""
    values = [run.last(key) for key in (metric, f"{metric}_low", f"{metric}_high")]
    measured = [value for value in values if value is not None]
    return Interval(*measured) if len(measured) == len(values) else None


def problems_of(run: Run, metric: str) -> int | None:
    """The number of problems behind a run's last value; None unless it is a share of solved problems."""
    interval = interval_of(run, metric)
    if interval is None or not 0 < interval.high - interval.low < 1:
        return None
    number = problems(interval)
    solved = number * interval.mean
    whole = abs(number - round(number)) < 1e-3 * number and abs(solved - round(solved)) < 0.02
    return round(number) if whole else None


def effect_of(result: Result, base: Result, metric: str) -> Effect:
    """A group's difference from the base, seed by seed."""
    pairs = tuple(seed for seed in base.by_seed if seed in result.by_seed)
    alone = tuple(dict.fromkeys(seed for seed in (*base.by_seed, *result.by_seed) if seed not in pairs))
    differences = [result.by_seed[seed] - base.by_seed[seed] for seed in pairs]
    runs = [[r.group.finished[seed] for seed in pairs] for r in (result, base)]
    ours, theirs = ([interval_of(run, metric) for run in of_group] for of_group in runs)
    each = [newcombe(a, b) for a, b in zip(ours, theirs, strict=True) if a and b]
    over_both = crossed_estimate(runs[0], runs[1], metric, last_value)
    areas = [[area_of(run, metric) for run in of_group] for of_group in runs]
    gains = [a - b for a, b in zip(*areas, strict=True) if a is not None and b is not None]
    values = [list(r.by_seed.values()) for r in (result, base)]
    of_areas = crossed_estimate(runs[0], runs[1], metric, area) or (
        of_means(np.array(gains)) if gains else None
    )
    return Effect(
        result,
        pairs,
        alone,
        paired_test(differences),
        over_both or (of_means(np.array(differences)) if pairs else None),
        over_both is not None,
        hedges_g(*([r.by_seed[s] for s in pairs] for r in (result, base))),
        average(each) if each else None,
        of_areas and of_areas.interval(),
        probability_of_improvement(*values) if all(values) else None,
    )


def crossed_estimate(ours: Sequence[Run], theirs: Sequence[Run], metric: str, of: Measure) -> Estimate | None:
    """The difference over problems and seeds; None without verdicts on common problems, or for one pair."""
    if len(ours) < 2:
        return None
    numbers = on_common_problems([*ours, *theirs], metric, of)
    return None if numbers is None else crossed(numbers[: len(ours)] - numbers[len(ours) :])


def concluded(effects: list[Effect], margin: float | None) -> list[Effect]:
    """The effects with what is settled of all of them at once; an effect without a test is not counted."""
    tested = {i: e.estimate for i, e in enumerate(effects) if e.estimate is not None and e.estimate.tested}
    equivalent = None if margin is None else [float(e.p_outside(margin)) for e in tested.values()]
    adjusted = step_down([float(e.p_of()) for e in tested.values()], equivalent)
    found = list(effects)
    for (i, estimate), ps in zip(tested.items(), adjusted, strict=True):
        found[i] = replace(
            effects[i],
            p_holm=ps.different,
            p_equivalent=ps.equivalent,
            simultaneous=estimate.interval(1 - LEVEL / len(tested)),
            conclusion=conclude(float(estimate.mean), ps),
        )
    return found


def without_verdicts(effects: list[Effect], metric: str) -> list[str]:
    """Comparisons that verdicts could not sharpen, where some runs have them."""
    return [
        f"{effect.result.group.name}: not all of its pairs have verdicts on the same problems, so it is "
        "tested over seeds alone."
        for effect in effects
        if not effect.on_problems and len(effect.pairs) > 1
        if any(last_value(run, metric) for run in effect.result.group.finished.values())
    ]


def remarks(groups: list[Group], effects: list[Effect]) -> list[str]:
    """Runs that are not in the numbers, and pairs that are missing."""
    sentences = [
        f"{g.name}, seed {r.seed}, {r.problem} ({r.folder})." for g in groups for r in g.runs if r.problem
    ]
    if sentences:
        sentences.append("Runs that did not come to their end are in no mean and no test.")
    if len(groups) == 1:
        sentences.append("All runs have the same settings: there is nothing to compare them with.")
    base = groups[0].name
    for effect in effects:
        name = effect.result.group.name
        if not effect.pairs:
            sentences.append(
                f"{name} and {base} have no finished runs of a common seed: there is no difference to test."
            )
        elif effect.alone:
            sentences.append(
                f"Seed {', '.join(effect.alone)}: only {name} or only {base} has it, so it is not in their "
                "difference."
            )
    return sentences
