"""Keeps the verdicts on each validation problem."""

from pathlib import Path
from typing import Protocol, cast

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from grpo_pl.callbacks.metrics_table import metrics_table
from grpo_pl.runs.layout import VERDICTS_FILE
from grpo_pl.runs.verdicts import ProblemVerdicts, append_verdicts, forget_verdicts


class Evaluates(Protocol):
    """What knows the verdicts of the last validation."""

    def verdicts(self) -> list[ProblemVerdicts]:
        """The verdicts on all ranks' problems. Collective."""


class Verdicts(pl.Callback):
    """Appends the verdicts on each problem to `verdicts.jsonl` in each validation of `fit`.

    They pair the problems of two runs when `compare` tests a difference. Those of the validation before
    training have iteration 0, as in `metrics.csv`.
    """

    _began = False

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop what a resumed run had written after its checkpoint."""
        self._begin(trainer, after=trainer.current_epoch)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        verdicts = cast(Evaluates, pl_module.evaluation).verdicts()
        table = metrics_table(trainer)
        before_training = table is not None and not table.rows
        iteration = 0 if before_training else trainer.current_epoch + 1
        self._begin(trainer, after=iteration - 1)
        if trainer.is_global_zero and verdicts:
            append_verdicts(_file(trainer), iteration, verdicts)

    def _begin(self, trainer: pl.Trainer, after: int) -> None:
        if not self._began and trainer.is_global_zero:
            forget_verdicts(_file(trainer), after)
        self._began = True


def _file(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / VERDICTS_FILE
