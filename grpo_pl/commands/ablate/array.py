"""A study as an array of SLURM jobs, with a job after them that compares."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo_pl.commands.ablate.planned import PlannedRun
from grpo_pl.commands.ablate.study import Study
from grpo_pl.commands.checked import check
from grpo_pl.commands.submit import command as submission
from grpo_pl.commands.submit.command import SCRIPT_FILE, check_free, check_sbatch, hand_in, write
from grpo_pl.runs import slurm_job
from grpo_pl.runs.layout import CONFIG_FILE
from grpo_pl.system.refusal import ConfigError

REPORT_SCRIPT = "report.sbatch"


def submit_array(
    runs: Sequence[PlannedRun], out: Path, script: str, options: argparse.Namespace, study: Study
) -> None:
    """Submit runs that have not ended as one array, and the report on the study as a job that waits for it.

    Refuses a run whose folder belongs to another job that has not ended.

    Args:
        runs: One array task each.
        out: The study's folder.
        script: The array's script.
        options: The options of `submit`, of which the report takes the partition.
        study: What to report on.
    """
    check_sbatch()
    for run in runs:
        check_free(run.folder)
    for run in runs:
        check(run.options).prepare()
    (out / SCRIPT_FILE).write_text(script, encoding="utf-8")
    array = hand_in(out / SCRIPT_FILE)
    for i, run in enumerate(runs):
        if slurm_job.owner(run.folder) is None:  # or the job itself was faster
            slurm_job.Owner(f"{array}_{i}", starts=0).write(run.folder)
    (out / REPORT_SCRIPT).write_text(report_script(out, study), encoding="utf-8")
    partition = [f"--partition={options.partition}"] if options.partition else []
    after = hand_in(out / REPORT_SCRIPT, f"--dependency=afterany:{array}", *partition)
    print(f"Jobs {array}_[0-{len(runs) - 1}] are submitted, and {after}, which compares them: {out}/*.sbatch")


def read_options(text: str) -> argparse.Namespace:
    """The options of `submit` in one string; those for server nodes are refused."""
    options = submission.options().parse_args(shlex.split(text))
    if options.server_nodes:
        raise ConfigError("ablate: --slurm: jobs with --server-nodes are no array: submit each by itself")
    return options


def array_script(runs: Sequence[PlannedRun], out: Path, options: argparse.Namespace) -> str:
    """The script of an array with a task for each run, on nodes as the options of `submit` say."""
    configs = shlex.join(str(run.folder / CONFIG_FILE) for run in runs)
    choose = [f"configs=({configs})", 'set -- --config "${configs[$SLURM_ARRAY_TASK_ID]}"']
    more = {"array": f"0-{len(runs) - 1}", "output": shlex.quote(f"{out}/slurm-%A_%a.out")}
    return write(options, runs[0].fit.settings, out, choose, more)


def report_script(out: Path, study: Study) -> str:
    """The script of the job that compares the runs."""
    command = [sys.executable, "-m", "grpo_pl", "compare", str(out), "--base", next(iter(study.variants))]
    command += ["--metric", study.metric, *(["--margin", str(study.margin)] if study.margin else [])]
    output = f"#SBATCH --output={shlex.quote(f'{out}/report-%j.out')}"
    return "\n".join(["#!/usr/bin/env bash", output, shlex.join(command), ""])
