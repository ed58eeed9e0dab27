"""What measures or fails inside of the processes of a run, which names it by import path."""

import json
import os
from pathlib import Path

import lightning.pytorch as pl
import psutil
import torch

from grpo_pl.module import PolicyOptimization
from grpo_pl.system.memory import forget_peak, peak_gib, release_free_memory


class SyncMemory(pl.Callback):
    """What a sync needs at its peak beside what the rank holds: GiB, into a file for each rank."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, PolicyOptimization)
        for _ in pl_module.policy_weights(torch.bfloat16):  # what is made once, the first sync makes
            pass
        release_free_memory()
        forget_peak()
        before = psutil.Process().memory_info().rss / 2**30
        sent = sum(tensor.nbytes for _, tensor in pl_module.policy_weights(torch.bfloat16)) / 2**30
        measured = {"extra": peak_gib() - before, "sent": sent}
        path = Path(trainer.default_root_dir) / f"sync-{trainer.global_rank}.json"
        path.write_text(json.dumps(measured))


def fails_on_rank_0(**_: object) -> float:
    """A reward with a mistake that the first rank alone meets."""
    return fails_on("0")


def fails_on_rank_1(**_: object) -> float:
    """A reward with a mistake that the second rank alone meets."""
    return fails_on("1")


def fails_on(rank: str) -> float:
    if os.environ["LOCAL_RANK"] == rank:
        raise KeyError("mine")
    return 1.0
