"""The methods behind the numbers of a report, and their limits."""

from grpo_pl.commands.compare.comparison import Comparison, Effect
from grpo_pl.commands.compare.statistics import LEVEL, smallest_rank_p

CURVES = [
    "Line: mean of the finished runs. Band: 95 % interval of that mean over seeds (Student's t), cut off "
    "where the picture ends. Thin lines: single seeds, if there are not too many. Dotted: runs that "
    "did not come to their end.",
    "Against tokens and seconds, runs are interpolated linearly between their validations. Seconds are "
    "those of sync, generate, score and update (time/iteration_s); validations are not in them. Rewards "
    "are comparable only between groups that are paid for the same.",
]
COSTS = [
    "Medians over finished runs of: the greatest value (models, parameters, peak memory of rank 0's "
    "process), the median over iterations (stages, iteration, tokens a second), the sum over iterations "
    "(tokens generated, training, validation). Tokens are all that were sampled, learned from or thrown "
    "away; validation's are not in them. In brackets: times the base's. Dashed line: what no other group "
    "beats in both.",
]


def how_effects_are_drawn(comparison: Comparison) -> list[str]:
    """How to read the forest plot."""
    base = "of a factor's first level" if comparison.factors else f"of {comparison.base.name}"
    band = (
        ""
        if comparison.margin is None
        else f" Band: the declared margin, +-{comparison.margin:g}; what lies inside it does not matter."
    )
    return [
        "Mark: the mean over seeds, hollow where the question is not settled. Line: the 95 % interval that "
        f"holds for all of its kind at once.{band} Time and memory: times that {base}, as the geometric mean "
        "over runs paired by seed, with Student's interval of the logarithm. Time is of training without "
        "validation; memory the peak of a run's first process."
    ]


def how_tested(comparison: Comparison) -> list[str]:
    """The statistical methods of the outcome."""
    number = f"{comparison.problems} " if comparison.problems else ""
    of = f"the {number}validation problems"
    notes = [
        "Final: the last validation of each finished run. Over seeds: Student's interval of the mean, for "
        f"{of} as they are, of a share cut off at 0 and 1. Over problems: the Wilson interval that a run's "
        f"share of {of} has, mean over runs; of a difference Newcombe's, which takes the two runs for "
        "independent and is therefore rather too wide.",
    ]
    notes.append(
        "Interquartile mean: of the middle half of the runs, with its percentile bootstrap. Area under the "
        "curve: mean height of the metric over iterations, by trapezoids. Bootstrap intervals are too narrow "
        "for few runs (findings/statistics.md)."
    )
    if tested := sum(effect.conclusion is not None for effect in comparison.effects):
        notes += [
            "Differences are taken seed by seed, and tested two-sided by Student's t over seeds, for these "
            "problems, and by Wilcoxon's signed ranks (exact up to 13 pairs). Hedges' g: difference of means "
            "in units of the pooled standard deviation over seeds, corrected for few runs. Probability of "
            "improvement: that a run is better than one of the base, whatever their seeds.",
            *over_both(comparison),
            how_concluded(comparison, tested),
        ]
    return [*notes, *what_few_seeds_tell(comparison.effects)]


def over_both(comparison: Comparison) -> list[str]:
    """The analysis of verdicts, where runs have them."""
    if not any(effect.on_problems for effect in comparison.effects):
        return []
    return [
        "Over problems and seeds: each problem of each pair of runs has a difference of its own; problems "
        "and seeds are both taken for samples of more (two-way random effects), so that the interval holds "
        "for new problems too. Its reference is a mixture of Student's t with the degrees of freedom of "
        "seeds and of problems. Where it is there, the verdict goes by it."
    ]


def how_concluded(comparison: Comparison, tested: int) -> str:
    """How verdicts stay right for all comparisons at once."""
    simultaneous = (
        f"Intervals of all at once are Bonferroni's for {tested} comparisons; the others hold alone."
    )
    if comparison.margin is None:
        return f"Verdicts go by Holm's adjustment (comparisons: {tested}) at the level 0.05. {simultaneous}"
    return (
        f"Declared: a difference below {comparison.margin:g} does not matter; equivalent is what two "
        f"one-sided tests show to be smaller. Verdicts go by Shaffer's adjustment (comparisons: {tested}) of "
        f"both kinds of tests: all of them are right with 95 %. {simultaneous}"
    )


def how_factors_are_tested(comparison: Comparison) -> list[str]:
    """The statistical methods of main effects and interactions."""
    adjustment = "Holm's adjustment" if comparison.margin is None else "Bonferroni's adjustment"
    notes = [
        "The main effect of a level is its mean difference from the base level, over all combinations of the "
        "other factors. An interaction is what its second level adds to the effect of its first: both - "
        "first alone - second alone + neither, as a mean over the rest. Each seed that all combinations have "
        "gives one value of each; over them stand Student's interval and test. Where all these runs have "
        "verdicts on the same problems, each problem of each seed gives one: problems and seeds are both "
        "taken for samples of more.",
        f"Main effects are one family, interactions another: {adjustment} is for a family, and all its "
        "intervals at once hold with 95 %.",
    ]
    if comparison.margin is not None:
        notes.append(
            f"Declared: a difference below {comparison.margin:g} does not matter. An effect is settled when "
            "its interval of all at once excludes 0 (higher, lower) or lies within the margin; all such "
            "claims of a family are right with 95 %."
        )
    return notes


def what_few_seeds_tell(effects: list[Effect]) -> list[str]:
    """The limits of a test with so few pairs."""
    fewest = min((len(effect.pairs) for effect in effects if effect.pairs), default=0)
    if fewest == 1:
        return ["One pair tells nothing of the spread over seeds: there is no test of it."]
    least = smallest_rank_p(fewest)
    if not fewest or least <= LEVEL:
        return []
    return [
        f"With {fewest} pairs a rank or sign test cannot fall below p = {least:g}, whatever happens. The "
        "t-test can, for it takes the differences for normal: an assumption that so few seeds cannot "
        "check. From 6 pairs on a rank test can fall below 0.05.",
    ]
