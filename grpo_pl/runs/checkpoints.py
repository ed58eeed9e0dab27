"""When checkpoints are saved, and which are kept."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from typing_extensions import override

from grpo_pl.runs.layout import LAST
from grpo_pl.runs.manifest import Manifest, checkpoints, manifest_path
from grpo_pl.system.atomic_files import partial_of, sync_folder

PREEMPTED = "preempted-"
"""Prefix of checkpoints that are written out of schedule."""
BY_STEP = {"monitor": "step", "mode": "max"}
"""Makes `save_top_k` keep the newest checkpoints."""


class Checkpoints(ModelCheckpoint):
    """Lightning's ModelCheckpoint, safe against kills: `last.ckpt` always names a whole checkpoint.

    Unless something else is monitored, the last `save_top_k` checkpoints stay. The end of a run is saved too.
    """

    @property
    def folder(self) -> Path:
        """The folder of the checkpoints."""
        assert self.dirpath is not None, "setup or the command line says it"
        return Path(self.dirpath)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rename checkpoints newer than the one that this run resumes from: the run will write others."""
        super().on_train_start(trainer, pl_module)
        for path in checkpoints(self.folder) if trainer.is_global_zero else ():
            manifest = Manifest.read(path)
            if manifest is not None and manifest.step > trainer.global_step:
                supersede(path)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of the run, even out of schedule."""
        if self.save_last and not self._should_skip_saving_checkpoint(trainer):
            self._save_checkpoint(trainer, self.format_checkpoint_name(self._monitor_candidates(trainer)))

    @override
    def _save_topk_checkpoint(self, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Rank no iteration in which what is monitored was not measured, though it was in one before."""
        if self.monitor in monitor_candidates or self.current_score is None:
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def save_now(self, trainer: pl.Trainer) -> None:
        """Save this iteration and link `last.ckpt` to it; the next scheduled checkpoint replaces it."""
        path = self._last_checkpoint_saved
        if self._last_global_step_saved != trainer.global_step:
            path = str(self.folder / f"{PREEMPTED}{trainer.current_epoch + 1:04d}.ckpt")
            self._save_checkpoint(trainer, path)
        self._link_checkpoint(trainer, path, str(self.folder / LAST))

    @override
    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        """Link `last.ckpt` to the new checkpoint before older ones are removed."""
        super()._save_checkpoint(trainer, filepath)
        if self.save_last == "link":
            self._link_checkpoint(trainer, filepath, str(self.folder / LAST))
        if trainer.is_global_zero:
            for path in self._superseded(Path(filepath)):
                trainer.strategy.remove_checkpoint(path)

    @staticmethod
    @override
    def _link_checkpoint(trainer: pl.Trainer, filepath: str, linkpath: str) -> None:
        """Replace the link atomically: Lightning leaves a moment without one."""
        link = Path(linkpath)
        if trainer.is_global_zero and Path(filepath).absolute() != link.absolute():
            if link.is_dir() and not link.is_symlink():
                shutil.rmtree(link)
            new = partial_of(link)
            new.unlink(missing_ok=True)
            new.symlink_to(os.path.relpath(filepath, link.parent))
            new.replace(link)
            sync_folder(link.parent)
        trainer.strategy.barrier()

    def _superseded(self, saved: Path) -> Iterator[Path]:
        """Checkpoints that the new one replaces: out of schedule, or left behind by a kill."""
        manifests = {path: Manifest.read(path) for path in checkpoints(self.folder)}
        due = sorted(m.step for path, m in manifests.items() if m and not path.name.startswith(PREEMPTED))
        keeps_last = self.monitor == BY_STEP["monitor"] and self.save_top_k > 0
        oldest = due[-self.save_top_k :][0] if keeps_last and due else 0
        for path, manifest in manifests.items():
            too_old = manifest is not None and manifest.step < oldest
            if path != saved.absolute() and (too_old or path.name.startswith(PREEMPTED)):
                yield path


def supersede(checkpoint: Path) -> None:
    """Rename a checkpoint so that no run resumes from it."""
    for path in [checkpoint] if checkpoint.is_dir() else [manifest_path(checkpoint), checkpoint]:
        aside = path.with_name(f"{path.name}.superseded")
        shutil.rmtree(aside, ignore_errors=True)
        path.replace(aside)
