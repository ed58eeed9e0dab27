"""Weights for the mismatch between engine and trainer: by hand, and by enumeration."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.exact import F64, few
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo_pl.losses.correction import ImportanceCorrection
from grpo_pl.runs.layout import read_metrics

MASK = torch.tensor([[False, True, True, True], [False, True, True, False], [False, False, False, False]])
RATIOS = torch.tensor([[9.0, 4.0, 0.25, 1.0], [9.0, 0.5, 8.0, 9.0], [9.0, 9.0, 9.0, 9.0]], dtype=F64)
"""Trainer over engine. The products over responses are 1 and 4."""


def correct(
    *, ratios: Tensor = RATIOS, mask: Tensor = MASK, **options: Any
) -> tuple[Tensor, dict[str, float]]:
    sampling = torch.full(ratios.shape, -2.5, dtype=ratios.dtype)
    return ImportanceCorrection(**options)(sampling + ratios.log(), sampling, mask)[:2]


BY_HAND = [
    # options, weights of the masked tokens, mean, share outside, (sum w)^2 / (n sum w^2)
    (
        {"level": "token", "mode": "truncate", "low": 0.4, "high": 2.0},
        [[2.0, 0.4, 1.0], [0.5, 2.0]],
        (5.9 / 5, 3 / 5, 5.9**2 / (5 * 9.41)),
    ),
    (
        {"level": "token", "mode": "mask", "low": 0.4, "high": 5.0},
        [[4.0, 0.0, 1.0], [0.5, 0.0]],
        (5.5 / 5, 2 / 5, 5.5**2 / (5 * 17.25)),
    ),
    (
        {"level": "sequence", "mode": "truncate", "high": 3.0},
        [[1.0, 1.0, 1.0], [3.0, 3.0]],
        (4 / 2, 1 / 2, 16 / (2 * 10)),
    ),
    (
        {"level": "sequence", "mode": "mask", "high": 3.0},
        [[1.0, 1.0, 1.0], [0.0, 0.0]],
        (1 / 2, 1 / 2, 1 / 2),
    ),
    (
        {"level": "geometric", "high": 3.0},  # 1, and the square root of 4
        [[1.0, 1.0, 1.0], [2.0, 2.0]],
        (3 / 2, 0.0, 9 / (2 * 5)),
    ),
    (
        {"level": "geometric", "high": 1.5, "normalize": True},  # 1 and 1.5 over their mean
        [[0.8, 0.8, 0.8], [1.2, 1.2]],
        (2.5 / 2, 1 / 2, 2.5**2 / (2 * 3.25)),
    ),
    (
        {"level": "token", "low": 0.4, "high": 2.0, "normalize": True},
        [[2.0 / 1.18, 0.4 / 1.18, 1.0 / 1.18], [0.5 / 1.18, 2.0 / 1.18]],
        (5.9 / 5, 3 / 5, 5.9**2 / (5 * 9.41)),
    ),
]


@pytest.mark.parametrize(("options", "expected", "metrics"), BY_HAND)
def test_weights_and_metrics_by_hand(
    options: dict[str, Any], expected: list[list[float]], metrics: tuple[float, float, float]
) -> None:
    weights, got = correct(**options)
    by_hand = torch.ones_like(RATIOS)
    by_hand[0, 1:], by_hand[1, 1:3] = (torch.tensor(row, dtype=F64) for row in expected)
    torch.testing.assert_close(weights, by_hand)
    names = ("sync/weight_mean", "sync/weights_outside", "sync/effective_sample_share")
    assert got == pytest.approx(dict(zip(names, metrics, strict=True)))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_ranks_with_unequal_shares_log_the_metrics_of_one(level: str) -> None:
    """Of 3 and 2 tokens, and of 1 response each."""
    sampling, correction = torch.full(RATIOS.shape, -2.5, dtype=F64), ImportanceCorrection(level, high=3.0)
    old, sums = sampling + RATIOS.log(), []
    correction(old[1:], sampling[1:], MASK[1:], lambda here: sums.append(here) or here)
    metrics = correction(old[:1], sampling[:1], MASK[:1], lambda here: here + sums[0]).metrics
    assert metrics == pytest.approx(correct(level=level, high=3.0)[1])


def test_engines_that_agree_give_weights_of_exactly_1() -> None:
    for level in ("token", "sequence"):
        weights, metrics = correct(level=level, ratios=torch.ones_like(RATIOS), low=1.0, high=1.0)
        assert (weights == 1).all()
        assert metrics == {
            "sync/weight_mean": 1.0,
            "sync/weights_outside": 0.0,
            "sync/effective_sample_share": 1.0,
        }


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("high", [2.0, math.inf])
def test_no_mismatch_is_too_great_for_finite_weights(level: str, mode: str, high: float) -> None:
    old = torch.tensor([[0.0, -1e4, 0.0, -1e4], [0.0, 0.0, 0.0, 0.0]])
    sampling = torch.tensor([[0.0, 0.0, -1e4, -math.inf], [math.nan, -1e3, -1e3, -1e3]])
    mask = torch.tensor([[False, True, True, False], [False, True, True, True]])
    correction = ImportanceCorrection(level=level, mode=mode, high=high)
    weights, metrics, _ = correction(old, sampling, mask)
    assert weights.isfinite().all()
    assert all(math.isfinite(value) for value in metrics.values())
    sampling[1, 1] = math.nan  # an engine's NaN must be seen
    assert correction(old, sampling, mask).weights[1, 1].isnan()


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_an_iteration_of_which_every_weight_is_masked_counts_as_no_sample(level: str) -> None:
    _, metrics = correct(level=level, mode="mask", ratios=torch.full_like(RATIOS, 50.0))
    assert metrics["sync/effective_sample_share"] == 0.0


def test_normalised_weights_that_are_all_0_stay_0() -> None:
    weights, _ = correct(mode="mask", normalize=True, ratios=torch.full_like(RATIOS, 50.0))
    assert (weights[MASK] == 0).all()


@few
@given(st.lists(st.floats(-3, 3), min_size=8, max_size=8), st.sampled_from(["token", "sequence"]))
def test_truncated_weights_are_inside_the_bounds_and_the_effective_share_inside_0_and_1(
    gaps: list[float], level: str
) -> None:
    ratios = torch.tensor(gaps, dtype=F64).view(2, 4).exp()
    mask = torch.tensor([[False, True, True, True], [False, False, True, True]])
    weights, metrics = correct(level=level, ratios=ratios, mask=mask, low=0.3, high=1.7)
    assert ((weights >= 0.3) & (weights <= 1.7)).all()
    assert 0 < metrics["sync/effective_sample_share"] <= 1 + 1e-12


def test_weights_without_bounds_make_the_engines_samples_speak_for_the_trainer() -> None:
    generator = torch.Generator().manual_seed(0)
    trainer, engine = torch.randn(2, 5, dtype=F64, generator=generator).log_softmax(-1)
    pushes = torch.randn(5, dtype=F64, generator=generator)
    weights = ImportanceCorrection(high=math.inf)(
        trainer[:, None], engine[:, None], torch.ones(5, 1, dtype=torch.bool)
    ).weights
    torch.testing.assert_close((engine.exp() * weights[:, 0] * pushes).sum(), (trainer.exp() * pushes).sum())


def test_the_weights_reach_the_loss(fit: Callable[..., Path]) -> None:
    """The engine is the trainer here, so weights are 1 but for rounding; bounds of 1 leave out the rest."""
    arguments = ("--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0", "--model.kl", "null")
    mask = ("--model.correction", "ImportanceCorrection", "--model.correction.mode", "mask")
    plain, kept, left_out = (
        read_metrics(fit(*arguments, *more) / "metrics.csv")[1]
        for more in ((), mask, (*mask, "--model.correction.low", "1.0", "--model.correction.high", "1.0"))
    )
    assert kept["train/grad_norm"] == pytest.approx(plain["train/grad_norm"], rel=1e-4)
    assert kept["sync/weight_mean"] == pytest.approx(1.0, abs=1e-4)
    assert left_out["sync/weights_outside"] > 0
    assert left_out["train/grad_norm"] != pytest.approx(plain["train/grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    "bounds", [{"low": -0.1}, {"low": 1.1, "high": 2.0}, {"high": 0.9}, {"high": math.nan}]
)
def test_bounds_that_leave_out_1_are_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^low=.*, high=.*: expected 0 <= low <= 1 <= high"):
        ImportanceCorrection(**bounds)
