"""The chances of each curriculum."""

from typing import Any

import pytest
import torch

from grpo_pl.prompts import Curriculum, DifficultyWindow, NoPositiveResampling, PassRates


def after(*visits: tuple[list[int], list[int]]) -> PassRates:
    """The pass rates after iterations with so many responses and right ones."""
    rates = PassRates.none(len(visits[0][0]))
    for responses, right in visits:
        rates.add(torch.tensor(responses), torch.tensor(right))
    return rates


def test_the_window_is_open_and_looks_at_the_last_visit() -> None:
    rates = after(([10] * 6, [0, 10, 0, 10, 5, 5]), ([10] * 6, [1, 9, 2, 8, 0, 10]))
    window = DifficultyWindow(low=0.1, high=0.9, keep_easy=0.25, keep_hard=0.5)
    assert window.chances(rates).tolist() == [0.5, 0.25, 1.0, 1.0, 0.5, 0.25]


def test_no_positive_resampling_looks_at_the_whole_run() -> None:
    rates = after(([10, 10, 10], [9, 8, 0]), ([10, 10, 10], [9, 10, 10]))
    assert NoPositiveResampling(0.9).chances(rates).tolist() == [0.0, 0.0, 1.0]
    assert NoPositiveResampling(0.95).chances(rates).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("curriculum", "arguments", "sentence"),
    [
        (DifficultyWindow, {"low": 0.9, "high": 0.1}, r"low=0\.9: expected 0 <= low < high <= 1"),
        (DifficultyWindow, {"keep_easy": 1.5}, r"keep_easy=1\.5: expected a share in \[0, 1\]"),
        (DifficultyWindow, {"keep_hard": float("nan")}, r"keep_hard=nan: expected a share"),
        (NoPositiveResampling, {"threshold": 0.0}, r"threshold=0\.0: expected a pass rate in \(0, 1\]"),
        (NoPositiveResampling, {"delay": -1}, r"delay=-1: expected 0 or more iterations, or null"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    curriculum: type[Curriculum], arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        curriculum(**arguments)
