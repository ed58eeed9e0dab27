"""Rejections by hand: what they take out, of which denominators, and what they log."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.exact import F64, close
from helpers.experiences import experience
from torch import Tensor

from grpo_pl.losses import SequenceMean, TokenMean
from grpo_pl.losses.correction import ImportanceCorrection, MismatchCorrection, check_level
from grpo_pl.losses.rejection import DivergenceRejection, RatioRejection
from grpo_pl.runs.layout import read_metrics

MASK = torch.tensor([[False, True, True, True], [False, True, True, False], [False, False, False, False]])
RATIOS = torch.tensor([[9.0, 4.0, 0.25, 1.0], [9.0, 0.5, 8.0, 9.0], [9.0, 9.0, 9.0, 9.0]], dtype=F64)
"""Trainer over engine. The products over responses are 1 and 4, the geometric means 1 and 2."""
SAMPLING = torch.full(RATIOS.shape, -2.5, dtype=F64)
K2 = (RATIOS.log().square() / 2).tolist()
K3 = (RATIOS - 1 - RATIOS.log()).tolist()


def kept(correction: MismatchCorrection, ratios: Tensor = RATIOS, mask: Tensor = MASK) -> Tensor:
    found = correction(SAMPLING + ratios.log(), SAMPLING, mask).kept
    assert found is not None
    return found


BY_HAND = [
    (RatioRejection("token", 0.3, 5.0), [[True, False, True], [True, False]]),
    (RatioRejection("token", 0.2, 5.0), [[True, True, True], [True, False]]),
    (RatioRejection("sequence", 0.5, 3.0), [[True] * 3, [False] * 2]),
    (RatioRejection("geometric", 0.5, 3.0), [[True] * 3, [True] * 2]),
    (RatioRejection("geometric", 0.5, 1.9), [[True] * 3, [False] * 2]),
    (RatioRejection("any_token", 0.3, math.inf), [[False] * 3, [True] * 2]),
    (RatioRejection("any_token", 0.0, 5.0), [[True] * 3, [False] * 2]),
    (DivergenceRejection("token", "k2", 0.9), [[False, False, True], [True, False]]),
    (DivergenceRejection("token", "k3", 1.0), [[False, True, True], [True, False]]),
    (DivergenceRejection("sum", "k2", 2.0), [[True] * 3, [False] * 2]),
    (DivergenceRejection("sum", "k3", 5.0), [[True] * 3, [False] * 2]),
    (DivergenceRejection("mean", "k2", K2[0][1] * 2 / 3 + 1e-9), [[True] * 3, [False] * 2]),
    (DivergenceRejection("mean", "k3", sum(K3[1][1:3]) / 2 + 1e-9), [[True] * 3, [True] * 2]),
    (DivergenceRejection("max", "k2", K2[0][1] + 1e-9), [[True] * 3, [False] * 2]),
    (DivergenceRejection("max", "k3", K3[1][2] + 1e-9), [[True] * 3, [True] * 2]),
]


@pytest.mark.parametrize(("correction", "expected"), BY_HAND)
def test_what_is_kept_by_hand(correction: MismatchCorrection, expected: list[list[bool]]) -> None:
    by_hand = torch.ones_like(MASK)
    by_hand[0, 1:], by_hand[1, 1:3] = (torch.tensor(row) for row in expected)
    assert torch.equal(kept(correction), by_hand)


def test_the_shares_of_tokens_and_responses_that_are_taken_out() -> None:
    found = RatioRejection("token", 0.3, 5.0)(SAMPLING + RATIOS.log(), SAMPLING, MASK)
    assert found.metrics == {"sync/rejected_tokens": 2 / 5, "sync/rejected_responses": 1.0}
    assert found.weights is None


def test_ranks_with_unequal_shares_log_the_metrics_of_one() -> None:
    correction, old, sums = RatioRejection("token", 0.3, 5.0), SAMPLING + RATIOS.log(), []
    correction(old[1:], SAMPLING[1:], MASK[1:], lambda here: sums.append(here) or here)
    both = correction(old[:1], SAMPLING[:1], MASK[:1], lambda here: here + sums[0]).metrics
    assert both == correction(old, SAMPLING, MASK).metrics


@pytest.mark.parametrize("correction", [c for c, _ in BY_HAND])
def test_engines_that_agree_reject_nothing(correction: MismatchCorrection) -> None:
    assert kept(correction, torch.ones_like(RATIOS)).all()


@pytest.mark.parametrize("correction", [RatioRejection("sequence"), DivergenceRejection("max")])
def test_the_nan_of_an_engine_is_not_hidden_by_a_rejection(correction: MismatchCorrection) -> None:
    sampling = SAMPLING.clone()
    sampling[0, 1] = math.nan
    found = correction(SAMPLING, sampling, MASK)
    assert found.kept is not None
    assert found.kept[0, 1]


def test_rejected_tokens_leave_the_denominators_and_tokens_of_weight_0_stay() -> None:
    """Three tokens of loss 1 and two of loss 3, of which a response (the second) is outside."""
    loss, old = torch.tensor([[0, 1, 1, 1], [0, 3, 3, 0]], dtype=F64), (SAMPLING + RATIOS.log())[:2]
    rejected = RatioRejection("sequence", 0.5, 3.0)(old, SAMPLING[:2], MASK[:2])
    masked = ImportanceCorrection("sequence", "mask", 0.5, 3.0)(old, SAMPLING[:2], MASK[:2])
    batch = experience(MASK[:2], kept=rejected.kept)
    batch.num_tokens, batch.num_sequences = 3, 1  # what `micro_batches` counts
    assert torch.equal(batch.counted.sum(-1), torch.tensor([3, 0]))
    for aggregate in (TokenMean(), SequenceMean()):
        close(aggregate(loss, batch), 1.0)
    assert masked.weights is not None
    close(TokenMean()(loss * masked.weights, experience(MASK[:2])), 3 / 5)
    close(SequenceMean()(loss * masked.weights, experience(MASK[:2])), 1 / 2)


def test_a_rejection_takes_tokens_out_of_a_run(fit: Callable[..., Path]) -> None:
    """The engine is the trainer here, ratios are 1 but for rounding; bounds of 1 reject the rest."""
    arguments = ("--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0", "--model.kl", "null")
    strict = ("--model.correction", "RatioRejection", "--model.correction.level", "token")
    strict = (*strict, "--model.correction.low", "1.0", "--model.correction.high", "1.0")
    row = read_metrics(fit(*arguments, *strict) / "metrics.csv")[1]
    assert 0 < row["sync/rejected_tokens"] < 1
    assert row["sync/rejected_tokens"] <= row["sync/rejected_responses"] <= 1


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (RatioRejection, {"low": 1.2, "high": 2.0}, "low=1.2, high=2.0: expected 0 <= low <= 1 <= high"),
        (DivergenceRejection, {"high": 0.0}, "high=0.0: expected a number of nats above 0"),
    ],
)
def test_settings_without_sense_are_refused(make: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make(**options)


def test_a_level_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"^level=mean: expected token, sequence or any_token$"):
        check_level("mean", "token", "sequence", "any_token")
