"""The runs of a study: their options, and how far each has come."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpo_pl.callbacks.budget import SPENT
from grpo_pl.commands.ablate.study import RunBudget, Study
from grpo_pl.commands.checked import Checked, check
from grpo_pl.runs.layout import ENDED_FILE, METRICS_FILE, read_metrics
from grpo_pl.system.refusal import ConfigError, inside


@dataclass(frozen=True)
class PlannedRun:
    """One variant with one seed."""

    variant: str
    seed: int
    folder: Path
    options: list[str]
    """The options of `fit`."""
    budget: RunBudget
    fit: Checked
    """The options of the variant's first run, read and checked."""
    ended: bool
    """Whether it had come to its end before this command began."""

    @property
    def name(self) -> str:
        """The run's name in messages."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """The file of its output; beside its folder, which may move aside."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def command(self) -> list[str]:
        """The command that starts and continues it, as its log names it."""
        return [sys.executable, "-m", "grpo_pl", "fit", *self.options]

    def reading_from(self, folder: Path, instead_of: Path) -> "PlannedRun":
        """The same run, with the study's settings in another folder."""
        return replace(self, options=[word.replace(str(instead_of), str(folder)) for word in self.options])

    def rows(self) -> list[dict[str, float]]:
        """Its metrics so far."""
        path = self.folder / METRICS_FILE
        return read_metrics(path) if path.exists() else []

    def share_done(self) -> float:
        """The spent share of its budget, from 0 to 1."""
        if (self.folder / ENDED_FILE).exists():
            return 1.0
        rows = self.rows()
        if self.budget.unit == "iterations":
            spent = rows[-1]["iteration"] if rows else 0.0
        else:
            spent = sum(map(SPENT[self.budget.unit], rows))
        return min(spent / self.budget.amount, 1.0)


def plan_runs(
    study: Study, options: dict[str, list[str]], out: Path, more: Sequence[str]
) -> Iterator[PlannedRun]:
    """All runs: for each seed every variant, so that pairs are complete early.

    Each variant is checked once, with the first seed: no check of a config depends on its seed.

    Args:
        study: What to run.
        options: Variant -> its options of `fit`.
        out: The study's folder; a run's is `<out>/<variant>/seed-<seed>`.
        more: Options of `fit` for all runs.
    """
    checked = dict[str, Checked]()
    for seed in study.seeds:
        for variant in study.variants:
            folder = out / variant / f"seed-{seed}"
            of_run = ["--seed_everything", str(seed), "--data.seed", str(seed)]
            for_fit = [*options[variant], *more, *of_run, "--trainer.default_root_dir", str(folder)]
            if variant not in checked:
                with inside(f"study {study.path}: variants.{variant}"):
                    checked[variant] = check(for_fit)
            fit = checked[variant]
            budget = study.budget or iterations_of(fit.settings, study)
            check_last_validation(fit.settings, budget, variant, study)
            yield PlannedRun(variant, seed, folder, for_fit, budget, fit, fit.ended_in(folder, seed))


def iterations_of(settings: Any, study: Study) -> RunBudget:
    """The budget of a config in iterations: `trainer.max_epochs`."""
    if (settings.trainer.max_epochs or 0) < 1:
        raise ConfigError(f"study {study.path}: budget: name one, for trainer.max_epochs is no limit")
    return RunBudget("iterations", settings.trainer.max_epochs)


def check_last_validation(settings: Any, budget: RunBudget, variant: str, study: Study) -> None:
    """Refuse a study whose last iteration would not be validated."""
    every = settings.trainer.check_val_every_n_epoch or 1
    if budget.unit == "iterations" and budget.amount % every:
        raise ConfigError(
            f"study {study.path}: variants.{variant} ends after {budget.amount} iterations and validates "
            f"every {every}, so that its end would not be measured: set trainer.check_val_every_n_epoch to a "
            f"divisor of {budget.amount}"
        )
