"""What a study will be able to tell, from a pilot: said before it runs."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from grpo_pl.commands.ablate.study import Study
from grpo_pl.commands.compare.comparison import Comparison, compare
from grpo_pl.commands.compare.runs import read_runs
from grpo_pl.commands.compare.statistics import LEVEL, ROUNDING
from grpo_pl.commands.compare.statistics.factorial import contrasts
from grpo_pl.commands.compare.statistics.power import (
    MOST_PAIRS,
    POWER,
    detectable,
    deviation_interval,
    pairs_needed,
)
from grpo_pl.commands.compare.statistics.sequential import look_levels
from grpo_pl.system.refusal import ConfigError

DIFFERENCES = 0.02, 0.05, 0.1
FEW = 5
"""Degrees of freedom below which a standard deviation is known to a factor of two at best."""


class Spread(NamedTuple):
    """How much the difference of two variants varies over seeds."""

    deviation: float
    free: int
    """Degrees of freedom."""
    of: str
    """What it was measured on."""


def forecast(study: Study, pilot: Path | None, out: Path) -> list[str]:
    """Sentences on the difference that the study will find, and on the seeds that a difference needs.

    Args:
        study: With the seeds that are to be run.
        pilot: A folder with runs of several seeds; None takes those that the study's folder has.
        out: The study's folder.

    Raises:
        ConfigError: If the pilot has no two finished runs of the same settings.
    """
    where = pilot or out
    folders = [pilot] if pilot else ended(study, out)
    base = None if pilot or not folders else folders[0].parent.name
    measured = spread(study, compare(folders, base, study.metric)) if folders else None
    if measured is None and pilot:
        raise ConfigError(
            f"ablate: --pilot {pilot}: expected two finished runs or more that differ in their seed alone"
        )
    if measured is None:
        return [
            f"Power: not known, for {out} has no variant that ended with two seeds: name a folder of such "
            "runs by --pilot"
        ]
    level = LEVEL / study.comparisons
    if study.looks:
        level = look_levels(study.looks, level)[-1]
    return list(sentences(study, measured, level, where))


def ended(study: Study, out: Path) -> list[Path]:
    """The folders of the study's runs that have ended and measured its metric."""
    runs = read_runs(study.begun(out))
    return [run.folder for run in runs if run.finished and run.last(study.metric) is not None]


def spread(study: Study, pilot: Comparison) -> Spread | None:
    """The deviation of a comparison of the study over seeds, from the runs of a pilot; None if none varies.

    From a pilot of the same factors the deviation of their main effects, pooled. Otherwise that of paired
    differences from the base, pooled over variants, for a factorial study divided by what it averages over.
    From runs of one variant: that of the difference of two, as if their seeds were independent.
    """
    factors = study.factors
    main = [e.by_seed for e in pilot.factors if len(e.steps) == 1 and e.steps[0].factor in factors]
    if len(main) == sum(len(levels) - 1 for levels in factors.values()) > 0 and (
        found := pooled(main, f"main effects of {len(main[0])} seeds")
    ):
        return found
    scale = 1.0
    if factors:
        weights = max((c.weights for c in contrasts(factors, highest=1)), key=lambda w: float(np.sum(w**2)))
        scale = math.sqrt(float(np.sum(weights**2)) / 2)
    base = pilot.results[0].by_seed
    pairs = [[e.result.by_seed[s] - base[s] for s in e.pairs] for e in pilot.effects if len(e.pairs) > 1]
    if pairs and (found := pooled(pairs, f"paired differences of {max(map(len, pairs))} seeds")):
        return found._replace(deviation=found.deviation * scale)
    alone = [list(result.by_seed.values()) for result in pilot.results if len(result.by_seed) > 1]
    if found := pooled(alone, "seeds of single variants, as if pairs of runs had nothing in common"):
        return found._replace(deviation=found.deviation * math.sqrt(2) * scale)
    return None


def pooled(samples: Sequence[Sequence[float]], of: str) -> Spread | None:
    """The standard deviation around the means of samples; None where nothing varies."""
    free = sum(len(sample) - 1 for sample in samples)
    squares = sum((value - fmean(sample)) ** 2 for sample in samples for value in sample)
    deviation = math.sqrt(squares / free) if free > 0 else 0.0
    return Spread(deviation, free, of) if deviation > ROUNDING else None


def sentences(study: Study, measured: Spread, level: float, where: Path) -> list[str]:
    """What the study will find, and what a difference needs."""
    bounds = deviation_interval(measured.deviation, measured.free)
    few = "; few seeds, so that this is known roughly" if measured.free < FEW else ""
    seeds, many = len(study.seeds), study.comparisons
    found = [detectable(deviation, seeds, level) for deviation in bounds]
    said = [
        f"Power, from {where} ({measured.of}): differences of {study.metric} vary over seeds by "
        f"{bounds.mean:.3f} (95 % {bounds.low:.3f} to {bounds.high:.3f}{few})"
    ]
    if seeds < 2:
        said.append("One seed finds no difference, however large")
    else:
        said.append(
            f"With {seeds} seeds and {many} comparison{'s' if many > 1 else ''}, a difference of "
            f"{found[0]:.3f} is found with probability {POWER:g} ({found[1]:.3f} to {found[2]:.3f})"
        )
    for difference in study.detect or DIFFERENCES:
        needed = [pairs_needed(difference, deviation, level) for deviation in bounds]
        shown = [f"{n:,}" if n < MOST_PAIRS else f"more than {MOST_PAIRS:,}" for n in needed]
        said.append(f"A difference of {difference:g} needs {shown[0]} seeds ({shown[1]} to {shown[2]})")
    return said
