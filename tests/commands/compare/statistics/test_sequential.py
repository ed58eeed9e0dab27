"""Looks at a study under way: published boundaries, and error rates by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from grpo_pl.commands.compare.statistics.sequential import look_levels, repeated_interval, spent

STUDIES, LOOKS = 2000, (5, 10, 20)


def at_most(count: int, p: float) -> bool:
    """Whether a count is not above what a coin of this p gives in all but 1 of 2000 simulations."""
    return bool(count <= stats.binom.ppf(0.9995, STUDIES, p))


def t_test_ps(values: np.ndarray) -> np.ndarray:
    """The two-sided p of each row's mean."""
    n = values.shape[-1]
    t = values.mean(-1) / values.std(-1, ddof=1) * np.sqrt(n)
    return np.asarray(2 * stats.t.sf(np.abs(t), n - 1))


def test_the_boundaries_are_the_published_ones() -> None:
    # ldbounds and gsDesign, two-sided 0.05, five equal looks, sfLDOF (also Jennison & Turnbull, table 7.2)
    bounds = stats.norm.isf(np.array(look_levels([1, 2, 3, 4, 5])) / 2)
    assert bounds == pytest.approx([4.8769, 3.3569, 2.6803, 2.2898, 2.0310], abs=2e-4)


def test_one_look_has_the_whole_level_and_many_spend_it() -> None:
    assert look_levels([7], 0.01) == pytest.approx([0.01])
    assert spent(1.0, 0.03) == pytest.approx(0.03)
    first, *_, last = look_levels(LOOKS)
    assert first == pytest.approx(spent(5 / 20))
    assert 0.04 < last < 0.05


@pytest.mark.parametrize("comparisons", [1, 6])
def test_a_study_that_stops_when_all_is_settled_is_wrong_in_one_of_twenty_at_most(comparisons: int) -> None:
    """Of comparisons without a difference; a study goes on until each is within a margin or different."""
    values = np.random.default_rng(5).normal(size=(STUDIES, comparisons, LOOKS[-1]))
    margin, wrong, going = 0.9, np.zeros(STUDIES, bool), np.ones(STUDIES, bool)
    for look, level in zip(LOOKS, look_levels(LOOKS, 0.05 / comparisons), strict=True):
        so_far = values[..., :look]
        different = t_test_ps(so_far) < level
        half = stats.t.ppf(1 - level / 2, look - 1) * so_far.std(-1, ddof=1) / np.sqrt(look)
        within = np.abs(so_far.mean(-1)) + half < margin
        wrong |= going & different.any(-1)
        going &= ~(different | within).all(-1)
    assert at_most(int(wrong.sum()), 0.05)
    assert wrong.sum() > 0.03 * STUDIES, "else the looks would waste seeds"
    assert going.mean() < 0.9


def test_repeated_looks_without_a_correction_err_too_often() -> None:
    values = np.random.default_rng(5).normal(size=(STUDIES, LOOKS[-1]))
    wrong = np.any([t_test_ps(values[:, :look]) < 0.05 for look in LOOKS], axis=0)
    assert not at_most(int(wrong.sum()), 0.05)


def test_at_all_looks_at_once_the_intervals_cover() -> None:
    rng, levels = np.random.default_rng(6), look_levels(LOOKS)
    missed = 0
    for values in rng.normal(0.3, 1.0, (STUDIES // 4, LOOKS[-1])):
        each = [repeated_interval(values[:n].tolist(), level) for n, level in zip(LOOKS, levels, strict=True)]
        missed += any(not i.low <= 0.3 <= i.high for i in each)
    assert missed <= stats.binom.ppf(0.9995, STUDIES // 4, 0.05)


def test_one_value_and_values_that_are_all_alike_bound_nothing() -> None:
    for values in ([0.1], [0.1, 0.1, 0.1]):
        assert repeated_interval(values, 0.05) == pytest.approx((0.1, -math.inf, math.inf))
