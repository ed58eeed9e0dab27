"""A study from its file to its report: checks all runs, runs those that have not ended, and compares."""

import argparse
import shutil
import signal
import tempfile
from pathlib import Path
from typing import NamedTuple

from rich.progress import track

from grpo_pl.commands.ablate.array import array_script, read_options, submit_array
from grpo_pl.commands.ablate.forecast import forecast
from grpo_pl.commands.ablate.forked import ForkServer
from grpo_pl.commands.ablate.looks import decide, section, settled
from grpo_pl.commands.ablate.planned import PlannedRun, plan_runs
from grpo_pl.commands.ablate.progress import StudyProgress
from grpo_pl.commands.ablate.running import run_all
from grpo_pl.commands.ablate.sharing import jobs_that_fit, shares_of_machine
from grpo_pl.commands.ablate.study import SETTINGS_FOLDER, Study
from grpo_pl.commands.ablate.tuning import TUNING_FOLDER, choose
from grpo_pl.commands.compare.comparison import Comparison, compare
from grpo_pl.commands.compare.declared import STUDY_FILE
from grpo_pl.commands.compare.report.document import Section
from grpo_pl.commands.compare.report.tuning import label, write_tuned
from grpo_pl.commands.compare.reporting import report
from grpo_pl.commands.compare.statistics import Interval
from grpo_pl.commands.submit.command import for_nodes
from grpo_pl.runs.layout import CONFIG_FILE
from grpo_pl.runs.lock import Lock
from grpo_pl.runs.preemption import EXIT_CODE
from grpo_pl.system.refusal import ConfigError

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
    if on_slurm and (part.tuning or part.looks):
        raise ConfigError(
            "ablate: --slurm: a study with tune or sequential goes by what its runs have shown: leave these "
            "out, or run it without --slurm"
        )
    for_fit = for_fit + (for_nodes(on_slurm) if on_slurm else [])
    told = forecast(part, options.pilot, out) if options.dry_run else []
    runs = plan(part, out, for_fit)
    pilots = plan(part.pilots(), out / TUNING_FOLDER, for_fit)
    to_do = [run for run in (*pilots, *runs) if not run.ended]
    script = array_script(to_do, out, on_slurm) if on_slurm and to_do else ""
    if options.dry_run:
        print(script or "\n".join([*(f"{run.name}: {run.folder}" for run in to_do), *told]))
        return 0
    print(f"{len(runs)} runs of {len(part.variants)} variants: {sum(run.ended for run in runs)} have ended")
    lock = Lock(out)
    lock.take()
    try:
        study.write_settings(out / SETTINGS_FOLDER)
        shutil.copyfile(study.path, out / STUDY_FILE)
        if on_slurm and script:
            submit_array(to_do, out, script, on_slurm, study)
            return 0
        return run_here(Here(out, options.jobs, server, study.metric), study, part, pilots, runs, for_fit)
    finally:
        lock.leave()


def run_here(
    here: "Here",
    study: Study,
    part: Study,
    pilots: list[PlannedRun],
    runs: list[PlannedRun],
    for_fit: list[str],
) -> int:
    """Tune what is to be tuned, run the others and report; SIGTERM stops them as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if pilots:
            runs = plan(here.tune(part, pilots, runs), here.out, for_fit)
        return here.run_study(study, part, runs)
    except KeyboardInterrupt:
        print("Stopped, and all that ran is saved: the same command goes on.")
        return EXIT_CODE
    finally:
        signal.signal(signal.SIGTERM, before)


def plan(study: Study, out: Path, for_fit: list[str]) -> list[PlannedRun]:
    """All runs of a study in the folder `out`, checked; nothing is written there."""
    with tempfile.TemporaryDirectory(prefix="grpo_pl-study-") as aside:
        planned = plan_runs(study, study.write_settings(Path(aside)), out, for_fit)
        checked = track(planned, "checking", total=len(study.seeds) * len(study.variants), transient=True)
        return [run.reading_from(out / SETTINGS_FOLDER, Path(aside)) for run in checked]


def jobs_at_once(wanted: int | None, to_do: list[PlannedRun]) -> int:
    """The number of `--jobs`; None is `auto`, whose choice is printed."""
    if wanted is not None or not to_do:
        return wanted or 1
    jobs = jobs_that_fit({run.variant: run.fit for run in to_do}.values())
    print(f"--jobs auto: {jobs} at once")
    return jobs


class Here(NamedTuple):
    """Runs on this machine."""

    out: Path
    """The study's folder."""
    jobs: int | None
    """Runs at once; None for as many as fit."""
    server: ForkServer
    metric: str

    def run(self, runs: list[PlannedRun]) -> dict[str, str]:
        """Run what has not ended; returns run -> its problem, of those that failed."""
        to_do = [run for run in runs if not run.ended]
        jobs = jobs_at_once(self.jobs, to_do)
        progress = StudyProgress(to_do, len(runs) - len(to_do), jobs, self.metric)
        with progress:
            run_all(
                to_do,
                jobs,
                self.server,
                on_start=progress.start,
                on_end=progress.end,
                on_look=progress.look,
            )
        return progress.problems

    def tune(self, part: Study, pilots: list[PlannedRun], runs: list[PlannedRun]) -> Study:
        """Run the pilots of a study; returns it with the setting that is best for each of its variants."""
        folder = self.out / TUNING_FOLDER
        part.pilots().write_settings(folder / SETTINGS_FOLDER)
        print(f"{len(pilots)} pilot runs: {sum(run.ended for run in pilots)} have ended")
        self.run(pilots)
        assert part.tuning is not None, "it has pilots"
        keys, own = list(part.tuning.grid), {run.variant: run.fit.settings for run in runs}
        untuned = {name: {key: settings.get(key) for key in keys} for name, settings in own.items()}
        chosen = choose(part, pilots, untuned)
        write_tuned(chosen, self.out)
        for name, each in chosen.items():
            print(f"{name}: {label(each.chosen)}")
        tuned = part.tuned({name: tuple(each.chosen.items()) for name, each in chosen.items()})
        tuned.write_settings(self.out / SETTINGS_FOLDER)
        return tuned

    def run_study(self, study: Study, part: Study, runs: list[PlannedRun]) -> int:
        """Run a study until its seeds or its questions are at an end, and report; returns the exit code."""
        problems, begin, first, looks = dict[str, str](), 0, list[Section](), dict[str, Interval]()
        for look in part.looks or (len(part.seeds),):
            problems |= self.run([run for run in runs if run.seed in part.seeds[begin:look]])
            begin = look
            done = [run for run in runs if run.seed in part.seeds[:look]]
            if part.looks and len(problems) < len(done):
                decisions = decide(part, compare_begun(part, done), look)
                first = [section(part, decisions, look)]
                looks = {each.name: each.interval for each in decisions}
                if settled(part, decisions):
                    break
        if len(problems) < len(runs):
            folders = study.begun(self.out)
            base = folders[0].parent.name
            report(
                folders,
                self.out,
                base=base,
                metric=study.metric,
                margin=study.margin,
                first=first,
                looks=looks,
            )
        for name, problem in problems.items():
            print(f"! {name} failed: {problem}")
        if not problems:
            return 0
        print(f"{len(problems)} of {len(runs)} runs failed: the same command tries them again.")
        return FAILED


def compare_begun(study: Study, runs: list[PlannedRun]) -> Comparison:
    """The comparison of those of the runs that have begun."""
    begun = [run for run in runs if (run.folder / CONFIG_FILE).exists()]
    base = next(name for name in study.variants if name in {run.variant for run in begun})
    return compare([run.folder for run in begun], base, study.metric, study.margin)
