"""Differences over problems and seeds: against statsmodels, by identities, and by simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.weightstats import DescrStatsW

from grpo_pl.commands.compare.statistics import components, crossed, mean_interval, of_means
from grpo_pl.commands.compare.statistics.crossed import mean_squares, satterthwaite


def made_up(seeds, problems, *, of_seeds=0.1, of_problems=0.5, rest=1.0, effect=0.1, seed=0):
    noise = np.random.default_rng(seed)
    d = noise.normal(effect, rest, (seeds, problems)) + noise.normal(0, of_seeds, (seeds, 1))
    return d + noise.normal(0, of_problems, problems)


def test_the_mean_squares_are_those_of_the_analysis_of_variance():
    d = made_up(4, 6)
    rows = [{"d": d[s, p], "s": f"s{s}", "p": f"p{p}"} for s in range(4) for p in range(6)]
    table = anova_lm(ols("d ~ C(s) + C(p)", pd.DataFrame(rows)).fit())
    seed, problem, rest = table["mean_sq"]
    expected = [seed / 24, max(problem - rest, 0.0) / 24, rest / 24]
    assert [float(x) for x in mean_squares(d)] == pytest.approx(expected)


def test_the_components_are_those_that_the_differences_were_made_with():
    d = made_up(400, 300, of_seeds=0.3, of_problems=0.5, rest=0.8)
    assert np.sqrt(components(d)) == pytest.approx([0.3, 0.5, 0.8], rel=0.1)


def test_where_problems_respond_alike_the_crossed_test_is_students_over_seeds():
    """Without a component of problems, B is 0 and the reference is t with S - 1."""
    d = np.array([[0.0, 1.0, 2.0], [2.0, 0.0, 1.0], [4.0, 2.0, 0.0]])  # rows and rest vary, columns hardly
    assert float(mean_squares(d)[1]) == 0
    assert crossed(d).interval() == pytest.approx(mean_interval(d.mean(1).tolist()))
    assert float(crossed(d).p_of()) == pytest.approx(stats.ttest_1samp(d.mean(1), 0).pvalue)


def test_an_interval_holds_the_effects_that_the_test_does_not_reject():
    for seed in range(5):
        estimate = crossed(made_up(3, 40, seed=seed))
        for confidence in (0.9, 0.95, 0.99375):
            _, low, high = estimate.interval(confidence)
            assert [float(estimate.p_of(x)) for x in (low, high)] == pytest.approx([1 - confidence] * 2)


def test_the_reference_lies_between_students_with_few_and_with_many_degrees_of_freedom():
    estimate = crossed(made_up(3, 200))
    assert 0 < estimate.share < 1
    t = float(abs(estimate.mean) / estimate.error)
    few, many = (2 * stats.t.sf(t, df) for df in (2, 199))
    assert many < float(estimate.p_of()) < few
    expected = estimate.share * few + (1 - estimate.share) * many
    assert float(estimate.p_of()) == pytest.approx(float(expected))


def test_studies_at_once_are_as_one_by_one():
    many = np.stack([made_up(4, 30, seed=seed) for seed in range(6)])
    at_once = crossed(many)
    for i, one in enumerate(many):
        assert float(at_once.p_of(0.2)[i]) == pytest.approx(float(crossed(one).p_of(0.2)))
    mean, error, df = satterthwaite(many)
    assert np.array([mean[2], error[2], df[2]]) == pytest.approx(np.array(satterthwaite(many[2])))


def test_seeds_that_are_all_alike_have_no_test():
    d = np.tile([[1.0, 0.0, 0.0, -1.0, 1.0]], (4, 1))
    estimate = crossed(d)
    assert not estimate.tested
    assert float(estimate.p_of()) == float(estimate.p_outside(0.9)) == 1
    assert estimate.interval() == (pytest.approx(0.2), -np.inf, np.inf)


def test_equivalence_over_seeds_is_schuirmanns_test():
    d = np.array([0.01, -0.02, 0.015, 0.0, 0.005])
    assert float(of_means(d).p_outside(0.03)) == pytest.approx(DescrStatsW(d).ttost_mean(-0.03, 0.03)[0])
    assert of_means(d).interval() == pytest.approx(mean_interval(d.tolist()))


def test_equivalence_is_shown_exactly_where_the_interval_of_90_percent_lies_within_the_margin():
    for seed in range(20):
        estimate = crossed(made_up(5, 400, effect=0.0, of_seeds=0.02, of_problems=0.1, rest=0.3, seed=seed))
        _, low, high = estimate.interval(0.9)
        assert (float(estimate.p_outside(0.03)) < 0.05) == (low > -0.03 and high < 0.03)
