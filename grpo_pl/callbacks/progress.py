"""The progress bar: iterations, the current stage, and one line for each iteration."""

from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from typing_extensions import override

from grpo_pl.callbacks.metrics_table import newest_row
from grpo_pl.system.heartbeat import heartbeat

SHOWN = {
    "reward": ("rollout/reward", "{:.3f}"),
    "accuracy": ("val/accuracy", "{:.3f}"),
    "loss": ("val/loss", "{:.3f}"),
    "calibration error": ("val/calibration_error", "{:.3f}"),
    "kl": ("train/kl", "{:.4f}"),
    "tokens": ("rollout/response_tokens", "{:.1f}"),
    "truncated": ("rollout/truncated", "{:.0%}"),
    "tokens/s": ("time/tokens_per_s", "{:.0f}"),
}
"""Column of the iteration's line -> metric and format."""

STAGES = ("sync", "generate", "score", "update", "validate")


class Progress(ProgressBar):
    """A bar over the iterations with the stage under way, and a line of numbers for each iteration.

    Where the output is not a terminal, only the lines are written, and during a validation one every 30 s.
    """

    def __init__(self) -> None:
        super().__init__()
        self.console = Console()
        self._enabled = True
        self._bar: RichProgress | None = None
        self._stage = "validate"
        self._validation = ExitStack()

    @override
    def disable(self) -> None:
        self._enabled = False

    @override
    def enable(self) -> None:
        self._enabled = True

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not trainer.is_global_zero:
            self.disable()
        datamodule = getattr(trainer, "datamodule", None)
        if self._enabled and datamodule is not None:
            datamodule.on_stage = self.show_stage

    def show_stage(self, stage: str) -> None:
        """Show the current stage beside the bar."""
        self._stage = stage
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], stage=stage)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._enabled:
            return
        columns = (
            *(TextColumn("iteration"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn()),
            *(TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[stage]}")),
        )
        total = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        self._bar = RichProgress(*columns, console=self.console, transient=True)
        self._bar.add_task("iteration", total=total, completed=trainer.current_epoch, stage="")
        if self.console.is_terminal:
            self._bar.start()
        if trainer.current_epoch == 0:
            self.print_row(trainer)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print signs of life where no bar does: the first validation comes before the bar."""
        if self._enabled and not (self._bar is not None and self.console.is_terminal):
            self._stage = "validate"
            self._validation.enter_context(heartbeat(lambda: self._stage))

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation.close()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.show_stage(f"update {batch_idx + 1}/{trainer.num_training_batches}")

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=trainer.current_epoch + 1)
        self.print_row(trainer)

    def print_row(self, trainer: pl.Trainer) -> None:
        """Print the newest row of the metrics as one line."""
        row = newest_row(trainer)
        if self._enabled and row is not None and len(row) > 1:
            self.console.print(line(row), highlight=False, soft_wrap=True)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._validation.close()
        if self._bar is not None and self.console.is_terminal:  # elsewhere stopping would write an empty line
            self._bar.stop()
        self._bar = None


def line(row: dict[str, float]) -> str:
    """One iteration in one line: its metrics, then seconds by stage."""
    numbers = [f"{name} {form.format(row[key])}" for name, (key, form) in SHOWN.items() if key in row]
    times = [f"{stage} {row[f'time/{stage}_s']:.1f}" for stage in STAGES if f"time/{stage}_s" in row]
    return "  ".join([f"iteration {row['iteration']:3.0f}", *numbers, f"[dim]({', '.join(times)} s)[/dim]"])
