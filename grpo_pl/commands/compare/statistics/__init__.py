"""The statistics of a comparison, as pure functions of numbers.

`over_seeds` takes each seed for one number, `crossed` each problem of each seed; `bootstrap` resamples,
`families` adjusts for many comparisons, `area` sums up a curve; `factorial` has the effects of factors,
`power` what a study will find, `sequential` when it may end.
"""

from grpo_pl.commands.compare.statistics.area import area_under
from grpo_pl.commands.compare.statistics.bootstrap import (
    crossed_bootstrap,
    interquartile_mean,
    iqm_interval,
    probability_of_improvement,
)
from grpo_pl.commands.compare.statistics.crossed import Components, Estimate, components, crossed, of_means
from grpo_pl.commands.compare.statistics.families import Conclusion, conclude, conclude_by, holm, step_down
from grpo_pl.commands.compare.statistics.over_seeds import (
    CONFIDENCE,
    LEVEL,
    ROUNDING,
    Interval,
    PairedTest,
    hedges_g,
    mean_interval,
    newcombe,
    paired_test,
    problems,
    signed_ranks,
    smallest_rank_p,
    t_test,
)

__all__ = [
    "CONFIDENCE",
    "LEVEL",
    "ROUNDING",
    "Components",
    "Conclusion",
    "Estimate",
    "Interval",
    "PairedTest",
    "area_under",
    "components",
    "conclude",
    "conclude_by",
    "crossed",
    "crossed_bootstrap",
    "hedges_g",
    "holm",
    "interquartile_mean",
    "iqm_interval",
    "mean_interval",
    "newcombe",
    "of_means",
    "paired_test",
    "probability_of_improvement",
    "problems",
    "signed_ranks",
    "smallest_rank_p",
    "step_down",
    "t_test",
]
