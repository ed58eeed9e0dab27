"""Rates of success: values by hand, enumeration, and a published table."""

import itertools
from collections import Counter
from collections.abc import Sequence

import pytest
from helpers.exact import few
from hypothesis import given
from hypothesis import strategies as st

from grpo_pl.functional import majority_at_k, pass_at_k, wilson_interval


def test_pass_at_k_by_hand() -> None:
    # 2 of 4 are right: 1 - C(2, 2) / C(4, 2) = 1 - 1 / 6
    assert pass_at_k([True, False, True, False], 2) == pytest.approx(5 / 6)
    assert pass_at_k([True, False, True, False], 1) == 0.5
    assert pass_at_k([True, False, False, False], 4) == 1.0
    assert pass_at_k([False, False, False], 2) == 0.0


@few
@given(st.lists(st.booleans(), min_size=1, max_size=7))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_response(correct: list[bool]) -> None:
    for k in range(1, len(correct) + 1):
        subsets = [any(chosen) for chosen in itertools.combinations(correct, k)]
        assert pass_at_k(correct, k) == pytest.approx(sum(subsets) / len(subsets))


def majority_by_enumeration(answers: Sequence[str | None], right: set[str], k: int) -> float:
    wins = []
    for chosen in itertools.combinations(answers, k):
        votes = Counter(answer for answer in chosen if answer is not None)
        tied = [answer for answer, count in votes.items() if count == max(votes.values())]
        wins.append(sum(answer in right for answer in tied) / len(tied) if tied else 0.0)
    return sum(wins) / len(wins)


def test_majority_at_k_by_hand() -> None:
    # pairs of [5, 5, 7, None]: {5,5} 1; {5,7} twice, by lot 1/2; {5,None} twice 1; {7,None} 0
    answers, correct = ["5", "5", "7", None], [True, True, False, False]
    assert majority_at_k(answers, correct, 2) == pytest.approx(4 / 6)
    assert majority_at_k(answers, correct, 4) == pytest.approx(1.0)
    assert majority_at_k([None, None], [False, False], 2) == 0.0


@pytest.mark.parametrize("right", [{"a"}, {"a", "b"}])
def test_majority_at_k_is_the_mean_over_all_subsets_with_ties_drawn_by_lot(right: set[str]) -> None:
    for size in range(1, 7):
        for answers in itertools.combinations_with_replacement([None, "a", "b", "c"], size):
            correct = [answer in right for answer in answers]
            for k in range(1, size + 1):
                expected = majority_by_enumeration(answers, right, k)
                assert majority_at_k(answers, correct, k) == pytest.approx(expected), (answers, k)


def test_majority_at_k_does_not_depend_on_the_order_of_the_responses() -> None:
    answers = ["b", None, "a", "b", "a", "c", None, "a"]
    backwards = answers[::-1]
    for k in range(1, 9):
        one, other = (majority_at_k(some, [a == "a" for a in some], k) for some in (answers, backwards))
        assert one == pytest.approx(other)
        assert one == pytest.approx(majority_by_enumeration(answers, {"a"}, k))


def test_majority_of_one_is_pass_of_one() -> None:
    answers, correct = ["a", "b", "a", None, "c"], [True, False, True, False, False]
    assert majority_at_k(answers, correct, 1) == pytest.approx(pass_at_k(correct, 1))


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
NEWCOMBE = [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
]


@pytest.mark.parametrize(("successes", "trials", "low", "high"), NEWCOMBE)
def test_wilson_interval_is_that_of_the_published_table(
    successes: int, trials: int, low: float, high: float
) -> None:
    assert wilson_interval(float(successes), trials) == pytest.approx((low, high), abs=5.1e-5)


@few
@given(st.integers(1, 60), st.data())
def test_the_ends_of_wilsons_interval_are_where_the_score_test_just_rejects(
    trials: int, data: st.DataObject
) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_interval(float(successes), trials, z=1.5)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1
    for end in (low, high):
        assert (successes / trials - end) ** 2 == pytest.approx(1.5**2 * end * (1 - end) / trials, abs=1e-12)
    mirrored = wilson_interval(float(trials - successes), trials, z=1.5)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_interval_of_no_trials_is_everything() -> None:
    assert wilson_interval(0.0, 0) == (0.0, 1.0)
