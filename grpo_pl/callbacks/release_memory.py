"""Memory of a CPU process: reused within updates, handed back between phases."""

from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from grpo_pl.system.memory import keep_freed_memory, release_free_memory


class ReleaseMemory(pl.Callback):
    """On a CPU, keeps freed memory for the next micro-batch, and hands it back before the first of an epoch.

    Handed back before each optimizer step, the peak is 0.4 GiB lower (of 5.6, quickstart) and updates take an
    eighth longer.
    """

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.device.type == "cpu":
            keep_freed_memory()

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cpu" and batch_idx == 0:
            release_free_memory()
