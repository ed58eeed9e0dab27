"""While the critic warms up, no clock of the policy moves."""

import json
from pathlib import Path

import pytest
import torch
from helpers.commands import Fit
from helpers.run_results import NO_VALIDATION, column, rows, same, saved, untimed

PPO = ("--model.critic", "ValueHead", "--model.advantage", "GAE", "--model.critic_lr", "0.002")
ADAPTIVE = ("--model.kl.controller", "AdaptiveCoefficient", "--model.kl.controller.horizon", "2")
EVERY_OTHER = ("--model.reference_update", "EveryN", "--model.reference_update.iterations", "2")


def linear(start: float, steps: int) -> tuple[str, str]:
    arguments = {"start_factor": start, "end_factor": 0.1 if start == 1 else 1.0, "total_iters": steps}
    schedule = {"class_path": "torch.optim.lr_scheduler.LinearLR", "init_args": arguments}
    return "--model.lr_scheduler", json.dumps(schedule)


def iterations(count: int, warmup: int) -> tuple[str, ...]:
    return "--trainer.max_epochs", str(count), "--model.critic_warmup", str(warmup), *NO_VALIDATION


@pytest.fixture(scope="module")
def clocks(fit: Fit) -> Path:
    """Four iterations of two steps, the first two of them a warm-up, with every clock that there is."""
    return fit(*PPO, *ADAPTIVE, *EVERY_OTHER, *linear(1, 8), *iterations(4, 2))


def test_the_policys_schedule_starts_with_the_policy(clocks: Path) -> None:
    # the rate after each iteration: full until the third, whose two steps are 2 of 8 on the way to a tenth
    assert column(clocks, "lr") == pytest.approx([0.001, 0.001, 0.001 * (1 - 0.9 / 4), 0.001 * (1 - 0.9 / 2)])
    (optimizer,) = saved(clocks)["optimizer_states"]
    rates = [group["lr"] for group in optimizer["param_groups"]]
    assert rates == pytest.approx([0.001 * 0.55, 0.002 * 0.55]), "and then it is the critic's too"


def test_the_controller_of_the_kl_and_the_reference_wait_too(clocks: Path) -> None:
    """A KL of 0, for the policy has not moved, says nothing about the coefficient."""
    coefficients = column(clocks, "train/kl_coefficient")
    assert coefficients[:3] == [coefficients[0]] * 3
    assert coefficients[3] < coefficients[0]
    assert column(clocks, "train/kl")[:2] == [0.0, 0.0]


def test_of_a_policy_that_rests_no_gradient_is_measured_and_no_step_is_empty(clocks: Path) -> None:
    """0 would say that nothing had an advantage, and that momentum moved the weights."""
    for name in ("train/grad_norm", "train/empty_steps"):
        assert [name in row for row in rows(clocks)] == [False, False, False, True, True], name
    assert len(column(clocks, "train/critic_grad_norm")) == 4


def test_the_reference_counts_the_iterations_of_the_policy(fit: Fit) -> None:
    """Every second one: behind a warm-up of one it moves after the third, and not after the second."""
    policy, reference = [], []
    for count in (2, 3):
        state = saved(fit(*PPO, *EVERY_OTHER, *iterations(count, 1)))["state_dict"]
        name = next(name for name in state if name.startswith("policy.") and "embed" in name)
        policy.append(state[name])
        reference.append(state[name.replace("policy.", "reference.")])
    assert not torch.equal(policy[0], reference[0])
    assert torch.equal(policy[1], reference[1])


def test_a_critic_that_warms_up_learns_at_its_full_rate_whatever_the_schedule(fit: Fit) -> None:
    """Even where the schedule of the policy begins with a tenth of its rate."""
    constant, rising = (fit(*PPO, *iterations(2, 2), *more) for more in ((), linear(0.1, 8)))
    critics = [
        {name: w for name, w in saved(folder)["state_dict"].items() if name.startswith("critic.")}
        for folder in (constant, rising)
    ]
    assert same(*critics)
    (optimizer,) = saved(rising)["optimizer_states"]
    assert [group["lr"] for group in optimizer["param_groups"]] == pytest.approx([1e-4, 2e-4])


def test_a_run_interrupted_in_its_warm_up_ends_like_one_that_was_not(fit: Fit, clocks: Path) -> None:
    arguments = (*PPO, *ADAPTIVE, *EVERY_OTHER, *linear(1, 8))
    part = fit(*arguments, *iterations(4, 2), "--trainer.max_epochs", "1")
    fit(*arguments, *iterations(4, 2), "--ckpt_path", "last", root=part)
    assert untimed(clocks) == untimed(part)
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(saved(clocks)[key], saved(part)[key]), key
