"""Ends a run when its budget is spent, so that runs of unlike cost can be compared."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from grpo_pl.callbacks.metrics_table import metrics_table
from grpo_pl.runs.layout import tokens_generated
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Experience

SPENT: dict[str, Callable[[Mapping[str, float]], float]] = {
    "response_tokens": tokens_generated,
    "seconds": lambda row: row.get("time/iteration_s", 0.0),
}
"""Budget -> what an iteration spends of it, by its row of `metrics.csv`."""
STAGES = "time/sync_s", "time/generate_s", "time/score_s"


class Budget(pl.Callback):
    """Ends the run with the iteration that spends the budget; it is validated and saved like any last one.

    `trainer.max_epochs` remains a limit of its own; -1 leaves the budget alone to decide.

    Args:
        response_tokens: Tokens of all responses so far, over all ranks, whether they were learned from or
            not: rounds of dynamic sampling that were thrown away, greedy responses. Validation does not
            count. Null for no limit.
        seconds: Seconds of all iterations so far (`time/iteration_s`), without validation, start and
            checkpoints; null for no limit.
    """

    def __init__(self, response_tokens: int | None = None, seconds: float | None = None) -> None:
        for key, amount in (("response_tokens", response_tokens), ("seconds", seconds)):
            if amount is not None and not amount > 0:
                raise ArgumentError(f"{key}={amount}: expected more than 0, or null")
        self.limits = {"response_tokens": response_tokens, "seconds": seconds}
        self._tokens = self._seconds = self._first_batch = 0.0

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End a run at once if it was killed after its last iteration."""
        if trainer.current_epoch > 0 and self._spent(trainer, {}):
            trainer.fit_loop.max_epochs = trainer.current_epoch

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0 and isinstance(batch, Experience):
            self._first_batch = time.perf_counter()
            self._tokens = tokens_generated(batch.metrics)
            self._seconds = sum(batch.metrics.get(stage, 0.0) for stage in STAGES)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Decide before the Trainer asks whether this iteration is validated."""
        if batch_idx + 1 < trainer.num_training_batches or not any(self.limits.values()):
            return
        seconds = self._seconds + time.perf_counter() - self._first_batch
        if self._spent(trainer, {"response_tokens": self._tokens, "seconds": seconds}):
            trainer.fit_loop.max_epochs = trainer.current_epoch + 1
            trainer.check_val_every_n_epoch = 1

    def _spent(self, trainer: pl.Trainer, now: dict[str, float]) -> bool:
        """Whether a budget is spent, with what this iteration has taken; the same on all ranks."""
        table = metrics_table(trainer)
        rows = table.rows if table else []
        spent = any(
            limit is not None and sum(map(SPENT[key], rows)) + now.get(key, 0.0) >= limit
            for key, limit in self.limits.items()
        )
        return trainer.strategy.reduce_boolean_decision(spent, all=False)
