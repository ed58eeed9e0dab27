"""Power before a study: by hand, against statsmodels, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from grpo_pl.commands.compare.statistics.power import (
    MOST_PAIRS,
    detectable,
    deviation_interval,
    pairs_needed,
    power,
)

STUDIES = 2000


@pytest.mark.parametrize(("pairs", "level"), [(3, 0.05), (10, 0.05 / 6), (25, 0.05)])
def test_power_is_that_of_statsmodels(pairs: int, level: float) -> None:
    for difference in (0.02, 0.1, 0.3):
        expected = TTestPower().power(difference / 0.1, pairs, level, alternative="two-sided")
        assert power(difference, 0.1, pairs, level) == pytest.approx(expected)
        assert power(-difference, 0.1, pairs, level) == pytest.approx(expected)


def test_what_a_study_detects_it_finds_in_four_of_five_simulated_studies() -> None:
    difference = detectable(0.1, 5)
    values = np.random.default_rng(0).normal(difference, 0.1, (STUDIES, 5))
    t = values.mean(1) / values.std(1, ddof=1) * math.sqrt(5)
    found = int((np.abs(t) > stats.t.ppf(0.975, 4)).sum())
    low, high = stats.binom.ppf([0.0005, 0.9995], STUDIES, 0.8)
    assert low <= found <= high


def test_the_pairs_needed_are_the_fewest() -> None:
    for difference in (0.3, 0.1, 0.05):
        pairs = pairs_needed(difference, 0.1, 0.05 / 4)
        assert power(difference, 0.1, pairs, 0.05 / 4) >= 0.8 > power(difference, 0.1, pairs - 1, 0.05 / 4)
    assert pairs_needed(1e-9, 0.1) == MOST_PAIRS


def test_one_pair_finds_nothing_and_many_find_what_is_far() -> None:
    assert power(1.0, 0.1, 1) == 0
    assert detectable(0.1, 1) == math.inf
    assert power(1.0, 0.001, 20) == 1


def test_the_interval_of_a_deviation_by_hand_and_its_coverage() -> None:
    # chi2(0.975, 2) = 7.3778, chi2(0.025, 2) = 0.050636
    expected = (0.1, 0.1 * (2 / 7.3778) ** 0.5, 0.1 * (2 / 0.050636) ** 0.5)
    assert deviation_interval(0.1, 2) == pytest.approx(expected, rel=1e-4)
    spreads = np.random.default_rng(0).normal(0, 0.1, (STUDIES, 4)).std(1, ddof=1)
    ends = [deviation_interval(float(spread), 3) for spread in spreads]
    covered = sum(end.low <= 0.1 <= end.high for end in ends)
    low, high = stats.binom.ppf([0.0005, 0.9995], STUDIES, 0.95)
    assert low <= covered <= high
