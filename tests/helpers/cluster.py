"""A real SLURM of two nodes on this machine, in a folder of its own."""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
CONFIG = """
ClusterName=grpo
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5  # with the default a requeued job waits 120 s
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
InactiveLimit=0
JobRequeue=1
GresTypes=gpu
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


class Cluster:
    """Its daemons are processes of this one, and are ended by their ids."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen[bytes]] = []
        # The nodes' names resolve to nothing: MASTER_ADDR is what a real cluster's first node is called.
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"}

    def start(self) -> None:
        """Start it and wait until both nodes are idle."""
        config = CONFIG.format(user=getpass.getuser(), folder=self.folder, ports=free_ports(3))
        (self.folder / "slurm.conf").write_text(config)
        (self.folder / "munge.key").touch(mode=0o600)
        (self.folder / "munge.key").write_bytes(secrets.token_bytes(1024))
        for name in ("state", "spool-n1", "spool-n2"):
            (self.folder / name).mkdir()
        names = {
            "key-file": "munge.key",
            "socket": "munge.sock",
            "pid-file": "munge.pid",
            "seed-file": "seed",
        }
        files = [f"--{option}={self.folder / name}" for option, name in names.items()]
        self._daemon("munged", "--foreground", "--force", f"--log-file={self.folder}/munge.log", *files)
        wait(lambda: (self.folder / "munge.sock").exists(), 30)
        self._daemon("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self._daemon("slurmd", "-D", "-N", node)
        wait(lambda: self.ask("sinfo", "-h", "-N", "-o", "%T", check=False).split() == ["idle", "idle"], 60)

    def _daemon(self, program: str, *arguments: str) -> None:
        path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        assert path is not None
        with (self.folder / f"{program}.{len(self.daemons)}.out").open("wb") as out:
            self.daemons.append(
                subprocess.Popen([path, *arguments], env=self.environment, stdout=out, stderr=out)
            )

    def ask(self, *command: str, check: bool = True) -> str:
        """What one of SLURM's commands says."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def field(self, job: str, name: str) -> str:
        """Something that `scontrol show job` says of a job."""
        said = self.ask("scontrol", "--oneliner", "show", "job", job)
        return dict(pair.partition("=")[::2] for pair in said.split())[name]

    def finish(self, job: str, seconds: float) -> str:
        """The state in which a job ends."""
        wait(
            lambda: self.field(job, "JobState") not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"),
            seconds,
        )
        return self.field(job, "JobState")

    def stop(self) -> list[psutil.Process]:
        """Cancel what runs, end the daemons, and give what they have left behind, ended too."""
        if len(self.daemons) == 4:
            self.ask("scancel", f"--user={getpass.getuser()}", check=False)
            wait(lambda: not self.ask("squeue", "-h", check=False).strip(), 60)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        left = [process for process in psutil.process_iter() if self._owns(process)]
        for process in left:
            process.kill()
        return left

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            return False


def missing() -> list[str]:
    """The programs of SLURM that are not installed."""
    path = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait(condition: Callable[[], bool], seconds: float) -> None:
    """Until something is so.

    Raises:
        TimeoutError: If it takes longer.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.1)
