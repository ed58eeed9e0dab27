"""Keeping the memory of a process without a GPU small."""

from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from grpo_pl.memory import release_free_memory


class ReleaseMemory(pl.Callback):
    """On a CPU, hands freed memory back before each optimizer step."""

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cpu" and batch_idx % trainer.accumulate_grad_batches == 0:
            release_free_memory()
