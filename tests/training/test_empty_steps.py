"""Optimizer steps in which the policy has no gradient."""

import torch
from helpers.commands import Fit
from helpers.run_results import column, saved

FADING = (
    *("--model.rewards.digit", "null", "--model.kl", "null", "--trainer.limit_val_batches", "0"),
    *("--model.rewards.fading", "helpers.faults.FallingSilent", "--model.rewards.fading.until", "1"),
)


def test_momentum_moves_a_policy_without_a_gradient_unless_such_steps_are_skipped(fit: Fit) -> None:
    one, taken, skipped = (
        fit(*FADING, "--trainer.max_epochs", epochs, "--model.empty_steps", empty_steps)
        for epochs, empty_steps in ((1, "take"), (3, "take"), (3, "skip"))
    )
    for folder in (taken, skipped):
        assert column(folder, "rollout/groups_without_signal")[1:] == [1.0, 1.0]
        assert column(folder, "train/empty_steps") == [0.0, 2.0, 2.0]
    before, moved, kept = (saved(folder)["state_dict"] for folder in (one, taken, skipped))
    assert all(torch.equal(before[name], kept[name]) for name in before)
    assert max(float((before[name] - moved[name]).abs().max()) for name in before) > 1e-4
