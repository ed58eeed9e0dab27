"""Which rows of an endless stream are drawn, and when they come again."""

import math
from itertools import pairwise

import pytest

from grpo_pl.functional import derive_seed, permutation
from grpo_pl.prompts.walk import Walk


def stream(count: int, chances: list[float] | None = None) -> list[tuple[int, int]]:
    """The rows that are drawn one by one, each with its turn."""
    walk = Walk(12, 3, "prompts")
    return [(row, (walk.place - 1) // 12) for _ in range(count) for row in walk.take(1, chances)]


def test_without_chances_it_is_one_permutation_after_the_other() -> None:
    rows = [row for row, _ in stream(36)]
    assert rows == [row for turn in range(3) for row in permutation(12, derive_seed(3, "prompts", turn))]


@pytest.mark.parametrize("chance", [0.25, 0.3, 0.1, 0.75, 1 / 3])
def test_a_row_is_drawn_in_its_share_of_any_turns_and_comes_again_within_the_bound(chance: float) -> None:
    drawn = stream(1200, [chance] * 4 + [1.0] * 8)
    last = drawn[-1][1]
    assert last > 100
    first_turns = set()
    for row in range(4):
        turns = [turn for one, turn in drawn if one == row and turn < last]
        first_turns.add(turns[0])
        assert all(1 <= b - a <= math.ceil(1 / chance) for a, b in pairwise(turns))
        for some in (10, 33, last):
            for begin in range(0, last - some, 7):
                inside = sum(begin <= turn < begin + some for turn in turns)
                assert inside in (math.floor(chance * some), math.ceil(chance * some))
    for row in range(4, 12):
        assert [turn for one, turn in drawn if one == row and turn < last] == list(range(last))
    assert len(first_turns) > 1, "rows of one chance do not all come at once"


def test_a_row_without_a_chance_is_never_drawn_and_all_are_if_none_has_one() -> None:
    assert {row for row, _ in stream(60, [0.0, 1.0] * 6)} == {1, 3, 5, 7, 9, 11}
    assert stream(60, [0.0] * 12) == stream(60)


def test_the_cut_into_draws_does_not_change_the_stream() -> None:
    chances = [0.25, 0.5, 1.0] * 4
    one, other = Walk(12, 3, "prompts"), Walk(12, 3, "prompts")
    assert one.take(50, chances) == [row for _ in range(10) for row in other.take(5, chances)]
    assert one.place == other.place
