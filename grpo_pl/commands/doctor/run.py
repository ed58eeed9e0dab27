"""Checks that a run fits this machine: its memory by `plan`, and its checkpoints on the disk."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from grpo_pl.commands.doctor.findings import Finding, fail_if, warn_if
from grpo_pl.commands.plan.advice import does_not_fit
from grpo_pl.commands.plan.estimate import peak
from grpo_pl.commands.plan.requirements import Requirements, read_requirements
from grpo_pl.datamodule import RolloutDataModule
from grpo_pl.module import PolicyOptimization
from grpo_pl.system.memory import GIB
from grpo_pl.training.ranks import num_shards

TIGHT = 0.9
"""The share of free memory or disk above which a run is likely to run out of it."""


def check_run(
    trainer: pl.Trainer, module: PolicyOptimization, data: RolloutDataModule, settings: Mapping[str, Any]
) -> list[Finding]:
    """Memory and disk. A configuration that `fit` refuses is refused with the key to change."""
    run = read_requirements(trainer, module, data)
    folder = existing(Path(trainer.default_root_dir))
    size = checkpoint_bytes(run) * num_shards(trainer)
    kept = checkpoints_kept(settings["checkpoint"], trainer.max_epochs or -1)
    return [memory(run), disk(folder, shutil.disk_usage(folder).free, size, kept), writable(folder)]


def memory(run: Requirements) -> Finding:
    """The peak that `plan` predicts against what is free."""
    phase, needed = peak(run)
    found = f"{needed / GIB:.1f} GiB at most, in the phase {phase}, of {run.free_bytes / GIB:.1f} free"
    too_much = does_not_fit(run)
    if too_much is not None:
        return Finding("memory", "problem", found, too_much.rpartition(": ")[2])
    fix = "raise trainer.accumulate_grad_batches; `plan` shows what takes it"
    tight = needed > TIGHT * run.free_bytes
    return warn_if(tight, "memory", found, fix, needed_bytes=needed, free_bytes=run.free_bytes)


def checkpoint_bytes(run: Requirements) -> int:
    """Trained parameters with their optimizer state: 12 bytes a parameter in float32 with Adam."""
    return sum(model.gradient_bytes + model.optimizer_bytes for model in run.models)


def checkpoints_kept(settings: Mapping[str, Any], iterations: int) -> int | None:
    """The most checkpoints on the disk at once, including the one being written; None without a limit.

    Args:
        settings: The settings of the callback ModelCheckpoint.
        iterations: `trainer.max_epochs`; -1 for no end.
    """
    every = settings["every_n_epochs"] or 1
    written = iterations // every if iterations > 0 else None
    kept = settings["save_top_k"]
    most = written if kept == -1 else kept + (settings["save_last"] is True) + 1
    return most if written is None or most is None else min(most, written)


def disk(folder: Path, free: int, size: int, kept: int | None) -> Finding:
    """The run's checkpoints against the free space of their disk.

    Args:
        folder: Their folder, or the nearest existing folder above it.
        free: Free bytes there.
        size: Bytes of one checkpoint.
        kept: Checkpoints at once; None without a limit.
    """
    count = "all" if kept is None else f"{kept}"
    found = f"{free / GIB:.1f} GiB free in {folder}; {count} checkpoints of {size / GIB:.2f} GiB at once"
    fix = (
        "--trainer.default_root_dir on a larger disk, or --checkpoint.save_top_k 1 and a larger "
        "--checkpoint.every_n_epochs"
    )
    if kept is None:
        return Finding("disk", "warning", f"{found}, without an end", fix)
    needed = size * kept
    if needed > free:
        return Finding("disk", "problem", found, fix)
    return warn_if(needed > TIGHT * free, "disk", found, fix, needed_bytes=needed, free_bytes=free)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.is_dir())


def writable(folder: Path) -> Finding:
    """Whether the run may write into its folder."""
    denied = not os.access(folder, os.W_OK | os.X_OK)
    found = f"{folder} can{'not' if denied else ''} be written to"
    return fail_if(denied, "run folder", found, "--trainer.default_root_dir where you may write")
