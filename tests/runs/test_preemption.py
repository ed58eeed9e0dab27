"""A signal in the middle of an iteration loses nothing; whose run a folder holds."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from helpers.commands import Fit, Refused
from helpers.repository import ROOT
from helpers.run_results import callback, column, saved, untimed
from helpers.started_runs import CommandLine, Forked, Started

from grpo_pl.runs import slurm_job
from grpo_pl.runs.checkpoint_io import AtomicCheckpointIO
from grpo_pl.runs.layout import ENDED_FILE
from grpo_pl.runs.preemption import CTRL_C_EXIT_CODE, EXIT_CODE

SETTINGS = (
    *("--trainer.max_epochs", "5", "--checkpoint.every_n_epochs", "5"),
    *("--model.reference_update", "EMA", "--model.reference_update.decay", "0.5"),
)
"""The reference moves at the end of each iteration, after what callbacks do there."""
Start = Callable[..., Started]


@pytest.fixture
def start(tiny_model: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts `grpo_pl fit` in a process group of its own, as SLURM does; with ranks, by its command line.

    Without, it is forked from a process that has imported everything. Lightning starts the other ranks by the
    command line of the first.
    """
    started: list[Started] = []

    def run(folder: Path, *arguments: str, ranks: int = 1) -> Started:
        words = ["fit", "--config", str(ROOT / "configs" / "tiny.yaml"), "--pretrained", str(tiny_model)]
        words += ["--trainer.default_root_dir", str(folder), "--trainer.devices", str(ranks), *arguments]
        process = (CommandLine if ranks > 1 else Forked)(words, tmp_path / "output")
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()


def in_the_middle(process: Started, folder: Path, iteration: int) -> None:
    """Wait until the iteration has sampled and not yet ended."""
    while f'{{"iteration": {iteration},' not in samples(folder):
        assert process.code() is None, process.said()
        time.sleep(0.01)


def samples(folder: Path) -> str:
    path = folder / "samples.jsonl"
    return path.read_text() if path.exists() else ""


def end(process: Started, code: int) -> str:
    assert process.wait(300) == code, process.said()
    return process.said()


def same(a: Path, b: Path) -> None:
    """Both runs have left the same weights, numbers and samples."""
    last = [AtomicCheckpointIO().load_checkpoint(run / "checkpoints" / "last.ckpt") for run in (a, b)]
    ours, theirs = (checkpoint["state_dict"] for checkpoint in last)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert untimed(a) == untimed(b)
    assert samples(a) == samples(b)


SHARDS = ("--trainer.strategy", "fsdp2", "--trainer.accumulate_grad_batches", "1")
AHEAD = ("--data.engine", "OverlappedEngine", "--data.engine.engine", "InProcessEngine")


@pytest.mark.usefixtures("forked_engines")
@pytest.mark.parametrize(
    ("number", "whole_group", "ranks", "settings"),
    [
        pytest.param(signal.SIGUSR1, False, 1, (), id="SIGUSR1"),
        pytest.param(signal.SIGTERM, False, 2, SHARDS, id="SIGTERM-at-one-of-two-ranks"),
        pytest.param(signal.SIGUSR1, True, 1, AHEAD, id="with-all-children"),
    ],
)
def test_a_signal_in_mid_iteration_loses_nothing(
    start: Start, fit: Fit, tmp_path: Path,
    number: signal.Signals, whole_group: bool, ranks: int, settings: tuple[str, ...],
) -> None:  # fmt: skip
    """Only the run that is stopped needs a command line of its own."""
    run, settings = partial(fit, ranks=ranks), (*SETTINGS, *settings)
    whole, stopped = run(*settings), tmp_path / "stopped"
    process = start(stopped, *settings, ranks=ranks)
    in_the_middle(process, stopped, 2)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    assert "the same command continues" in end(process, EXIT_CODE)
    done = int(column(stopped, "iteration")[-1])
    assert done < 5, "the signal came too late to show anything"
    checkpoints = stopped / "checkpoints"
    assert (checkpoints / "last.ckpt").resolve().name == f"preempted-{done:04d}.ckpt"
    run(*settings, root=stopped)
    same(whole, stopped)
    assert not list(checkpoints.glob("preempted-*"))


IN_ITERATION = "sync", "generate", "score", "update", "validate"
SIGNALLED = [
    *(callback("helpers.faults.SignalIn", stage=stage, number=signal.SIGUSR1) for stage in IN_ITERATION),
    (
        *callback("helpers.faults.SignalIn", stage="checkpoint", number=signal.SIGTERM),
        "--checkpoint.every_n_epochs",
        "1",
    ),
]


def test_a_run_that_a_signal_hits_in_every_stage_ends_like_one_never_disturbed(
    fit: Fit, tmp_path: Path
) -> None:
    """Each start is stopped in another stage, at the end of its first iteration, and the next one goes on."""
    last = len(SIGNALLED) + 1
    settings = (*SETTINGS, "--trainer.max_epochs", last, "--checkpoint.every_n_epochs", last)
    whole, folder = fit(*settings), tmp_path / "run"
    for done, signalled in enumerate(SIGNALLED, start=1):
        with pytest.raises(SystemExit) as end:
            fit(*settings, *signalled, "--ckpt_path", "last", root=folder)
        assert end.value.code == EXIT_CODE
        assert column(folder, "iteration") == list(range(done + 1)), signalled
    fit(*settings, "--ckpt_path", "last", root=folder)
    same(whole, folder)


# ------------------------------------------------------------------------------ before the first iteration


def stalled(process: Started, file: Path) -> None:
    while not file.exists():
        assert process.code() is None, process.said()
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("stage", "number", "code"),
    [
        ("start", signal.SIGTERM, EXIT_CODE),
        pytest.param("validate", signal.SIGTERM, EXIT_CODE, marks=pytest.mark.slow),  # two ranks below
        ("start", signal.SIGINT, CTRL_C_EXIT_CODE),
        ("validate", signal.SIGINT, CTRL_C_EXIT_CODE),
    ],
)
def test_a_signal_before_the_first_iteration_ends_a_run_that_can_begin_again(
    start: Start, fit: Fit, tmp_path: Path, stage: str, number: signal.Signals, code: int
) -> None:
    """The engine would stall for an hour."""
    folder, file = tmp_path / "run", tmp_path / "stalled"
    process = start(folder, *stalls(stage, file))
    stalled(process, file)
    os.kill(process.pid, number)
    assert f"{number.name} before the first iteration" in end(process, code)
    assert not list(folder.rglob("*.ckpt"))
    fit(*RUN, root=folder)
    assert column(folder, "iteration") == [0, 1]


def test_a_run_that_goes_on_is_ended_at_once_while_its_engine_starts(
    start: Start, fit: Fit, tmp_path: Path
) -> None:
    folder, file = fit(*SETTINGS[:2], "--trainer.max_epochs", "2"), tmp_path / "stalled"
    before = saved(folder)["epoch"], (folder / "metrics.csv").read_text()
    process = start(folder, *stalls("start", file), "--ckpt_path", "last", "--trainer.max_epochs", "3")
    stalled(process, file)
    os.kill(process.pid, signal.SIGTERM)
    end(process, EXIT_CODE)
    assert (saved(folder)["epoch"], (folder / "metrics.csv").read_text()) == before


def test_before_the_first_iteration_a_signal_to_one_rank_ends_all(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "stalled"
    process = start(tmp_path / "run", *SHARDS, *stalls("validate", file), ranks=2)
    stalled(process, file)
    os.kill(process.pid, signal.SIGTERM)
    end(process, EXIT_CODE)  # it returns when the last rank has closed its output


def stalls(stage: str, file: Path) -> tuple[str, ...]:
    return (
        *("--data.engine", "helpers.faults.StalledEngine", "--data.engine.stage", stage),
        *("--data.engine.path", str(file)),
    )


# ------------------------------------------------------------------------------------ whose a run's folder is


Job = Callable[[str, int], None]


def tell(patch: pytest.MonkeyPatch, number: str, restarts: int) -> None:
    """What SLURM tells a process: the job's id, and how often it has been started before."""
    patch.setenv("SLURM_JOB_ID", number)
    patch.setenv("SLURM_RESTART_COUNT", str(restarts))


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    return partial(tell, monkeypatch)


RUN = ("--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0")


@pytest.fixture(scope="module")
def first_start(fit: Fit) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        tell(patch, "7", 0)
        return fit(*RUN)


@pytest.fixture
def folder(first_start: Path, tmp_path: Path) -> Path:
    """The folder of a run that was the first start of job 7."""
    return shutil.copytree(first_start, tmp_path / "run", symlinks=True)


def moved_aside(folder: Path) -> bool:
    return folder.with_name("run.1").exists()


def test_a_job_continues_the_unfinished_run_of_another(folder: Path, fit: Fit, job: Job) -> None:
    (folder / ENDED_FILE).unlink()
    job("8", 0)
    fit(*RUN, root=folder)
    assert not moved_aside(folder)
    assert slurm_job.owner(folder) == slurm_job.Owner("8", starts=1)


def test_a_requeued_job_continues_its_own_run_even_an_ended_one(folder: Path, fit: Fit, job: Job) -> None:
    before = (folder / "metrics.csv").read_text()
    job("7", 1)
    fit(*RUN, root=folder)
    assert not moved_aside(folder)
    assert (folder / "metrics.csv").read_text() == before
    assert slurm_job.owner(folder) == slurm_job.Owner("7", starts=2)


@pytest.mark.parametrize(
    ("number", "restarts", "settings"),
    [
        pytest.param("8", 1, (), id="another-job"),
        pytest.param("7", 0, (), id="another-run-of-the-same-start"),
        pytest.param("7", 1, ("--model.optimizer.lr", "0.5"), id="other-settings"),
    ],
)
def test_any_other_run_starts_afresh_and_says_so(
    folder: Path,
    fit: Fit,
    job: Job,
    capsys: pytest.CaptureFixture[str],
    number: str,
    restarts: int,
    settings: tuple[str, ...],
) -> None:
    job(number, restarts)
    fit(*RUN, *settings, root=folder)
    assert moved_aside(folder)
    said = capsys.readouterr().out
    assert "is kept in" in said
    assert ("other settings of model.optimizer.init_args.lr." in said) == bool(settings)
    assert saved(folder)["state_dict"].keys() == saved(folder.with_name("run.1"))["state_dict"].keys()


def test_a_job_that_was_requeued_before_it_wrote_anything_takes_no_other_runs_checkpoint(
    folder: Path, fit: Fit, job: Job
) -> None:
    slurm_job.Owner("8", starts=0).write(
        folder
    )  # as `submit` does, for a folder that somebody fills meanwhile
    job("8", 1)
    fit(*RUN, root=folder)
    assert moved_aside(folder)


def test_outside_of_slurm_a_folder_is_no_jobs(fit: Fit) -> None:
    assert slurm_job.owner(fit(*RUN)) is None


def test_a_checkpoint_that_lightning_would_resume_unasked_is_refused(
    fit: Fit, refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"")
    said = refused(fit, "--trainer.default_root_dir", tmp_path)
    assert "hpc_ckpt_1.ckpt" in said
    assert "--ckpt_path" in said


def test_where_there_is_no_scontrol_a_requeue_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm_job.requeue("7") == "there is no scontrol here"


def test_after_a_run_the_signals_are_as_before(fit: Fit) -> None:
    fit(*RUN)
    assert signal.getsignal(signal.SIGUSR1) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
