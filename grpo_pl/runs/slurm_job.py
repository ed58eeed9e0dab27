"""The SLURM job of this process: which run folder it owns, and how it is requeued."""

import json
import logging
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from grpo_pl.system.atomic_files import write_atomically

log = logging.getLogger(__name__)

OWNER_FILE = "slurm_job.json"


@dataclass(frozen=True)
class Owner:
    """The job that owns a run folder, by its `slurm_job.json`."""

    job: str
    starts: int
    """Starts of the job in this folder."""

    def write(self, folder: Path) -> None:
        """Write it into the folder atomically."""
        write_atomically(folder / OWNER_FILE, json.dumps(asdict(self)) + "\n")


def owner(folder: Path) -> Owner | None:
    """The job that owns a run folder; None if no job does."""
    path = folder / OWNER_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Owner(str(content["job"]), int(content["starts"]))
    except (ValueError, KeyError, TypeError):
        log.warning("! %s is torn, and does not say which job the folder belongs to", path)
        return None


def current() -> Owner | None:
    """The job of this process, with its number of starts; None outside of SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    return Owner(job, int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1) if job else None


def was_requeued(folder: Path) -> bool:
    """Whether an earlier start of this job has written to the folder.

    A second command inside the same start is a run of its own.
    """
    job, earlier = current(), owner(folder)
    if job is None or earlier is None or job.job != earlier.job:
        return False
    return 0 < earlier.starts < job.starts


def requeue(job: str) -> str:
    """Requeue the running job; SLURM's reason if it refuses, else nothing."""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # in a container
        return "there is no scontrol here"
    return " ".join((done.stderr or done.stdout).split()) if done.returncode else ""


def state(job: str) -> str:
    """The state of a job that waits or runs, as `squeue` names it; empty for one that has ended."""
    question = ["squeue", "--noheader", "--format=%T", f"--jobs={job}"]
    done = subprocess.run(question, capture_output=True, text=True, check=False)
    return " ".join(sorted(set(done.stdout.split())))
