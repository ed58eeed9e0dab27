"""A sequential study: what is settled at a look at it, by a rule that was declared before."""

from collections.abc import Sequence
from typing import NamedTuple

from grpo_pl.commands.ablate.study import Study
from grpo_pl.commands.compare.answers import effect_name
from grpo_pl.commands.compare.comparison import Comparison
from grpo_pl.commands.compare.report.document import Section, table
from grpo_pl.commands.compare.report.wording import ends, number
from grpo_pl.commands.compare.statistics import LEVEL, Interval, conclude_by
from grpo_pl.commands.compare.statistics.sequential import look_levels, repeated_interval

NOT_SETTLED = "not settled"


class Decision(NamedTuple):
    """A comparison at a look."""

    name: str
    seeds: int
    interval: Interval
    """Holds at all looks and for all comparisons at once, with 95 %."""
    conclusion: str


def decide(study: Study, comparison: Comparison, look: int) -> list[Decision]:
    """What is settled of each comparison at a look: each variant with the base, or each main effect.

    Args:
        study: With its looks.
        comparison: Of the runs with the seeds up to this look.
        look: One of `study.looks`.
    """
    level = look_levels(study.looks, LEVEL / study.comparisons)[study.looks.index(look)]
    found = []
    for name, values in differences(comparison).items():
        interval = repeated_interval(values, level)
        found.append(Decision(name, len(values), interval, conclusion(interval, study.margin)))
    return found


def differences(comparison: Comparison) -> dict[str, Sequence[float]]:
    """Comparison -> its difference in each seed; without those that no seed has yet."""
    if comparison.factors:
        return {effect_name(e.steps): e.by_seed for e in comparison.factors if len(e.steps) == 1}
    base = comparison.results[0].by_seed
    return {
        e.result.group.name: [e.result.by_seed[seed] - base[seed] for seed in e.pairs]
        for e in comparison.effects
        if e.pairs
    }


def conclusion(interval: Interval, margin: float | None) -> str:
    """Settled is what is different from 0, or within the margin."""
    found = conclude_by(interval, margin)
    return f"within +-{margin:g}" if found == "equivalent" else found


def settled(study: Study, decisions: Sequence[Decision]) -> bool:
    """Whether no comparison needs more seeds."""
    return len(decisions) == study.comparisons and all(d.conclusion != NOT_SETTLED for d in decisions)


def section(study: Study, decisions: Sequence[Decision], look: int) -> Section:
    """The report's section on the looks."""
    rows = [
        {
            "": each.name,
            "seeds": str(each.seeds),
            "difference": number(each.interval.mean, sign=True),
            "95 %, all looks at once": ends(each.interval, sign=True),
            "conclusion": each.conclusion,
        }
        for each in decisions
    ]
    last = study.looks[-1]
    why = "every comparison is settled" if settled(study, decisions) else "these are all"
    text = f"Ended after {look} of {last} seeds: {why}."
    margin = "" if study.margin is None else f" or within +-{study.margin:g}"
    note = (
        f"Declared before: looks after {', '.join(map(str, study.looks))} seeds, and an end when every "
        f"comparison (there are {study.comparisons}) is different from 0{margin}. The level 0.05, divided by "
        "the number of comparisons, is spent on the looks as Lan and DeMets do, by the function like O'Brien "
        "and Fleming's boundary; Student's interval at a look's level holds for all looks and comparisons at "
        "once with 95 %, for these validation problems. Intervals and p in other sections take the number of "
        "seeds as fixed before: conclusions are those of this section."
    )
    return Section("Sequential", [text], [table(rows)] if rows else [], notes=[note])
