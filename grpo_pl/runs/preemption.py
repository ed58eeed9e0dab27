"""Signals end a run: saved at the end of its iteration, or at once before the first one."""

import logging
import signal
from pathlib import Path
from types import FrameType

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from grpo_pl.runs import slurm_job
from grpo_pl.runs.checkpoints import Checkpoints
from grpo_pl.system.refusal import ConfigError

log = logging.getLogger(__name__)

REQUEUE, STOP, CTRL_C = signal.SIGUSR1, signal.SIGTERM, signal.SIGINT
EXIT_CODE = 75
"""Exit code of a run that a signal stopped and that can resume: EX_TEMPFAIL of sysexits.h."""
CTRL_C_EXIT_CODE = 128 + CTRL_C


class Interrupted(SystemExit):
    """A signal ends the process at once, when there is nothing to save."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(CTRL_C_EXIT_CODE if number == CTRL_C else EXIT_CODE)
        self.number = number


class Preemption(Checkpoint):
    """Stops at the end of the iteration in which a signal came, after a checkpoint that `last.ckpt` names.

    Before the first iteration of the process, while models are loaded, engines start and the first validation
    runs, SIGTERM and Ctrl-C end it at once: there is nothing to save. A later validation is finished first,
    for its numbers belong to the iteration that is saved.
    SIGUSR1, by which `#SBATCH --signal=USR1@seconds` announces the end of a job, also requeues a SLURM job.
    SIGTERM does not: it means that the job is cancelled, or that SLURM requeues it itself. The process ends
    with exit code 75. This is a `Checkpoint` because those come last at the end of an iteration, after the
    moves of the reference and of the KL's coefficient.

    Args:
        requeue: Whether SIGUSR1 requeues the SLURM job.
    """

    def __init__(self, requeue: bool = True) -> None:
        self.requeue = requeue
        self.stopped = False
        self._nothing_to_lose = False
        self._received: set[signal.Signals] = set()
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def listen(self) -> None:
        """Handle the signals from now on; best before the engine starts processes.

        SLURM signals every process of a job: those started later inherit that SIGUSR1 is blocked and survive
        it. This process unblocks it at the end of the iteration.
        """
        self._nothing_to_lose |= not self._before
        for number in (REQUEUE, STOP, CTRL_C):
            before = signal.signal(number, self._take)
            self._before.setdefault(number, before)
        signal.pthread_sigmask(signal.SIG_BLOCK, {REQUEUE})

    def leave(self) -> None:
        """Restore the handlers from before `listen`."""
        if self._before:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {REQUEUE})
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        self._nothing_to_lose = False

    def _take(self, number: int, _: FrameType | None) -> None:
        first = number not in self._received
        if number != CTRL_C:
            self._received.add(signal.Signals(number))
        if self._nothing_to_lose and (number == CTRL_C or (number == STOP and first)):
            raise Interrupted(signal.Signals(number))
        if number == CTRL_C:
            raise KeyboardInterrupt

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.listen()

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._before:
            self.listen()  # again: Lightning has installed handlers, which broadcast at any time

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From now on a signal waits for the iteration's end."""
        self.listen()
        self._nothing_to_lose = False

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, Interrupted):
            log.info(
                "%s before the first iteration: stopped at once, and nothing is lost", exception.number.name
            )
            log.info("the same command begins again")
        elif isinstance(exception, KeyboardInterrupt):
            now = trainer.current_epoch + 1
            log.info("Ctrl-C in iteration %d: the same command continues from the last checkpoint", now)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {REQUEUE})
        signal.pthread_sigmask(signal.SIG_BLOCK, {REQUEUE})
        self.stopped = trainer.strategy.reduce_boolean_decision(bool(self._received), all=False)
        if self.stopped:
            checkpointing(trainer).save_now(trainer)
            trainer.should_stop = True
            trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None  # or it would not stop

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Requeue the job when all is written: from then on SLURM ends its processes."""
        if trainer.current_epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps:
            self.stopped = False  # it is over anyway
        if not self.stopped:
            return
        again = trainer.strategy.reduce_boolean_decision(REQUEUE in self._received, all=False)
        if not trainer.is_global_zero:
            return
        log.info("a signal came: stopped, and saved iteration %d", trainer.current_epoch)
        job = slurm_job.current()
        if job is None or not (again and self.requeue):
            log.info("the same command continues")
        elif refusal := slurm_job.requeue(job.job):
            log.info("SLURM does not requeue job %s (%s): the same command continues", job.job, refusal)
        else:
            log.info("job %s is requeued and will continue", job.job)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.leave()


def checkpointing(trainer: pl.Trainer) -> Checkpoints:
    """The callback that saves checkpoints."""
    return next(c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints))


def check_no_hpc_checkpoint(folder: Path) -> None:
    """Refuse a folder with a checkpoint that Lightning would resume in any SLURM job, unasked."""
    for path in sorted(folder.glob("hpc_ckpt_*")):
        raise ConfigError(
            f"trainer.default_root_dir={folder} holds {path.name}, which Lightning resumes unasked in SLURM "
            "jobs: name it in --ckpt_path, or move it away"
        )
