"""Groups of runs, compared: final accuracies, and their paired differences from the base."""

from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from grpo_pl.commands.compare.differences import settings
from grpo_pl.commands.compare.groups import Group, group_runs
from grpo_pl.commands.compare.runs import ACCURACY, Paths, Run, read_runs
from grpo_pl.commands.compare.statistics import (
    Interval,
    PairedTest,
    hedges_g,
    holm,
    mean_interval,
    newcombe,
    paired_test,
    problems,
)
from grpo_pl.system.refusal import ConfigError


@dataclass(frozen=True)
class Result:
    """What a group's runs came to."""

    group: Group
    by_seed: dict[str, float]
    """Seed -> the last value of the metric, of finished runs."""
    over_seeds: Interval | None
    over_problems: Interval | None
    """Mean over runs of the interval that the number of validation problems alone gives."""


@dataclass(frozen=True)
class Effect:
    """A group's difference from the base."""

    result: Result
    pairs: tuple[str, ...]
    """Seeds that both have."""
    alone: tuple[str, ...]
    """Seeds that only one of them has."""
    test: PairedTest
    p_holm: float | None
    """`test.p`, adjusted for all comparisons of the report."""
    g: float | None
    """Hedges' g over the paired seeds."""
    over_problems: Interval | None
    """Mean difference with Newcombe's interval: as far as the problems alone tell."""


@dataclass(frozen=True)
class Comparison:
    """Everything that a report says."""

    metric: str
    results: list[Result]
    """The base first."""
    effects: list[Effect]
    """One for each group but the base."""
    problems: int | None
    """In the validation set."""
    remarks: list[str]

    @property
    def base(self) -> Group:
        """What the others are compared with."""
        return self.results[0].group

    @property
    def groups(self) -> list[Group]:
        """All groups, the base first."""
        return [result.group for result in self.results]


def compare(paths: Paths, base: str | None = None, metric: str = ACCURACY) -> Comparison:
    """Read runs and compare their last value of a metric.

    Args:
        paths: Run folders, folders with `seed-<n>` in them, or folders of studies.
        base: Name of the base group, or the folder of one of its runs; the first group where it is None.
        metric: A column of `metrics.csv`.

    Raises:
        ConfigError: If a folder is no run, if two runs are the same, if runs cannot be compared, or if
            none has measured the metric.
    """
    groups = group_runs(read_runs(paths), base)
    check_comparable(groups, metric)
    results = [result_of(group, metric) for group in groups]
    effects = with_holm([effect_of(result, results[0], metric) for result in results[1:]])
    known = [n for group in groups for run in group.finished.values() if (n := problems_of(run, metric))]
    return Comparison(metric, results, effects, known[0] if known else None, remarks(groups, effects))


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
    own = [i for run in group.finished.values() if (i := interval_of(run, metric)) is not None]
    over_seeds = mean_interval(list(by_seed.values())) if by_seed else None
    if over_seeds is None or not own:
        return Result(group, by_seed, over_seeds, None)
    return Result(group, by_seed, over_seeds.of_share(), average(own))


def average(intervals: list[Interval]) -> Interval:
    """Means of the estimates and of their ends."""
    return Interval(*map(fmean, zip(*intervals, strict=True)))


def interval_of(run: Run, metric: str) -> Interval | None:
    """The interval that the run's last validation gave."""
    values = [run.last(key) for key in (metric, f"{metric}_low", f"{metric}_high")]
    measured = [value for value in values if value is not None]
    return Interval(*measured) if len(measured) == len(values) else None


def problems_of(run: Run, metric: str) -> int | None:
    """How many problems stand behind a run's last value; None where it is no share of problems solved."""
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
    test = paired_test([result.by_seed[seed] - base.by_seed[seed] for seed in pairs])
    g = hedges_g([result.by_seed[s] for s in pairs], [base.by_seed[s] for s in pairs])
    ours, theirs = ([interval_of(r.group.finished[s], metric) for s in pairs] for r in (result, base))
    each = [newcombe(a, b) for a, b in zip(ours, theirs, strict=True) if a and b]
    return Effect(result, pairs, alone, test, None, g, average(each) if each else None)


def with_holm(effects: list[Effect]) -> list[Effect]:
    """The effects with their p adjusted for each other; one without a test is none of the comparisons."""
    adjusted = iter(holm([effect.test.p for effect in effects if effect.test.p is not None]))
    return [e if e.test.p is None else replace(e, p_holm=next(adjusted)) for e in effects]


def remarks(groups: list[Group], effects: list[Effect]) -> list[str]:
    """What a reader must know: runs that are not in the numbers, and pairs that are missing."""
    said = [
        f"{g.name}, seed {r.seed}, {r.problem} ({r.folder})." for g in groups for r in g.runs if r.problem
    ]
    if said:
        said.append("Runs that did not come to their end are in no mean and no test.")
    if len(groups) == 1:
        said.append("All runs have the same settings: there is nothing to compare them with.")
    base = groups[0].name
    for effect in effects:
        name = effect.result.group.name
        if not effect.pairs:
            said.append(
                f"{name} and {base} have no finished runs of a common seed: there is no difference to test."
            )
        elif effect.alone:
            seeds = ", ".join(effect.alone)
            said.append(f"Seed {seeds}: only {name} or only {base} has it, so it is not in their difference.")
    return said
