"""Bypass mode saves forwards and has one ratio; combined corrections keep what all of them keep."""

import math

import pytest
import torch
from helpers.commands import Fit
from helpers.exact import F64
from helpers.run_results import NO_VALIDATION, column, rows
from torch import Tensor

from grpo_pl.losses.bypass import Bypass, CombinedCorrection
from grpo_pl.losses.correction import ImportanceCorrection, MismatchCorrection
from grpo_pl.losses.rejection import DivergenceRejection, RatioRejection
from grpo_pl.module import PolicyOptimization
from grpo_pl.types import Experience, TokenScores

MASK = torch.tensor([[False, True, True, True], [False, True, True, False]])
RATIOS = torch.tensor([[9.0, 4.0, 0.25, 1.0], [9.0, 0.5, 8.0, 9.0]], dtype=F64)
SAMPLING = torch.full(RATIOS.shape, -2.5, dtype=F64)


def corrected(correction: MismatchCorrection) -> tuple[Tensor | None, Tensor | None, dict[str, float]]:
    weights, metrics, kept = correction(SAMPLING + RATIOS.log(), SAMPLING, MASK)
    return weights, kept, metrics


@pytest.mark.parametrize(
    ("arguments", "passes"),
    [
        ((), 4 + 2),  # the second minibatch's old log-probabilities are computed before the update
        (("--model.correction", "ImportanceCorrection"), 4 + 4),
        (("--model.correction", "Bypass"), 4),
        (("--model.correction", "Bypass", "--data.update_epochs", "2"), 8),
        (("--model.correction", "Bypass", "--model.critic", "ValueHead", "--model.advantage", "GAE"), 4 + 4),
    ],
)
def test_bypass_mode_reads_nothing_before_the_update_unless_something_else_does(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], passes: int
) -> None:
    """Two minibatches of two micro-batches."""
    read, forward = 0, PolicyOptimization.forward

    def counted(self: PolicyOptimization, batch: Experience) -> TokenScores:
        nonlocal read
        read += 1
        return forward(self, batch)

    monkeypatch.setattr(PolicyOptimization, "forward", counted)
    fit("--trainer.max_epochs", 1, *arguments, *NO_VALIDATION)
    assert read == passes


def test_the_ratio_of_bypass_mode_is_that_to_the_engine(fit: Fit) -> None:
    """A run that does not move: the ratio shows the mismatch, and the mismatch is not hidden."""
    still = ("--model.optimizer.lr", "0.0", "--data.engine.dtype", "bfloat16", *NO_VALIDATION)
    plain, bypassed = fit(*still), fit(*still, "--model.correction", "Bypass")
    assert column(plain, "train/ratio_deviation") == [0.0, 0.0, 0.0]
    assert min(column(bypassed, "train/ratio_deviation")) > 1e-5
    for name in ("sync/logprob_mismatch", "sync/logprob_mismatch_max"):
        assert column(bypassed, name) == pytest.approx(column(plain, name), rel=1e-4)
        assert min(column(bypassed, name)) > 0


def test_a_combination_keeps_what_all_keep_and_logs_what_any_rejects() -> None:
    one, other = RatioRejection("token", 0.3, math.inf), DivergenceRejection("token", "k2", 1.0)
    weighted = ImportanceCorrection(high=2.0)
    weights, kept, metrics = corrected(CombinedCorrection([weighted, one, other]))
    assert torch.equal(kept, corrected(one)[1] & corrected(other)[1])
    assert kept.tolist() == [[True, True, False, True], [True, True, False, True]]
    assert metrics["sync/rejected_tokens"] == 2 / 5
    assert torch.equal(weights, corrected(weighted)[0])
    assert metrics["sync/weight_mean"] == corrected(weighted)[2]["sync/weight_mean"]


def test_a_combination_asks_for_what_its_parts_ask_for() -> None:
    both = CombinedCorrection([Bypass(), RatioRejection()])
    assert (both.bypasses, both.rejects, both.needs_old_logprobs) == (True, True, True)
    weighted = CombinedCorrection([ImportanceCorrection(), DivergenceRejection()])
    assert (weighted.bypasses, weighted.rejects) == (False, True)
    assert (Bypass().needs_old_logprobs, Bypass().rejects) == (False, False)


def test_bypass_mode_with_a_rejection_runs(fit: Fit) -> None:
    parts = '{"corrections": [{"class_path": "Bypass"}, {"class_path": "RatioRejection"}]}'
    folder = fit(
        *("--model.correction", f'{{"class_path": "CombinedCorrection", "init_args": {parts}}}'),
        *("--trainer.max_epochs", "1", *NO_VALIDATION),
    )
    assert rows(folder)[1]["sync/rejected_tokens"] == 0.0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([Bypass()], "corrections: expected two or more"),
        ([ImportanceCorrection(), ImportanceCorrection()], "corrections: expected at most one Importance"),
        ([Bypass(), ImportanceCorrection()], "corrections: Bypass and ImportanceCorrection weigh"),
    ],
)
def test_combinations_without_sense_are_refused(parts: list[MismatchCorrection], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        CombinedCorrection(parts)
