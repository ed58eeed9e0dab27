"""Whose a run's folder is: one run's, and under SLURM one job's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.cli import SaveConfigCallback
from typing_extensions import override

from grpo_pl import slurm
from grpo_pl.callbacks.records import CONFIG_FILE, move_aside


class RunFolder(SaveConfigCallback):
    """Prepares the run's folder when all is checked: an earlier run moves aside, `config.yaml` comes in."""

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        if not self.continues(folder) and self.config.get("ckpt_path") is None:
            if slurm.was_requeued(folder):
                print(f"Not continued: {folder} has other settings of {', '.join(self.changed(folder))}.")
            move_aside(folder)
        save_config(self.parser, self.config, folder)
        if job := slurm.current():
            job.write(folder)

    def continues(self, folder: Path) -> bool:
        """Whether the run in the folder is this one, which its SLURM job starts again."""
        return slurm.was_requeued(folder) and not self.changed(folder)

    def changed(self, folder: Path) -> list[str]:
        """The settings that are not those of the run in the folder."""
        before = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        now = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        return sorted(different(before, now))


def save_config(parser: ArgumentParser, config: Namespace, folder: Path) -> None:
    """Write `config.yaml` into a run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    parser.save(config, folder / CONFIG_FILE, skip_unset=False, overwrite=True, multifile=False)


def different(a: Any, b: Any, key: str = "") -> Iterator[str]:
    """The keys with different values, but for the addresses of servers: a job finds them at each start."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in a.keys() | b.keys():
            yield from different(a.get(name), b.get(name), f"{key}.{name}" if key else name)
    elif a != b and not key.endswith(".urls"):
        yield key
