"""A study from its file to its report: checks all runs, runs those that have not ended, and compares."""

import argparse
import shutil
import signal
import tempfile
from pathlib import Path

from rich.progress import track

from grpo_pl.commands.ablate.array import array_script, read_options, submit_array
from grpo_pl.commands.ablate.forked import ForkServer
from grpo_pl.commands.ablate.planned import PlannedRun, plan_runs
from grpo_pl.commands.ablate.progress import StudyProgress
from grpo_pl.commands.ablate.running import run_all
from grpo_pl.commands.ablate.sharing import jobs_that_fit, shares_of_machine
from grpo_pl.commands.ablate.study import SETTINGS_FOLDER, Study
from grpo_pl.commands.compare.reporting import report
from grpo_pl.commands.submit.command import for_nodes
from grpo_pl.runs.lock import Lock
from grpo_pl.runs.preemption import EXIT_CODE

STUDY_FILE = "study.yaml"
FAILED = 1


def conduct(
    study: Study, part: Study, out: Path, options: argparse.Namespace, for_fit: list[str], server: ForkServer
) -> int:
    """Run a study in the folder `out` and report on it; returns the exit code.

    Args:
        study: What to report on.
        part: What to run of it. All its runs are checked before any begins.
        out: The study's folder.
        options: The options of `ablate`.
        for_fit: Options of `fit`, for all runs.
        server: Forks the runs.
    """
    if options.jobs is not None:
        shares_of_machine(options.jobs)
    on_slurm = None if options.slurm is None else read_options(options.slurm)
    for_fit = for_fit + (for_nodes(on_slurm) if on_slurm else [])
    settings = out / SETTINGS_FOLDER
    with tempfile.TemporaryDirectory(prefix="grpo_pl-study-") as aside:
        planned = plan_runs(part, study.write_settings(Path(aside)), out, for_fit)
        total = len(part.seeds) * len(part.variants)
        checked = track(planned, "checking", total=total, transient=True)
        runs = [run.reading_from(settings, Path(aside)) for run in checked]
        to_do = [run for run in runs if not run.ended]
        script = array_script(to_do, out, on_slurm) if on_slurm and to_do else ""
        if options.dry_run:
            print(script or "".join(f"{run.name}: {run.folder}\n" for run in to_do), end="")
            return 0
        print(f"{len(runs)} runs of {len(part.variants)} variants: {len(runs) - len(to_do)} have ended")
        lock = Lock(out)
        lock.take()
        try:
            study.write_settings(settings)
            shutil.copyfile(study.path, out / STUDY_FILE)
            if not on_slurm or not script:
                return run_here(study, runs, out, jobs_at_once(options.jobs, to_do), server)
            submit_array(to_do, out, script, on_slurm, study)
            return 0
        finally:
            lock.leave()


def jobs_at_once(wanted: int | None, to_do: list[PlannedRun]) -> int:
    """The number of `--jobs`; None is `auto`, whose choice is printed."""
    if wanted is not None or not to_do:
        return wanted or 1
    jobs = jobs_that_fit({run.variant: run.fit for run in to_do}.values())
    print(f"--jobs auto: {jobs} at once")
    return jobs


def run_here(study: Study, runs: list[PlannedRun], out: Path, jobs: int, server: ForkServer) -> int:
    """Run what has not ended on this machine, and report on all runs; returns the exit code."""
    to_do = [run for run in runs if not run.ended]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = StudyProgress(to_do, len(runs) - len(to_do), jobs, study.metric)
    try:
        with progress:
            run_all(to_do, jobs, server, on_start=progress.start, on_end=progress.end, on_look=progress.look)
    except KeyboardInterrupt:
        progress.say("Stopped, and all that ran is saved: the same command goes on.")
        return EXIT_CODE
    finally:
        signal.signal(signal.SIGTERM, before)
    if len(progress.problems) < len(runs):
        folders = study.begun(out)
        report(folders, out, base=folders[0].parent.name, metric=study.metric, margin=study.margin)
    for name, problem in progress.problems.items():
        progress.say(f"! {name} failed: {problem}")
    if not progress.problems:
        return 0
    progress.say(f"{len(progress.problems)} of {len(runs)} runs failed: the same command tries them again.")
    return FAILED
