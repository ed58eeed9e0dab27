"""A number that is not finite costs an optimizer step and nothing else; many of them end the run."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Fit, Stopped
from helpers.run_results import NO_VALIDATION, callback, column, same, saved, strategy

from grpo_pl.callbacks.guard import Guard
from grpo_pl.functional import one_if_finite
from grpo_pl.runs.checkpoint_io import AtomicCheckpointIO
from grpo_pl.training.skipped_steps import BEFORE, SkippedStep, explain
from grpo_pl.types import Experience

ONE_STEP = ("--data.minibatches", 1, "--checkpoint.save_top_k", -1, "--samples.every", 0, *NO_VALIDATION)
"""One optimizer step in an iteration, of two micro-batches; all checkpoints are kept."""


def engine(*versions: int) -> tuple[object, ...]:
    return "--data.engine", "helpers.faults.NaNEngine", "--data.engine.versions", list(versions)


def learned(folder: Path, iteration: int) -> list[Any]:
    """Weights, and the optimizer's moments and step counts, after an iteration."""
    path = folder / "checkpoints" / f"iteration-{iteration:04d}.ckpt"
    checkpoint = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    return [checkpoint["state_dict"], [optimizer["state"] for optimizer in checkpoint["optimizer_states"]]]


def assert_only_the_second_step_is_lost(folder: Path) -> None:
    assert column(folder, "train/skipped_steps") == [0, 1, 0]
    assert same(learned(folder, 1), learned(folder, 2))
    assert not same(learned(folder, 2)[0], learned(folder, 3)[0])
    assert all(w.isfinite().all() for w in learned(folder, 3)[0].values())


# ----------------------------------------------------------------------------------------- one step is lost


def test_one_nan_of_the_engine_skips_its_whole_step_and_nothing_else(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other micro-batch of the step is sound, and no term of the loss reads what the engine says."""
    scheduler = ("--model.lr_scheduler", "torch.optim.lr_scheduler.LinearLR")
    folder = fit(*engine(1), *ONE_STEP, *scheduler)
    assert_only_the_second_step_is_lost(folder)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("SKIPPED")]
    assert len(said) == 1
    assert "SKIPPED iteration 2, step 1 of 1: not finite: the engine's log-probabilities (1 of " in said[0]
    assert column(folder, "optimizer_steps") == [1, 2, 3]
    assert column(fit(*ONE_STEP, *scheduler), "lr") == column(folder, "lr"), "the schedule goes on"


@pytest.mark.parametrize("fused", ["false", "true"])
def test_an_infinite_gradient_moves_and_decays_nothing(fit: Fit, fused: str) -> None:
    decay = ("--model.optimizer.weight_decay", 0.1, "--model.optimizer.fused", fused)
    folder = fit(
        *callback("helpers.faults.PoisonGradient"), *ONE_STEP, *decay, "--trainer.gradient_clip_val", 1.0
    )
    assert_only_the_second_step_is_lost(folder)


@pytest.mark.parametrize(
    "how", [strategy("ddp"), pytest.param(strategy("fsdp2"), marks=pytest.mark.slow)], ids=["ddp", "fsdp2"]
)
def test_what_is_not_finite_on_one_rank_skips_the_step_on_all(fit: Fit, how: tuple[str, ...]) -> None:
    one_rank = ("--data.engine.rank", 1, "--trainer.accumulate_grad_batches", 2)
    folder = fit(*engine(1), *one_rank, *ONE_STEP, *how, *callback("helpers.faults.Digest"), ranks=2)
    assert_only_the_second_step_is_lost(folder)
    assert (folder / "digest-0").read_text() == (folder / "digest-1").read_text()


def test_a_moving_coefficient_does_not_move_by_a_kl_that_is_not_finite(fit: Fit) -> None:
    controller = ("--model.kl.controller", "AdaptiveCoefficient", "--model.kl.controller.target", 0.01)
    folder = fit(*callback("helpers.faults.Poison", model="reference", iteration=3), *ONE_STEP, *controller)
    before, after = (saved(folder, f"iteration-{i:04d}.ckpt")["state_dict"] for i in (2, 3))
    moved = {name: value for name, value in after.items() if name.startswith("kl.")}
    assert moved
    assert same(moved, {name: before[name] for name in moved})


def test_where_all_is_finite_the_guard_changes_no_bit() -> None:
    loss = torch.tensor(0.1, requires_grad=True)
    (loss * one_if_finite(loss, torch.tensor(-3e38), torch.tensor(1e-45))).backward()
    assert loss.grad == 1
    for bad in (math.nan, math.inf, -math.inf):
        assert one_if_finite(loss, torch.tensor(bad)).isnan()


# ---------------------------------------------------------------------------------------------- the run ends


def test_three_lost_steps_in_a_row_end_the_run_wherever_it_was_resumed(fit: Fit, stopped: Stopped) -> None:
    bad = (*engine(1, 2, 3), *ONE_STEP)
    whole = stopped(fit, *bad, "--trainer.max_epochs", 9)
    folder = fit(*bad, "--trainer.max_epochs", 3)
    assert column(folder, "train/skipped_steps") == [0, 1, 1]
    again = stopped(fit, *bad, "--trainer.max_epochs", 9, "--ckpt_path", "last", root=folder)
    for said in (whole, again):
        assert "in a row: 3 (guard.max_skipped_steps: 3)" in said
        assert "It began in iteration 2, step 1 of 1, with the engine's log-probabilities (1 of " in said
        assert "Iteration 3 had rollout/reward " in said
        assert "iteration-0001.ckpt. Try another data.engine.dtype" in said
    assert column(folder, "iteration") == [0, 1, 2, 3]
    assert same(learned(folder, 1), learned(folder, 3))


def test_a_step_between_them_is_a_new_beginning(fit: Fit) -> None:
    settings = ("--guard.max_skipped_steps", 2, "--trainer.max_epochs", 5)
    folder = fit(*engine(1, 3), *ONE_STEP, *settings)
    assert column(folder, "train/skipped_steps") == [0, 1, 0, 1, 0]


def test_weights_that_are_not_finite_end_the_run_and_leave_the_last_checkpoint(
    fit: Fit, stopped: Stopped, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    said = stopped(
        fit,
        *callback("helpers.faults.Poison"),
        "--samples.every",
        0,
        "--curves.draw",
        "true",
        *NO_VALIDATION,
        root=folder,
    )
    assert "in a row: 1 " in said
    assert "It began in iteration 2, step 1 of 2, with the trained weights, since the step before" in said
    assert "first of policy.language_model.model.embed_tokens.weight" in said
    assert str(folder / "checkpoints" / "iteration-0001.ckpt") in said
    assert (folder / "checkpoints" / "last.ckpt").resolve().name == "iteration-0001.ckpt"
    assert all(w.isfinite().all() for w in learned(folder, 1)[0].values())
    assert (folder / "curves.png").exists()


@pytest.mark.parametrize(
    ("settings", "cause", "advice"),
    [
        (("--model.optimizer.lr", 1e30), "the gradient", "a lower model.optimizer.lr"),
        (
            (*callback("helpers.faults.Poison", model="reference", iteration=1), "--data.minibatches", 4),
            "the reference's log-probabilities",
            "model.reference.dtype",
        ),
        (
            (
                *(
                    "--model.rewards.digit",
                    "Function",
                    "--model.rewards.digit.function",
                    "helpers.faults.enormous",
                ),
                *("--data.minibatches", 4, "--model.advantage.scale", "none"),
            ),
            "the advantages",
            "rewards of moderate size",
        ),
    ],
    ids=["learning rate", "reference", "rewards"],
)
def test_the_cause_is_named_before_what_follows_from_it(
    fit: Fit, stopped: Stopped, settings: tuple[object, ...], cause: str, advice: str
) -> None:
    said = stopped(fit, *settings, "--samples.every", 0, *NO_VALIDATION)
    assert f"with {cause}" in said
    assert said.count("the gradient (of ") == 2 if cause == "the gradient" else 1
    assert f"Try {advice}" in said


def test_a_loss_scale_that_is_being_found_is_no_failure(fit: Fit) -> None:
    folder = fit("--trainer.plugins", "helpers.faults.OverflowingHalf", *ONE_STEP, "--trainer.max_epochs", 10)
    skipped = column(folder, "train/skipped_steps")
    assert skipped[:4] == [1, 1, 1, 1]
    assert skipped[-1] == 0


def test_a_bound_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^max_skipped_steps=0"):
        Guard(max_skipped_steps=0)


# ----------------------------------------------------------------------------------------- what is not finite


def explained(watched: dict[str, list[torch.Tensor]], *gradients: list[float]) -> SkippedStep:
    """What is found beside parameters of two numbers each with the given gradients."""
    parameters = {f"layer{i}": torch.nn.Parameter(torch.ones(2)) for i in range(len(gradients))}
    for parameter, gradient in zip(parameters.values(), gradients, strict=True):
        parameter.grad = torch.tensor(gradient) if gradient else None
    return explain(watched, parameters, lambda counts: counts)


def test_findings_stand_in_the_order_in_which_the_numbers_are_made() -> None:
    bad, good = torch.tensor([math.nan, 1.0]), torch.ones(3)
    step = explained(
        {"loss": [bad.sum()], "old_logprobs": [good, bad], "advantages": [good]},
        [math.inf, 1.0], [math.nan, 0.0], [1.0, 2.0], [],
    )  # fmt: skip
    assert [finding.name for finding in step.findings] == ["old_logprobs", "loss", "gradients"]
    assert str(step) == (
        "not finite: the policy's log-probabilities before the update (1 of 5 numbers), then the loss (1 of "
        "1 numbers), then the gradient (of 2 of 4 parameters, first of layer1)"
    )


def test_a_norm_may_overflow_where_no_number_does() -> None:
    step = explained({}, [3e38, 3e38])
    assert [finding.name for finding in step.findings] == ["gradients"]
    assert "its norm alone" in str(step)


def test_every_number_of_a_batch_has_a_name() -> None:
    floats = {f.name for f in dataclasses.fields(Experience) if "Float[" in str(f.type)}
    assert {"sampling_logprobs", "weights", "prompt_weights"} <= floats <= BEFORE.keys()
