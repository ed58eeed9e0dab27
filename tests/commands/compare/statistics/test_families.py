"""Conclusions from many comparisons: by hand, and the share of studies with a false one."""

import numpy as np
import pytest
from scipy import stats

from grpo_pl.commands.compare.statistics import LEVEL, conclude, holm, of_means, step_down
from grpo_pl.commands.compare.statistics.families import Adjusted


def test_without_equivalence_the_adjustment_is_holms():
    ps = [0.04, 0.01, 0.5, 0.011]
    assert holm(ps) == pytest.approx([0.08, 0.04, 0.5, 0.04])  # 2 x 0.04; 4 x 0.01; 0.5; at least as the last
    assert [a.different for a in step_down(ps)] == holm(ps)
    assert {a.equivalent for a in step_down(ps)} == {None}


def test_with_equivalence_a_comparison_counts_until_both_of_its_hypotheses_are_rejected():
    # p in order: 0.001 (x 3), 0.002 (x 3), 0.004 (of the first, both of which are rejected then: x 3),
    # 0.01 (x 2), 0.3 (x 2, of the second, both of which are rejected then), 0.9 (x 1)
    adjusted = step_down([0.001, 0.002, 0.9], [0.004, 0.3, 0.01])
    assert [a.different for a in adjusted] == pytest.approx([0.003, 0.006, 0.9])
    assert [a.equivalent for a in adjusted] == pytest.approx([0.012, 0.6, 0.02])


@pytest.mark.parametrize(
    ("difference", "adjusted", "conclusion"),
    [
        (0.1, Adjusted(0.01, None), "higher"),
        (-0.1, Adjusted(0.01, 0.5), "lower"),
        (0.01, Adjusted(0.01, 0.01), "equivalent"),
        (0.01, Adjusted(0.8, 0.01), "equivalent"),
        (0.1, Adjusted(0.06, 0.06), "not settled"),
        (0.1, Adjusted(0.06, None), "not settled"),
    ],
)
def test_a_difference_is_settled_by_either_test(difference, adjusted, conclusion):
    assert conclude(difference, adjusted) == conclusion


@pytest.mark.parametrize(
    "effects", [(0, 0, 0, 0), (0, 0, 0.03, 0.03), (0.03, 0.03, 0.03, 0.03), (0, 0.3, 0, 0.01)]
)
def test_one_study_in_twenty_at_most_has_a_false_conclusion(effects):
    """A false one: a difference where there is none, or equivalence where the difference is the margin."""
    studies, noise = 1000, np.random.default_rng(7)
    estimates = of_means(noise.normal(np.array(effects)[:, None], 0.02, (studies, 4, 8)))
    ps = zip(estimates.p_of().tolist(), estimates.p_outside(0.03).tolist(), strict=True)
    false = sum(any(map(is_false, effects, step_down(*of_study))) for of_study in ps)
    assert false <= stats.binom.ppf(0.9995, studies, LEVEL)
    assert false > 0


def is_false(truth, adjusted):
    return (truth == 0 and adjusted.different <= LEVEL) or (truth >= 0.03 and adjusted.equivalent <= LEVEL)
