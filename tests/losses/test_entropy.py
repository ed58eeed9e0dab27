"""The controller of the entropy bonus."""

import math
from collections.abc import Callable

import pytest
import torch
from helpers.commands import Fit
from helpers.exact import close
from helpers.experiences import experience
from helpers.run_results import NO_VALIDATION, column, saved, untimed

from grpo_pl.losses import EntropyBonus, TargetEntropy
from grpo_pl.types import TokenScores

CONTROLLED = ("--model.entropy", "EntropyBonus", "--model.entropy.controller", "TargetEntropy")


def test_the_coefficient_rises_below_the_target_and_is_applied_there_alone() -> None:
    bonus = EntropyBonus(0.02, TargetEntropy(target=0.5, step=0.01, low=0.01, high=0.04))
    assert float(bonus.coefficient) == 0, "nothing is measured yet"
    # entropy, coefficient applied afterwards, the coefficient that is held
    for entropy, applied, held in (
        (0.5, 0.03, 0.03),  # at the target
        (0.1, 0.04, 0.04),
        (0.1, 0.04, 0.04),  # the greatest
        (0.6, 0.0, 0.03),
        (0.7, 0.0, 0.02),
        (9.0, 0.0, 0.01),
        (9.0, 0.0, 0.01),  # the least
        (0.2, 0.02, 0.02),
    ):
        bonus.adapt(torch.tensor(entropy))
        assert float(bonus.coefficient) == pytest.approx(applied, abs=1e-7)
        assert 0.02 + float(bonus.controller.moved) == pytest.approx(held, abs=1e-7)


@pytest.mark.parametrize("measured", [None, torch.tensor(math.nan), torch.tensor(math.inf)])
def test_an_entropy_that_was_not_measured_moves_nothing(measured: torch.Tensor | None) -> None:
    bonus = EntropyBonus(0.0, TargetEntropy())
    bonus.adapt(torch.tensor(0.1))
    before = {name: value.clone() for name, value in bonus.state_dict().items()}
    bonus.adapt(measured)
    assert before.keys() == {"controller.moved", "controller.applied"}
    assert all(torch.equal(before[name], value) for name, value in bonus.state_dict().items())


def test_the_coefficient_of_now_multiplies_the_entropy_and_is_logged() -> None:
    bonus = EntropyBonus(0.0, TargetEntropy(step=0.25))
    bonus.adapt(torch.tensor(0.0))
    entropy = torch.tensor([[2.0, 4.0]], requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    got = bonus.term(TokenScores(logprobs=torch.zeros(1, 2), entropy=entropy), experience(mask))
    close(got.loss.detach(), [[-0.5, -1.0]])
    close(torch.autograd.grad(got.loss.sum(), entropy)[0], [[-0.25, -0.25]])
    assert got.metrics["train/entropy_coefficient"].tolist() == [[0.25, 0.25]]


def test_a_fixed_coefficient_stays_and_has_no_state_and_no_metric() -> None:
    bonus = EntropyBonus(0.3)
    bonus.adapt(torch.tensor(0.0))
    assert bonus.coefficient == 0.3
    assert not bonus.state_dict()
    scores = TokenScores(logprobs=torch.zeros(1, 2), entropy=torch.ones(1, 2))
    assert bonus.term(scores, experience(torch.ones(1, 2, dtype=torch.bool))).metrics == {}


def test_a_resumed_run_goes_on_with_its_own_coefficient(fit: Fit) -> None:
    target = (*CONTROLLED, "--model.entropy.controller.target", "100", "--model.entropy.coefficient", "0.01")
    whole = fit("--trainer.max_epochs", "3", *target, *NO_VALIDATION)
    half = fit("--trainer.max_epochs", "2", *target, *NO_VALIDATION)
    fit("--trainer.max_epochs", "3", "--ckpt_path", "last", *target, *NO_VALIDATION, root=half)
    assert untimed(whole) == untimed(half)
    assert column(half, "train/entropy_coefficient") == pytest.approx([0.0, 0.015, 0.02])
    moved = saved(half)["state_dict"]["entropy.controller.moved"]
    assert float(moved) == pytest.approx(0.015)


def test_while_only_the_critic_learns_the_coefficient_stays(fit: Fit) -> None:
    warmup = ("--model.critic", "ValueHead", "--model.advantage", "GAE", "--model.critic_warmup", "2")
    target = (*CONTROLLED, "--model.entropy.controller.target", "100")
    folder = fit("--trainer.max_epochs", "4", *warmup, *target, *NO_VALIDATION)
    assert column(folder, "train/entropy_coefficient") == pytest.approx([0.0, 0.0, 0.0, 0.006])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TargetEntropy(target=0.0), r"^target=0\.0: expected a number above 0"),
        (lambda: TargetEntropy(step=-1.0), r"^step=-1\.0: expected a number above 0"),
        (lambda: TargetEntropy(low=0.5, high=0.1), r"^low=0\.5, high=0\.1: expected 0 <= low <= high"),
        (
            lambda: EntropyBonus(2.0, TargetEntropy()),
            r"^coefficient=2\.0: expected a number within the controller's low=0\.0 and high=1\.0",
        ),
    ],
)
def test_a_bad_argument_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
