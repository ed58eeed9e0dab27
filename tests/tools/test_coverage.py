"""The made-up studies of tools/coverage.py: their effect, and how often the reports' method covers it."""

import numpy as np
import pytest
from helpers.repository import load_tool
from scipy import stats

coverage = load_tool("coverage")
STUDIES = 400
ONE_IN_1000 = 0.0005, 0.9995


@pytest.mark.parametrize("effect", [0.0, 0.03])
@pytest.mark.parametrize("accuracy", [0.3, 0.95])
def test_the_effect_is_the_one_that_was_asked_for(accuracy, effect):
    setting = coverage.Setting(4, accuracy, effect, 0.5, 0.15)
    differences = setting.differences(500, 40, np.random.default_rng(0)).mean((1, 2))
    assert abs(differences.mean() - effect) < 3.3 * differences.std() / np.sqrt(500)


@pytest.mark.parametrize(("of_problems", "of_seeds"), [(0.0, 0.0), (0.0, 0.15), (0.5, 0.0), (0.5, 0.15)])
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_method_of_the_reports_covers_the_effect_as_often_as_it_says(seeds, of_problems, of_seeds):
    """Within 1 % of nominal with a large validation set (findings/statistics.md), and the studies' chance."""
    row = coverage.simulate(coverage.Setting(seeds, 0.3, 0.0, of_problems, of_seeds), STUDIES, problems=200)
    covered, false = row.coverage["crossed"], row.alarms["crossed"]
    assert stats.binom.ppf(ONE_IN_1000[0], STUDIES, 0.94) <= covered * STUDIES
    assert covered * STUDIES <= stats.binom.ppf(ONE_IN_1000[1], STUDIES, 0.96)
    assert false * STUDIES <= stats.binom.ppf(ONE_IN_1000[1], STUDIES, 0.06)


def test_equivalence_at_the_margin_is_claimed_no_more_often_than_the_level():
    row = coverage.simulate(coverage.Setting(5, 0.95, coverage.MARGIN, 0.0, 0.0), STUDIES, problems=200)
    assert row.equivalent * STUDIES <= stats.binom.ppf(ONE_IN_1000[1], STUDIES, 0.06)


def test_problems_alone_raise_more_false_alarms_where_seeds_differ():
    """The reason for the crossed analysis: a test that can fail here is one that would miss a broken one."""
    row = coverage.simulate(coverage.Setting(3, 0.3, 0.0, 0.0, 0.15), STUDIES, problems=200)
    assert row.alarms["problems alone"] * STUDIES > stats.binom.ppf(ONE_IN_1000[1], STUDIES, 0.1)


def test_the_tables_name_every_method(capsys, tmp_path):
    coverage.main(["--studies", "20", "--problems", "20", "--seeds", "[3]", "--out", str(tmp_path / "t.md")])
    text = capsys.readouterr().out
    assert text.strip() == (tmp_path / "t.md").read_text().strip()
    for name in coverage.METHODS:
        assert f"| {name} |" in text


@pytest.mark.parametrize(
    "wrong", [["--studies", "0"], ["--seeds", "[1]"], ["--seeds", "[]"], ["--problems", "1"]]
)
def test_a_study_that_cannot_be_analysed_is_refused(wrong, refused):
    assert "--studies of 1 or more" in refused(coverage.main, wrong)


@pytest.mark.parametrize("share_of_problems", [0.02, 0.1, 0.6])
def test_far_out_the_mixture_raises_no_more_false_alarms_than_nominal(share_of_problems):
    """Where adjusted tests live; Satterthwaite's degrees of freedom raise four times as many there."""
    studies = 100_000
    alone, mixed = coverage.far_out(3, share_of_problems, studies)
    assert mixed * studies <= stats.binom.ppf(ONE_IN_1000[1], studies, coverage.FAR)
    assert alone * studies > stats.binom.ppf(ONE_IN_1000[1], studies, coverage.FAR)
