"""Settings tuned for each variant by pilot runs of a declared budget, before the study itself."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from grpo_pl.commands.ablate.pilots import Setting
from grpo_pl.commands.ablate.planned import PlannedRun
from grpo_pl.commands.ablate.study import Study
from grpo_pl.commands.compare.report.tuning import Tuned
from grpo_pl.runs.layout import ENDED_FILE
from grpo_pl.system.refusal import ConfigError

TUNING_FOLDER = "tuning"
ALIKE = 1e-9
"""Means that differ by less are a tie."""


Means = dict[Setting, float | None]
"""The mean of a setting's pilot runs; None if one of them did not come to its end."""


def choose(
    study: Study, pilots: Sequence[PlannedRun], own: Mapping[str, Mapping[str, Any]]
) -> dict[str, Tuned]:
    """The best setting of each variant by its pilot runs, which have been run, and what was tried.

    Args:
        study: The study, with a `tune`.
        pilots: Its pilot runs.
        own: Variant -> dotted key -> its value before.

    Raises:
        ConfigError: If no setting of a variant came to its end.
    """
    tuned = {}
    for variant, means in means_of(study, pilots).items():
        if not any(mean is not None for mean in means.values()):
            raise ConfigError(
                f"study {study.path}: tune: no value came to its end in all pilot runs of {variant}: see the "
                f"logs in {pilots[0].folder.parent.parent}, and name other values"
            )
        chosen = best(means, own[variant])
        tuned[variant] = Tuned(dict(chosen), [(dict(setting), mean) for setting, mean in means.items()])
    return tuned


def means_of(study: Study, pilots: Sequence[PlannedRun]) -> dict[str, Means]:
    """Variant -> setting -> the mean metric at the end of its pilot runs."""
    assert study.tuning is not None, "it has pilot runs"
    ends: dict[str, list[float | None]] = {}
    for run in pilots:
        ends.setdefault(run.variant, []).append(last_value(run, study.metric))
    return {
        variant: {s: mean(ends[study.tuning.pilot(variant, s)]) for s in study.tuning.settings()}
        for variant in study.variants
    }


def mean(values: Sequence[float | None]) -> float | None:
    """Their mean; None if one is missing."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def best(means: Means, own: Mapping[str, Any]) -> Setting:
    """The setting with the highest mean; of equal ones that which is nearest to the variant's own values.

    A setting without a mean is not taken: with a learning rate too high a run may not come to its end.
    """
    known = {setting: mean for setting, mean in means.items() if mean is not None}
    highest = max(known.values())
    return min((s for s, mean in known.items() if highest - mean < ALIKE), key=lambda s: distance(s, own))


def last_value(run: PlannedRun, metric: str) -> float | None:
    """The metric at the end of a run; None if it has not come to its end, or never measured it."""
    if not (run.folder / ENDED_FILE).exists():
        return None
    values = [row[metric] for row in run.rows() if metric in row]
    return values[-1] if values else None


def distance(setting: Setting, own: Mapping[str, Any]) -> float:
    """How far values are from a variant's own: in logarithms where both are above 0."""
    total = 0.0
    for key, value in setting:
        before = own.get(key)
        if not isinstance(before, int | float):
            continue
        total += abs(math.log(value / before)) if value > 0 and before > 0 else abs(value - before)
    return total
