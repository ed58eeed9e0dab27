"""Writes `metrics.csv`, one row an iteration."""

import resource
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from grpo_pl.runs.layout import METRICS_FILE, TOKENS_GENERATED, write_metrics
from grpo_pl.training.optimization import OptimizedModule, num_parameters


class MetricsTable(pl.Callback):
    """Writes `metrics.csv` into the run's folder, one row an iteration.

    Row 0 holds the validation before training; row i > 0 holds iteration i: its rollout, its updates, and the
    validation after them where there was one. What was not measured in an iteration is empty. Of a reward
    model, an iteration is a pass over the data.
    Also runs that first validation, and measures the time of updates and validations. Checkpoints hold all
    rows.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._validation: dict[str, float] = {}
        self._first_batch = self._last_batch = 0.0

    @override
    def state_dict(self) -> dict[str, Any]:
        """All rows, so that a resumed run can write the whole file again."""
        return {"rows": self.rows}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch > 0:
            self._write(trainer)
            return
        self._last_batch = time.perf_counter()
        validate_now(trainer)
        self._write_row(trainer, {"iteration": 0.0})

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file of a run that was killed after its last checkpoint and has nothing left to do."""
        self._write(trainer)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        measured = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val")}
        self._validation = measured | {"time/validate_s": time.perf_counter() - self._last_batch}

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self._first_batch = time.perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._last_batch = time.perf_counter()

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        iteration = float(trainer.current_epoch + 1)
        pl_module.log("time/update_s", self._last_batch - self._first_batch)
        pl_module.log_dict({"iteration": iteration, "step": iteration})  # loggers take `step` as their x axis
        row = {k: float(v) for k, v in trainer.callback_metrics.items() if not k.startswith("val")}
        del row["step"]
        measured = set(row)
        row["memory/peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if isinstance(pl_module, OptimizedModule):
            models = [m for m in pl_module.held_models().values() if num_parameters([m])]
            row["memory/models"], row["memory/parameters"] = float(len(models)), float(num_parameters(models))
        row["optimizer_steps"] = float(trainer.global_step)
        row["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        stages = ("time/sync_s", "time/generate_s", "time/score_s", "time/update_s")
        row["time/iteration_s"] = sum(row.get(stage, 0.0) for stage in stages)
        if TOKENS_GENERATED in row:
            row["time/tokens_per_s"] = row[TOKENS_GENERATED] / row["time/iteration_s"]
        pl_module.log_dict({key: row[key] for key in row.keys() - measured})  # for loggers
        self._write_row(trainer, row)

    def _write_row(self, trainer: pl.Trainer, row: dict[str, float]) -> None:
        self.rows.append(row | self._validation)
        self._validation = {}
        self._write(trainer)

    def add(self, trainer: pl.Trainer, columns: dict[str, float]) -> None:
        """Add columns to the row of the last iteration."""
        self.rows[-1] |= columns
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            write_metrics(Path(trainer.default_root_dir) / METRICS_FILE, self.rows)


def metrics_table(trainer: pl.Trainer) -> MetricsTable | None:
    """The run's `MetricsTable`, if it has one."""
    tables = [c for c in trainer.callbacks if isinstance(c, MetricsTable)]  # type: ignore[attr-defined]
    return tables[0] if tables else None


def newest_row(trainer: pl.Trainer) -> dict[str, float] | None:
    """The metrics of the last iteration, if a `MetricsTable` keeps them."""
    table = metrics_table(trainer)
    return table.rows[-1] if table is not None and table.rows else None


def validate_now(trainer: pl.Trainer) -> None:
    """Run the validation loop in the middle of `fit`, as Lightning does between two batches."""
    if not trainer.enable_validation:
        return
    loop = trainer.fit_loop.epoch_loop.val_loop
    trainer.validating = True
    loop.run()
    trainer.training = True
