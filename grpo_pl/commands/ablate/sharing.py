"""The share of the machine that each of the runs at once has, and how many runs that are."""

import os
from collections.abc import Iterable

import psutil
import torch

from grpo_pl.commands.checked import Checked
from grpo_pl.commands.engine import of_policy
from grpo_pl.commands.plan.estimate import peak
from grpo_pl.commands.plan.requirements import read_requirements
from grpo_pl.system.refusal import ConfigError


def shares_of_machine(jobs: int) -> list[dict[str, str]]:
    """The environment of each of the runs at once: its GPUs, or its share of the cores.

    More runs than GPUs are refused.
    """
    if jobs == 1:
        return [{}]
    if gpus := torch.cuda.device_count():
        if jobs > gpus:
            raise ConfigError(f"ablate: --jobs {jobs}: this machine has {gpus} GPUs, and each run needs one")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        each = gpus // jobs
        return [{"CUDA_VISIBLE_DEVICES": ",".join(visible[i * each : (i + 1) * each])} for i in range(jobs)]
    threads = str(max(cores() // jobs, 1))
    share = {name: os.environ.get(name, threads) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
    return [share] * jobs


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def jobs_that_fit(variants: Iterable[Checked]) -> int:
    """The most runs at once that have a GPU for each of their devices, or a core and their memory.

    Without GPUs a run's memory is what `plan` finds for the variant that needs most. `plan` knows the job
    `policy` alone, so that runs of another job come one at a time.
    """
    runs = list(variants)
    if gpus := torch.cuda.device_count():
        devices = [str(run.settings.trainer.devices) for run in runs]
        counted = all(number.isdigit() and int(number) for number in devices)
        return max(gpus // max(map(int, devices)), 1) if counted else 1  # else a run takes all that it finds
    if any(run.job != "policy" for run in runs):
        return 1
    processes = max(run.trainer.num_devices for run in runs)
    by_memory = psutil.virtual_memory().available // max(map(needed_bytes, runs))
    return int(max(min(cores() // processes, by_memory), 1))


def needed_bytes(run: Checked) -> int:
    """The memory of a run's processes at its peak, on CPUs."""
    trainer, module, data = of_policy(run)
    return peak(read_requirements(trainer, module, data))[1] * trainer.num_devices
