"""Solutions of sums, right and hasty."""

import random
from typing import Any

import pytest

from grpo_pl.prompts import WorkedSums
from grpo_pl.prompts.worked_sums import hasty_solution, solution


def answered(text: str) -> str:
    return text.rpartition("#")[2]


def test_a_solution_has_a_line_for_each_column_and_the_sum() -> None:
    assert solution("583", "947") == "3+7=10\n8+4+1=13\n5+9+1=15\n#1530"
    assert solution("120", "405") == "0+5=5\n2+0=2\n1+4=5\n#525"
    assert all(
        answered(solution(f"{a:02}", f"{b:02}")).lstrip("0") == str(a + b)
        for a in range(1, 99)
        for b in (7, 40, 99)
    )


def test_a_forgotten_carry_is_missing_in_its_column_alone() -> None:
    assert solution("583", "947", [False, True, False]) == "3+7=10\n8+4=12\n5+9+1=15\n#1520"
    assert solution("583", "947", [True, True, True]) == "3+7=10\n8+4=12\n5+9=14\n#1420"


def test_rows_are_those_of_their_seed_and_the_parts_are_disjoint() -> None:
    rows, again = list(WorkedSums(size=50)), list(WorkedSums(size=90))[:50]
    assert rows == again
    assert rows != list(WorkedSums(size=50, seed=1))
    assert not {row.text for row in rows} & {row.text for row in WorkedSums(split="val")}
    for row in rows:
        a, b = row.text.split("+")
        assert int(a) + int(b) == int(row.answer) == int(answered(row.metadata["solution"]))
        assert len(row.metadata["responses"]) == 1


def test_a_hasty_writer_errs_as_often_as_said() -> None:
    rows = list(WorkedSums(size=4000))
    stepwise = [row for row in rows if "\n" in row.metadata["responses"][0]]
    direct = [row for row in rows if "\n" not in row.metadata["responses"][0]]
    assert len(stepwise) / len(rows) == pytest.approx(0.7, abs=0.03)
    carries = [row for row in direct if answered(solution(*row.text.split("+"), [True] * 3)) != row.answer]
    assert len(carries) / len(direct) == pytest.approx(0.7, abs=0.03)  # what it gets wrong where it forgets
    right = [row for row in carries if answered(row.metadata["responses"][0]) == row.answer]
    assert len(right) / len(carries) == pytest.approx(0.1, abs=0.03)


def test_without_direct_solutions_all_have_steps() -> None:
    draw = random.Random(0)
    assert all(hasty_solution("12", "34", 0.0, draw).count("\n") == 2 for _ in range(20))
    assert all("\n" not in hasty_solution("12", "34", 1.0, draw) for _ in range(20))


@pytest.mark.parametrize(
    ("options", "message"), [({"direct": 1.1}, "direct=1.1: expected a share"), ({"digits": 0}, "digits=0")]
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorkedSums(**options)
