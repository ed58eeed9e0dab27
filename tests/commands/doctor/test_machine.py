"""Machines that are made up, each with one thing wrong."""

import resource
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.small_runs import small_run

from grpo_pl.commands.doctor import machine, run
from grpo_pl.commands.plan.estimate import peak
from grpo_pl.rollout.engine import EngineMemory
from grpo_pl.system.memory import GIB

SMI = "0, NVIDIA H100, 580.10, 500, 81559\n1, NVIDIA H100, 580.10, 70000, 81559\n"


@pytest.mark.parametrize(
    ("cores", "quota", "said", "verdict"),
    [
        (64, None, "", "ok"),
        (64, None, "8", "ok"),
        (64, 2.0, "", "warning"),
        (64, 2.0, "2", "ok"),
        (2, None, "16", "warning"),
    ],
)
def test_threads_against_cores_and_the_containers_quota(
    cores: int, quota: float | None, said: str, verdict: str
) -> None:
    finding = machine.threads(cores, quota, {"OMP_NUM_THREADS": said} if said else {})
    assert finding.verdict == verdict
    assert "OMP_NUM_THREADS" in finding.found


def test_the_limits_of_a_container_of_either_kind(tmp_path: Path) -> None:
    assert machine.cpu_quota(tmp_path) is None
    assert machine.memory_limit(tmp_path) is None
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert (machine.cpu_quota(tmp_path), machine.memory_limit(tmp_path)) == (2.5, 600)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert (machine.cpu_quota(tmp_path), machine.memory_limit(tmp_path)) == (None, None)
    older = tmp_path / "older"
    (older / "cpu").mkdir(parents=True)
    (older / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    (older / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.cpu_quota(older) == 1.5


def test_a_container_that_is_killed_before_the_memory_is_full() -> None:
    assert machine.memory(8 * GIB, None).verdict == "ok"
    assert machine.memory(8 * GIB, 9 * GIB).verdict == "ok"
    assert machine.memory(8 * GIB, 4 * GIB).verdict == "warning"


def test_dockers_shared_memory_and_few_files_are_warnings() -> None:
    assert machine.shared_memory(64 << 20).verdict == "warning"
    assert machine.shared_memory(GIB).verdict == "ok"
    assert machine.open_files(256).verdict == "warning"
    assert machine.open_files(1024).verdict == "ok"
    assert machine.open_files(resource.RLIM_INFINITY).verdict == "ok"


def test_gpus_that_others_hold_or_the_environment_hides() -> None:
    busy = machine.gpus(SMI, "4711, 69000\n", {})
    assert busy.verdict == "warning"
    assert busy.fix.startswith("end processes 4711 (nvidia-smi)")
    assert machine.gpus(SMI.splitlines()[0], "", {}).verdict == "ok"
    assert machine.gpus(SMI, "", {"CUDA_VISIBLE_DEVICES": ""}).verdict == "problem"
    assert machine.gpus("", "", {}).found == "none"


def test_an_interface_that_is_not_there_and_switches_that_slow_nccl_down() -> None:
    cards = {"lo", "eth0"}
    assert machine.nccl({"NCCL_SOCKET_IFNAME": "ib0"}, cards).verdict == "problem"
    assert machine.nccl({"NCCL_SOCKET_IFNAME": "eth"}, cards).verdict == "ok"
    assert machine.nccl({"NCCL_SOCKET_IFNAME": "^docker"}, cards).verdict == "ok"
    assert machine.nccl({"NCCL_P2P_DISABLE": "1"}, cards).verdict == "warning"
    assert machine.nccl({"NCCL_DEBUG": "INFO"}, cards).verdict == "ok"


def test_a_job_without_scontrol_cannot_requeue_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    finding = machine.slurm({"SLURM_JOB_ID": "7"}, cores=2)
    assert finding.verdict == "warning"
    assert "--preemption.requeue false" in finding.fix


# ------------------------------------------------------------------------------------- a run on a machine


def test_the_predicted_peak_against_what_is_free() -> None:
    planned = small_run(minibatches=1)
    needed = peak(planned)[1]
    assert run.memory(planned).verdict == "ok"
    assert run.memory(replace(planned, free_bytes=int(needed / 0.95))).verdict == "warning"
    short = run.memory(replace(planned, free_bytes=needed - 1))
    assert short.verdict == "problem"
    assert "trainer.accumulate_grad_batches" in short.fix
    hopeless = run.memory(replace(planned, free_bytes=1000, engine=EngineMemory()))
    assert "smaller model" in hopeless.fix


@pytest.mark.parametrize(
    ("settings", "iterations", "kept"),
    [
        ({}, 100, 2),  # the newest, while the next is written beside it
        ({}, 1, 1),
        ({"save_top_k": 3}, 100, 4),
        ({"save_top_k": -1, "every_n_epochs": 10}, 100, 10),
        ({"save_top_k": -1}, -1, None),
        ({"save_last": True}, 100, 3),
    ],
)
def test_how_many_checkpoints_there_are_at_once(
    settings: dict[str, object], iterations: int, kept: int | None
) -> None:
    usual = {"save_top_k": 1, "save_last": "link", "every_n_epochs": None}
    assert run.checkpoints_kept(usual | settings, iterations) == kept


def test_the_disk_against_the_checkpoints() -> None:
    assert run.disk(Path("/"), 100, 40, 2).verdict == "ok"
    assert run.disk(Path("/"), 100, 48, 2).verdict == "warning"
    assert run.disk(Path("/"), 100, 60, 2).verdict == "problem"
    assert run.disk(Path("/"), 100, 1, None).verdict == "warning"
    assert run.checkpoint_bytes(small_run()) == 4000 + 8000


def test_the_folder_that_a_run_will_make_is_judged_by_the_one_above(tmp_path: Path) -> None:
    assert run.existing(tmp_path / "a" / "b") == tmp_path
    assert run.writable(tmp_path).verdict == "ok"
