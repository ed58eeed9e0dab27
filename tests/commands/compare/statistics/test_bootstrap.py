"""Bootstraps and areas: by hand, by identities, and against scipy."""

import numpy as np
import pytest
from scipy import stats

from grpo_pl.commands.compare.statistics import (
    area_under,
    crossed_bootstrap,
    interquartile_mean,
    iqm_interval,
    probability_of_improvement,
)
from grpo_pl.commands.compare.statistics.bootstrap import percentiles


def test_resampled_means_scatter_as_the_pigeonhole_bootstrap_does():
    """Var = A + B + rest/(SP) of the resampled rows, columns and cells (McCullagh 2000), of rows alone A."""
    noise = np.random.default_rng(0)
    of_seeds, of_problems = noise.normal(size=(6, 1)), noise.normal(size=(1, 50))
    for d, variance in (
        (np.broadcast_to(of_seeds, (6, 50)), of_seeds.var() / 6),
        (np.broadcast_to(of_problems, (6, 50)), of_problems.var() / 50),
        (of_seeds + of_problems, of_seeds.var() / 6 + of_problems.var() / 50),
    ):
        draws = crossed_bootstrap(np.array(d), resamples=20000)
        assert draws.mean() == pytest.approx(d.mean(), abs=5 * np.sqrt(variance / 20000))
        assert draws.var() == pytest.approx(variance, rel=0.05)


def test_studies_at_once_are_as_one_by_one():
    many = np.random.default_rng(1).normal(size=(3, 4, 10))
    for i, draws in enumerate(crossed_bootstrap(many, 50)):
        assert draws == pytest.approx(crossed_bootstrap(many[i], 50))
    assert percentiles(np.arange(101.0), 0.9) == pytest.approx([5, 95])


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end():
    assert float(interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -50]))) == 3.5  # of 2, 3, 4, 5
    assert float(interquartile_mean(np.array([1.0, 2, 9]))) == 4  # of three none is left out
    mean, low, high = iqm_interval([0.1, 0.2, 0.3, 0.4])
    assert (mean, low >= 0.1, high <= 0.4) == (pytest.approx(0.25), True, True)
    assert iqm_interval([0.5]) == (0.5, -np.inf, np.inf)


def test_the_probability_of_improvement_is_mann_and_whitneys():
    ours, theirs = [0.3, 0.5, 0.5, 0.9], [0.1, 0.5, 0.6]
    mean, low, high = probability_of_improvement(ours, theirs)
    assert mean == pytest.approx(stats.mannwhitneyu(ours, theirs).statistic / 12)
    assert low < mean < high
    assert probability_of_improvement([2.0, 3.0], [0.0, 1.0]) == (1, 1, 1)
    assert probability_of_improvement([2.0], [0.0, 1.0]) == (1, -np.inf, np.inf)


def test_the_same_runs_have_the_same_bootstrap_interval():
    assert iqm_interval([0.1, 0.5, 0.2]) == iqm_interval([0.1, 0.5, 0.2])


def test_the_area_is_the_mean_height_of_the_curve():
    x = np.array([0.0, 1.0, 3.0])
    # trapezoids of 1 x 0.3 and 2 x 0.6 over a range of 3
    assert float(area_under(x, np.array([0.2, 0.4, 0.8]))) == pytest.approx(1.5 / 3)
    assert area_under(x, np.array([[1.0, 1, 1], [0, 1, 1]])) == pytest.approx([1, 2.5 / 3])
    assert area_under(np.array([1.0]), np.array([0.3])) is None
    assert area_under(np.array([1.0, 1.0]), np.array([0.3, 0.4])) is None
