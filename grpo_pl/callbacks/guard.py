"""Ends a run whose loss stays NaN or infinite, and says why."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from typing_extensions import override

from grpo_pl.callbacks.metrics_table import newest_row
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.training.optimization import OptimizedModule
from grpo_pl.training.skipped_steps import SkippedStep

log = logging.getLogger(__name__)
SHOWN = (
    *("rollout/reward", "train/loss", "train/grad_norm", "train/kl", "train/entropy", "train/clip_fraction"),
    *("sync/logprob_mismatch", "lr"),
)
"""The metrics of the last iteration that the diagnosis shows."""


class RunStoppedError(RuntimeError):
    """A guard or an alarm has ended the run: its observation, and what to try."""


class Guard(pl.Callback):
    """Reports each optimizer step that is skipped because a number is not finite, and ends a hopeless run.

    A run is hopeless after several such steps in a row, or when its weights are no longer finite, since no
    later step repairs them. Steps that float16's loss scaling overflows are skipped as well but do not count:
    they are how the scale is found.

    Args:
        max_skipped_steps: Skipped optimizer steps in a row with which the run ends.
    """

    def __init__(self, max_skipped_steps: int = 3) -> None:
        if max_skipped_steps < 1:
            raise ArgumentError(f"max_skipped_steps={max_skipped_steps}: expected 1 or more")
        self.max_skipped_steps = max_skipped_steps
        self._forget()

    def _forget(self) -> None:
        self.in_a_row, self.began, self.checkpoint = 0, "", ""

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, OptimizedModule), "every job trains one"
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        skipped = pl_module.skipped
        if skipped is None:
            self._forget()
            return
        steps = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
        step = f"step {batch_idx // trainer.accumulate_grad_batches + 1} of {steps}"
        self._count(trainer, skipped, f"iteration {trainer.current_epoch + 1}, {step}")

    def _count(self, trainer: pl.Trainer, skipped: SkippedStep, place: str) -> None:
        if trainer.is_global_zero:
            log.warning("SKIPPED %s: %s", place, skipped)
        if skipped.cause.name == "gradients" and scales_the_loss(trainer):
            return
        self.in_a_row += 1
        if self.in_a_row == 1:
            self.began, self.checkpoint = f"{place}, with {skipped.cause}", newest_checkpoint(trainer)
        if self.in_a_row >= self.max_skipped_steps or skipped.cause.name == "parameters":
            raise RunStoppedError(self._diagnosis(trainer, skipped))

    def _diagnosis(self, trainer: pl.Trainer, skipped: SkippedStep) -> str:
        before = newest_row(trainer) or {}
        numbers = ", ".join(f"{key} {before[key]:.4g}" for key in SHOWN if key in before)
        metrics = f" Iteration {before['iteration']:.0f} had {numbers}." if numbers else ""
        healthy = f" From before: {self.checkpoint}." if Path(self.checkpoint).exists() else ""
        return (
            f"optimizer steps that were not taken, in a row: {self.in_a_row} (guard.max_skipped_steps: "
            f"{self.max_skipped_steps}). It began in {self.began}; the last one: {skipped}."
            f"{metrics}{healthy} Try {skipped.cause.source.advice}."
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row, "began": self.began, "checkpoint": self.checkpoint}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.in_a_row, self.began = state_dict["in_a_row"], state_dict["began"]
        self.checkpoint = state_dict["checkpoint"]


def scales_the_loss(trainer: pl.Trainer) -> bool:
    """Whether the loss scale is still being searched, by gradients that overflow."""
    plugin = trainer.precision_plugin
    scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
    return scaler is not None and float(scaler.get_scale()) > 1


def newest_checkpoint(trainer: pl.Trainer) -> str:
    """The file that was saved last; empty if there is none."""
    saved = [c._last_checkpoint_saved for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    return next((path for path in saved if path), "")
