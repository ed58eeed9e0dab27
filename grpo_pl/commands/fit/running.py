"""Runs a config in its folder until the end, a signal, or the failure of a rank."""

from pathlib import Path

from lightning.fabric.plugins import TorchCheckpointIO

from grpo_pl.callbacks.gradient_terms import GradientTerms
from grpo_pl.config.cli import CLI, configure
from grpo_pl.runs import preemption
from grpo_pl.runs.checkpoint_io import AtomicCheckpointIO
from grpo_pl.runs.safe_loading import check_checkpoint, state_of
from grpo_pl.system.refusal import fail
from grpo_pl.training.optimization import SETTINGS, OptimizedModule
from grpo_pl.training.rank_failures import ending_together


def run_fit(options: list[str]) -> None:
    """Train what a config describes."""
    cli = configure(options)
    with ending_together(cli.trainer):
        check_checkpoints(cli)
        if cli.trainer.fast_dev_run:  # type: ignore[attr-defined]
            cli.trainer.fit(**cli.arguments)  # it leaves no folder
        else:
            fit_in_folder(cli)


def run_validate(options: list[str]) -> None:
    """Measure the accuracy of what a config describes."""
    cli = configure(options, "validate")
    with ending_together(cli.trainer):
        check_checkpoints(cli)
        cli.trainer.validate(**cli.arguments)


def check_checkpoints(cli: CLI) -> None:
    """Refuse a file that is not a checkpoint; have single files written atomically and read as plain data."""
    if cli.settings.weights_only is False:
        fail("weights_only=false would run what a checkpoint holds: leave it out")
    if cli.settings.ckpt_path not in (None, "last"):
        check_checkpoint(Path(cli.settings.ckpt_path))
    for callback in cli.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientTerms):
            callback.check(cli.trainer)
    if type(cli.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        cli.trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def fit_in_folder(cli: CLI) -> None:
    """Fit; an unfinished run resumes where it was, whatever checkpoint the command names."""
    listener: preemption.Preemption = cli.config_init.preemption
    with cli.run_folder.occupied(cli.trainer) as beginning:
        if beginning is None:
            preemption.check_no_hpc_checkpoint(cli.run_folder.folder)
        if isinstance(cli.model, OptimizedModule):  # Lightning loads them after the engine starts
            cli.model.check_settings(state_of(SETTINGS, beginning))
        listener.listen()
        try:
            cli.trainer.ckpt_path = beginning  # so that set-up knows it, before Lightning loads it
            cli.trainer.fit(**cli.arguments | {"ckpt_path": None})
        finally:
            listener.leave()
        if listener.stopped and cli.trainer.is_global_zero:
            raise SystemExit(preemption.EXIT_CODE)
        cli.run_folder.end(cli.trainer)
