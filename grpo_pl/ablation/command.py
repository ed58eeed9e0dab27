"""`python -m grpo_pl ablate`."""

import argparse
import shutil
import signal
import tempfile
from pathlib import Path
from typing import NoReturn

from rich.progress import track
from typing_extensions import override

from grpo_pl.ablation.array import array_job, read_options, submit_array
from grpo_pl.ablation.planned import Check, PlannedRun, plan_runs
from grpo_pl.ablation.progress import StudyProgress
from grpo_pl.ablation.running import run_all, shares_of_machine
from grpo_pl.ablation.study import SETTINGS_FOLDER, Study, read_study
from grpo_pl.callbacks.preemption import EXIT_CODE
from grpo_pl.experiments.command import report
from grpo_pl.lock import Lock
from grpo_pl.run_files import CONFIG_FILE
from grpo_pl.submission.command import for_nodes

DESCRIPTION = """Run a study: every variant with every seed, each in OUT/<variant>/seed-<n>, and compare.
Runs that have ended are skipped, those that were cut off go on, and where one fails the others are run.
What is not listed here goes to `fit`, for all runs."""
STUDY_FILE = "study.yaml"
FAILED = 1


class Options(argparse.ArgumentParser):
    """The options of `ablate` itself."""

    def __init__(self) -> None:
        super().__init__("grpo_pl ablate", description=DESCRIPTION, allow_abbrev=False)
        say = self.add_argument
        say("study", type=Path, metavar="STUDY.yaml", help="see configs/studies/")
        say("--out", type=Path, help="folder of the study; default: runs/<name of the file>")
        say("--jobs", type=int, default=1, help="runs at once, which share GPUs or cores (%(default)s)")
        say("--slurm", metavar="OPTIONS", help="as an array of SLURM jobs, with these options of `submit`")
        say("--dry-run", action="store_true", help="check and list the runs, and run nothing")

    @override
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"ablate: {message}")


def ablate(args: list[str], check: Check) -> int:
    """Run a study and report on it; gives the exit code.

    Args:
        args: The options of `ablate`, and those of `fit`.
        check: Reads what is for `fit`.

    Raises:
        ValueError: If something is wrong with the study, before any run begins.
    """
    options, for_fit = Options().parse_known_args(args)
    if options.jobs < 1:
        raise ValueError(f"ablate: --jobs {options.jobs}: expected 1 or more")
    shares_of_machine(options.jobs)
    on_slurm = None if options.slurm is None else read_options(options.slurm)
    for_fit += for_nodes(on_slurm) if on_slurm else []
    study = read_study(options.study)
    out: Path = options.out or Path("runs") / options.study.stem
    settings = out / SETTINGS_FOLDER
    with tempfile.TemporaryDirectory(prefix="grpo_pl-study-") as aside:
        checked = plan_runs(study, study.write_settings(Path(aside)), out, for_fit, check)
        total = len(study.seeds) * len(study.variants)
        runs = list(track(checked, "checking", total=total, transient=True))
        to_do = [run for run in runs if not run.ended]
        job = array_job(to_do, out, on_slurm) if on_slurm and to_do else None
    runs, to_do = ([run.reading_from(settings, Path(aside)) for run in some] for some in (runs, to_do))
    if options.dry_run:
        print(job.script if job else "".join(f"{run.name}: {run.folder}\n" for run in to_do), end="")
        return 0
    print(f"{len(runs)} runs of {len(study.variants)} variants: {len(runs) - len(to_do)} have ended")
    lock = Lock(out)
    lock.take()
    try:
        study.write_settings(settings)
        shutil.copyfile(study.path, out / STUDY_FILE)
        if job is None:
            return run_here(study, runs, out, options.jobs)
        submit_array(to_do, out, job, base=next(iter(study.variants)))
        return 0
    finally:
        lock.leave()


def run_here(study: Study, runs: list[PlannedRun], out: Path, jobs: int) -> int:
    """Run what has not ended, and report on all."""
    to_do = [run for run in runs if not run.ended]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = StudyProgress(to_do, len(runs) - len(to_do), jobs, study.metric)
    try:
        with progress:
            run_all(to_do, jobs, on_start=progress.start, on_end=progress.end, on_look=progress.look)
    except KeyboardInterrupt:
        progress.say("Stopped, and all that ran is saved: the same command goes on.")
        return EXIT_CODE
    finally:
        signal.signal(signal.SIGTERM, before)
    started = [run for run in runs if (run.folder / CONFIG_FILE).exists()]
    if len(progress.problems) < len(runs):
        base = next(name for name in study.variants if name in {run.variant for run in started})
        report([run.folder for run in started], out, base=base, metric=study.metric)
    for name, problem in progress.problems.items():
        progress.say(f"! {name} failed: {problem}")
    if progress.problems:
        count = f"{len(progress.problems)} of {len(runs)} runs"
        progress.say(f"{count} failed: the same command tries them again.")
    return FAILED if progress.problems else 0
