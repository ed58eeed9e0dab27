"""Checks what `fit` would run, on a machine that may lack its devices."""

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from typing_extensions import override

from grpo_pl.config.cli import CLI
from grpo_pl.datamodule import RolloutDataModule, connect
from grpo_pl.system.precision import AUTO


class Checked(CLI):
    """The config of `fit`, whose components `build` checks together without a GPU."""

    @override
    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build a CPU trainer with the same ranks and shares of the data as the configured one."""
        if re.search(r"FSDPStrategy|^fsdp(_|$)", str(self.settings.trainer.strategy)):
            kwargs["strategy"] = "ddp"  # Lightning's FSDPStrategy insists on GPUs
        if self.settings.trainer.precision == AUTO:
            kwargs["precision"] = None  # the machine that runs it decides
        return super().instantiate_trainer(accelerator="cpu", **kwargs)

    @override
    def settle_types(self, config: Namespace) -> None:
        """Leave `auto` types open: the machine that runs it decides."""

    @override
    def build(self) -> None:
        """Build the components and check them together."""
        super().build()
        if isinstance(self.datamodule, RolloutDataModule):
            connect(self.trainer, self.model, self.datamodule)
            self.datamodule.check("fit")

    def ended_in(self, folder: Path, seed: int) -> bool:
        """Whether a folder holds this very run with another seed, at its end."""
        data = self._kept["data"] | {"seed": seed}
        return self.run_folder.has_ended(folder, self._kept | {"seed_everything": seed, "data": data})

    @cached_property
    def _kept(self) -> dict[str, Any]:
        return self.run_folder.settings()

    def prepare(self) -> None:
        """Make the run's folder ready, with its config in it."""
        with self.run_folder.occupied(self.trainer):
            self.run_folder.prepare(self.trainer)


def check(for_fit: list[str]) -> Checked:
    """Read and check the options of `fit`."""
    checked = Checked(for_fit)
    checked.build()
    return checked
