"""Intervals, tests and effect sizes: by hand, against scipy and statsmodels, and by simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.meta_analysis import effectsize_smd
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep
from statsmodels.stats.weightstats import DescrStatsW

from grpo_pl.commands.compare.statistics import (
    Interval,
    hedges_g,
    holm,
    mean_interval,
    newcombe,
    paired_test,
    problems,
    smallest_rank_p,
    t_test,
)
from grpo_pl.functional import wilson_interval

BASE = [0.71, 0.74, 0.69, 0.755, 0.72]
OTHER = [0.73, 0.735, 0.74, 0.78, 0.71]
DIFFERENCES = [a - b for a, b in zip(OTHER, BASE, strict=True)]
STUDIES = 1000


def share(solved: int, of: int) -> Interval:
    return Interval(solved / of, *wilson_interval(float(solved), of))


def inside_binomial(count: int, p: float, trials: int = STUDIES) -> bool:
    """Whether a count is one that a fair coin of this p gives in all but 1 of 1000 simulations."""
    low, high = stats.binom.ppf([0.0005, 0.9995], trials, p)
    return bool(low <= count <= high)


def test_the_interval_of_a_mean_is_students():
    assert mean_interval(BASE)[1:] == pytest.approx(DescrStatsW(BASE).tconfint_mean(0.05))
    # by hand: mean 2, std 1, t(0.975, 2) = 4.3026527
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx(
        (2, 2 - 4.3026527 / 3**0.5, 2 + 4.3026527 / 3**0.5)
    )


def test_one_value_has_no_bounded_interval():
    assert mean_interval([0.5]) == (0.5, -math.inf, math.inf)


def test_the_interval_of_a_share_ends_at_0_and_at_1():
    assert mean_interval([0.02, 0.1]).of_share() == pytest.approx((0.06, 0.0, 0.06 + 12.7062047 * 0.04))
    assert mean_interval([0.9, 0.98]).of_share() == pytest.approx((0.94, 0.94 - 12.7062047 * 0.04, 1.0))
    assert mean_interval([0.5, 0.52, 0.54]).of_share() == mean_interval([0.5, 0.52, 0.54])
    assert mean_interval([0.5]).of_share() == (0.5, -math.inf, math.inf)


def test_the_paired_test_is_that_of_scipy_and_of_statsmodels():
    test = paired_test(DIFFERENCES)
    assert test.p == pytest.approx(stats.ttest_rel(OTHER, BASE).pvalue)
    assert test.p == pytest.approx(DescrStatsW(DIFFERENCES).ttest_mean(0)[1])
    assert test.difference[1:] == pytest.approx(DescrStatsW(DIFFERENCES).tconfint_mean(0.05))
    assert test.p_ranks == pytest.approx(stats.wilcoxon(OTHER, BASE).pvalue)


def test_ranks_count_differences_that_only_rounding_tells_apart_as_ties():
    # by hand: |d| = 1, 1, 2 have the ranks 1.5, 1.5, 3; T+ is 4.5 or more for 3 of the 8 signs
    tied = [0.3 - 0.2, 0.5 - 0.6, 0.9 - 0.7]
    assert paired_test(tied).p_ranks == pytest.approx(0.75)


@pytest.mark.parametrize("pairs", [2, 3, 4, 5, 6, 7])
def test_no_rank_test_falls_below_what_its_pairs_allow(pairs):
    best = paired_test([0.1 * (i + 1) for i in range(pairs)])
    assert best.p_ranks == pytest.approx(smallest_rank_p(pairs)) == pytest.approx(2 / 2**pairs)


def test_equal_differences_have_no_t_test():
    for differences in ([0.1, 0.1, 0.1], [0.0, 0.0, 0.0], [0.3 - 0.2, 0.1, 0.4 - 0.3]):
        test = paired_test(differences)
        assert test.p is None
        assert test.difference == (pytest.approx(differences[0]), -math.inf, math.inf)


def test_one_pair_has_a_difference_and_no_test():
    test = paired_test([0.02])
    assert (test.difference.mean, test.p, test.p_ranks) == (0.02, None, None)
    assert paired_test([]) == (None, None, None)


def test_hedges_g_by_hand():
    # means 2 and 3, pooled std 1, J(4) = Gamma(2) / (sqrt(2) Gamma(1.5)) = 1 / (1.41421356 * 0.88622693)
    assert hedges_g([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]) == pytest.approx(-0.79788456)


def test_hedges_g_is_that_of_statsmodels_but_for_its_approximate_correction():
    n = len(BASE)
    theirs = effectsize_smd(np.mean(OTHER), np.std(OTHER, ddof=1), n, np.mean(BASE), np.std(BASE, ddof=1), n)[
        0
    ]
    approximate = 1 - 3 / (4 * 2 * n - 9)
    exact = math.gamma((2 * n - 2) / 2) / math.sqrt((2 * n - 2) / 2) / math.gamma((2 * n - 3) / 2)
    assert hedges_g(OTHER, BASE) == pytest.approx(theirs / approximate * exact)


def test_without_spread_there_is_no_effect_size():
    assert hedges_g([0.5, 0.5], [0.4, 0.4]) is None
    assert hedges_g([0.5], [0.4]) is None


def test_holm_by_hand_and_as_statsmodels():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    ps = list(np.random.default_rng(0).uniform(0, 0.2, 7))
    assert holm(ps) == pytest.approx(multipletests(ps, method="holm")[1])
    assert holm([]) == []


@pytest.mark.parametrize(("a", "b"), [((140, 200), (150, 200)), ((0, 50), (7, 50)), ((50, 50), (49, 50))])
def test_newcombes_interval_is_that_of_statsmodels(a, b):
    theirs = confint_proportions_2indep(*a, *b, method="newcomb")
    assert newcombe(share(*a), share(*b))[1:] == pytest.approx(theirs, abs=1e-4)  # 1.96 for 1.95996


def test_a_wilson_interval_tells_its_number_of_problems():
    for of in (7, 50, 200, 1319):
        for solved in {0, 1, of // 3, of // 2, of}:
            assert problems(share(solved, of)) == pytest.approx(of)


def test_without_an_effect_false_alarms_come_at_the_nominal_rate():
    noise = np.random.default_rng(1)
    differences = noise.normal(0, 0.02, (STUDIES, 4))
    assert inside_binomial(sum(t_test(d) < 0.05 for d in differences.tolist()), 0.05)
    intervals = [mean_interval(d) for d in differences.tolist()]
    assert inside_binomial(sum(i.low <= 0 <= i.high for i in intervals), 0.95)


def test_accuracies_of_runs_alike_raise_no_more_false_alarms_than_the_level_allows():
    """Shares of 200 problems, which the seeds of a pair have a part of in common: never exactly normal."""
    noise = np.random.default_rng(2)
    of_seed = noise.uniform(0.65, 0.75, (STUDIES, 5, 1))
    solved = noise.binomial(200, np.broadcast_to(of_seed, (STUDIES, 5, 2))) / 200
    ps = [t_test(d) for d in (solved[..., 0] - solved[..., 1]).tolist()]
    assert inside_binomial(sum(p is not None and p < 0.05 for p in ps), 0.05)


def test_of_many_comparisons_without_an_effect_one_in_twenty_studies_sees_one():
    noise = np.random.default_rng(3)
    runs = noise.normal(0.7, 0.02, (STUDIES, 4, 5))  # a base and three variants, five seeds each
    found = 0
    for base, *variants in runs:
        ps = [t_test((variant - base).tolist()) for variant in variants]
        found += min(holm([p for p in ps if p is not None])) < 0.05
    assert found <= stats.binom.ppf(0.9995, STUDIES, 0.05)
    assert found >= stats.binom.ppf(0.0005, STUDIES, 0.02)  # the comparisons share a base: fewer than 0.05


def test_a_known_effect_is_covered_and_found():
    noise = np.random.default_rng(4)
    differences = noise.normal(0.05, 0.02, (STUDIES, 5)).tolist()
    intervals = [mean_interval(d) for d in differences]
    assert inside_binomial(sum(i.low <= 0.05 <= i.high for i in intervals), 0.95)
    # the power of a t-test with n = 5, d / sigma = 2.5, from the noncentral t distribution
    t, centre = stats.t.ppf(0.975, 4), 2.5 * math.sqrt(5)
    power = stats.nct.sf(t, 4, centre) + stats.nct.cdf(-t, 4, centre)
    assert inside_binomial(sum(t_test(d) < 0.05 for d in differences), power)


def test_hedges_g_has_no_bias_with_three_runs():
    noise = np.random.default_rng(5)
    values = noise.normal(0, 1, (4 * STUDIES, 2, 3)) + np.array([[1.0], [0.0]])
    found = [hedges_g(a, b) for a, b in values.tolist()]
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - 1.0) < 3.3 * error


def test_every_pair_of_signs_is_gone_through():
    """The rank test with ties is exact: its p is the share of the 2^n signs that are at least as extreme."""
    sizes = [1.0, 1.0, 2.0, 3.0]
    ranks = stats.rankdata(sizes)
    observed = abs(sum(r * s for r, s in zip(ranks, (1, 1, 1, -1), strict=True)))
    signs = itertools.product((1, -1), repeat=4)
    share_as_extreme = np.mean([abs(np.dot(ranks, sign)) >= observed for sign in signs])
    assert paired_test([1.0, 1.0, 2.0, -3.0]).p_ranks == pytest.approx(share_as_extreme)
