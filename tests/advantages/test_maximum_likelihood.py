"""MaxRL by hand, and what it climbs, by enumeration of every group."""

import itertools

import pytest
import torch
from helpers.exact import F64, close
from helpers.feedbacks import assign
from torch import Tensor

from grpo_pl.advantages import LeaveOneOut, MaxRL

LOGITS = torch.tensor([0.3, -0.8, 1.1, 0.0], dtype=F64).requires_grad_()
RIGHT = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=F64)
"""Four responses of one token, of which two are right."""
CHANCES = LOGITS.softmax(-1)
SCORES = torch.stack([torch.autograd.grad(lp, LOGITS, retain_graph=True)[0] for lp in LOGITS.log_softmax(-1)])
SUCCESS = (CHANCES * RIGHT).sum()


def climbs(size: int) -> Tensor:
    """The expected gradient of a group of this size."""
    total = torch.zeros_like(LOGITS)
    for group in itertools.product(range(4), repeat=size):
        rows = list(group)
        advantages, _ = assign(MaxRL(), RIGHT[rows].tolist(), [0] * size)
        total = total + CHANCES[rows].prod() * (advantages[:, None] * SCORES[rows]).mean(0)
    return total.detach()


def cut_after(terms: int) -> Tensor:
    """The gradient of the first terms of log p = -sum (1 - p)^k / k."""
    series = -sum(((1 - SUCCESS) ** k / k for k in range(1, terms + 1)), torch.zeros((), dtype=F64))
    return torch.autograd.grad(series, LOGITS, retain_graph=True)[0]


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_it_climbs_the_series_of_the_log_of_the_success_rate_cut_after_g_minus_1_terms(size: int) -> None:
    close(climbs(size), cut_after(size - 1))
    p = float(SUCCESS)
    (of_rate,) = torch.autograd.grad(SUCCESS, LOGITS, retain_graph=True)
    close(climbs(size), (1 - (1 - p) ** (size - 1)) / p * of_rate)


def test_the_series_comes_to_the_log_of_the_success_rate() -> None:
    (whole,) = torch.autograd.grad(SUCCESS.log(), LOGITS, retain_graph=True)
    close(cut_after(200), whole)
    assert (climbs(5) - whole).norm() < (climbs(2) - whole).norm()


def test_a_baseline_in_groups_without_success_too_would_bring_the_last_term_back() -> None:
    """The paper's estimator, sum of the right responses' scores over their number, is cut after G terms."""
    size, total = 3, torch.zeros_like(LOGITS)
    for group in itertools.product(range(4), repeat=size):
        rows = list(group)
        right = RIGHT[rows]
        total = total + CHANCES[rows].prod() * (right[:, None] * SCORES[rows]).sum(0) / right.sum().clamp(
            min=1
        )
    close(total.detach(), cut_after(size))


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1, 0, 0, 0, 0, 0, 0, 0], [7, *[-1] * 7]),  # GRPO's is 2.5 (with ddof 1: 2.47)
        ([1, 1, 1, 0], [1 / 3, 1 / 3, 1 / 3, -1]),
        ([0.5, 0.25, 0.0], [1, 0, -1]),
        ([0, 0, 0], [0, 0, 0]),
        ([1, 1], [0, 0]),
        ([1, -1, 0], [0, 0, 0]),  # the mean is 0
        ([-1, -2], [0, 0]),  # below 0
    ],
)
def test_by_hand(rewards: list[float], expected: list[float]) -> None:
    close(assign(MaxRL(), rewards, [0] * len(rewards))[0], expected)


def test_eps_is_added_to_the_mean_and_unscored_responses_are_left_out() -> None:
    close(assign(MaxRL(eps=0.5), [1, 0], [0, 0])[0], [0.5, -0.5])
    close(assign(MaxRL(), [1, 0, 9], [0, 0, 0], scored=[True, True, False])[0], [1, -1, 0])


def test_two_responses_are_left_out_of_their_baseline() -> None:
    for rewards in itertools.product((0, 1), repeat=2):
        close(assign(MaxRL(), rewards, [0, 0])[0], assign(LeaveOneOut(), rewards, [0, 0])[0])
