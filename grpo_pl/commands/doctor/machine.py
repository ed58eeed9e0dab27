"""Checks a machine's cores, memory, files and GPUs, and the environment variables about them."""

import os
import resource
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

from grpo_pl.commands.doctor.findings import Finding, good, warn_if
from grpo_pl.system.memory import GIB

CGROUP = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED_BYTES = GIB // 4
LEAST_FILES = 1024
SMI = "index,name,driver_version,memory.used,memory.total"
"""The query of nvidia-smi for each GPU."""
SLOW_NCCL = {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1", "NCCL_SHM_DISABLE": "1"}


def check_machine(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """The findings that hold for any run on this machine."""
    cores = len(os.sched_getaffinity(0))
    findings = [
        threads(cores, cpu_quota(CGROUP), environment),
        memory(psutil.virtual_memory().available, memory_limit(CGROUP)),
        shared_memory(shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else 0),
        open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        gpus(smi(f"--query-gpu={SMI}"), smi("--query-compute-apps=pid,used_memory"), environment),
    ]
    if "SLURM_JOB_ID" in environment:
        findings.append(slurm(environment, cores))
    interfaces = set(psutil.net_if_addrs())
    return [*findings, *([nccl(environment, interfaces)] if "NCCL" in " ".join(environment) else [])]


def threads(cores: int, quota: float | None, environment: Mapping[str, str]) -> Finding:
    """The usable cores against `OMP_NUM_THREADS`.

    Args:
        cores: Cores that the process may run on.
        quota: Cores that the container may use at once; None for all.
        environment: The environment variables.
    """
    usable = cores if quota is None else max(1, min(cores, int(quota)))
    found = f"{cores} cores"
    if usable < cores:
        found += f", of which the container may use {quota:g} at once"
    number = environment.get("OMP_NUM_THREADS", "")
    too_many = int(number) > usable if number.isdigit() else usable < cores
    found += f", OMP_NUM_THREADS={number}" if number else ", OMP_NUM_THREADS is not set"
    fix = f"export OMP_NUM_THREADS={usable}, divided by the ranks"
    return warn_if(too_many, "cores", found, fix, cores=usable)


def memory(free: int, limit: int | None) -> Finding:
    """Free memory against a container's limit, beyond which it is killed without a message."""
    found = f"{free / GIB:.1f} GiB free"
    if limit is None or limit >= free:
        return good("memory", found, free_bytes=free)
    fix = "raise the container's memory limit (docker run --memory), or read every estimate against it"
    return Finding("memory", "warning", f"{found}, but the container is killed above {limit / GIB:.1f}", fix)


def shared_memory(size: int) -> Finding:
    """/dev/shm, through which processes of one machine exchange tensors (NCCL, vLLM's workers)."""
    fix = "start the container with --shm-size=8g; several GPUs or engine processes need it"
    return warn_if(size < LEAST_SHARED_BYTES, "/dev/shm", f"{size / GIB:.2g} GiB", fix, bytes=size)


def open_files(limit: int) -> Finding:
    """The limit of open files, which servers and data loaders run into."""
    few = limit != resource.RLIM_INFINITY and limit < LEAST_FILES
    found = "no limit" if limit == resource.RLIM_INFINITY else f"at most {limit:,}"
    return warn_if(few, "open files", found, "ulimit -n 65536")


def cpu_quota(cgroup: Path) -> float | None:
    """Cores that the container may use at once; None without a limit."""
    quota, *period = contents(cgroup / "cpu.max", cgroup / "cpu" / "cpu.cfs_quota_us").split() or ["max"]
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period[0] if period else contents(cgroup / "cpu" / "cpu.cfs_period_us"))


def memory_limit(cgroup: Path) -> int | None:
    """Bytes that are left of the container's memory; None without a limit."""
    older = cgroup / "memory"
    limit = contents(cgroup / "memory.max", older / "memory.limit_in_bytes")
    used = contents(cgroup / "memory.current", older / "memory.usage_in_bytes")
    return int(limit) - int(used or 0) if limit.isdigit() else None


def contents(*files: Path) -> str:
    """The text of the first file that exists, cgroup v2's before v1's; else an empty text."""
    return next((file.read_text().strip() for file in files if file.is_file()), "")


# ----------------------------------------------------------------------------------------------------- GPUs


class Gpu(NamedTuple):
    """A line of nvidia-smi; memory in MiB."""

    name: str
    driver: str
    used: int
    total: int


def smi(question: str) -> str:
    """The answer of nvidia-smi as lines of values; empty without nvidia-smi or a GPU."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", question, "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout if done.returncode == 0 else ""


def read_gpus(text: str) -> list[Gpu]:
    """The GPUs in an answer of nvidia-smi to the question `SMI`."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    return [Gpu(name, driver, int(used), int(total)) for _, name, driver, used, total in rows]


def gpus(answer: str, processes: str, environment: Mapping[str, str]) -> Finding:
    """The GPUs, their memory in use by others, and whether the environment hides them."""
    installed = read_gpus(answer)
    if not installed:
        return good("GPUs", "none")
    hidden = environment.get("CUDA_VISIBLE_DEVICES")
    used = [f"{gpu.name} ({gpu.used / 1024:.1f} of {gpu.total / 1024:.0f} GiB used)" for gpu in installed]
    found = f"{len(installed)}: {', '.join(used)}; driver {installed[0].driver}"
    if hidden in ("", "-1"):
        fix = "unset CUDA_VISIBLE_DEVICES, or name the GPUs to use"
        return Finding("GPUs", "problem", f"{found}; CUDA_VISIBLE_DEVICES='{hidden}' hides them all", fix)
    pids = sorted({line.split(",")[0].strip() for line in processes.splitlines() if line.strip()})
    busy = any(gpu.used > gpu.total / 10 for gpu in installed)
    who = f"processes {', '.join(pids)}" if pids else "processes that cannot be seen from here"
    fix = f"end {who} (nvidia-smi), or choose other GPUs by CUDA_VISIBLE_DEVICES"
    return warn_if(busy, "GPUs", found, fix, gpus=len(installed))


def nccl(environment: Mapping[str, str], interfaces: set[str]) -> Finding:
    """The environment variables of NCCL, which needs none on most machines."""
    variables = {name: value for name, value in environment.items() if name.startswith("NCCL_")}
    found = ", ".join(f"{name}={value}" for name, value in sorted(variables.items()))
    named = variables.get("NCCL_SOCKET_IFNAME", "")
    wanted = [] if named.startswith("^") else [name for name in named.lstrip("=").split(",") if name]
    if wanted and not any(card.startswith(name) for name in wanted for card in interfaces):
        fix = f"unset NCCL_SOCKET_IFNAME, or name one of {', '.join(sorted(interfaces))}"
        return Finding("NCCL", "problem", f"{found}: this machine has no such interface", fix)
    slow = [name for name, value in SLOW_NCCL.items() if variables.get(name) == value]
    return warn_if(bool(slow), "NCCL", found, f"unset {' '.join(slow)}: it makes NCCL slow")


def slurm(environment: Mapping[str, str], cores: int) -> Finding:
    """In a SLURM job: its resources, and whether it can requeue itself."""
    tasks = environment.get("SLURM_NTASKS", "1")
    found = f"job {environment['SLURM_JOB_ID']}, {tasks} tasks, {cores} cores here"
    missing = shutil.which("scontrol") is None
    fix = "make scontrol reachable in the container, or say --preemption.requeue false"
    found += ", no scontrol: it cannot requeue itself" if missing else ""
    return warn_if(missing, "SLURM", found, fix)
