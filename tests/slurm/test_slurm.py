"""Jobs of two nodes on a real SLURM: `bash tools/test.sh --slurm`."""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.cluster import Cluster, missing, wait
from helpers.repository import ROOT
from helpers.run_results import column, untimed
from helpers.studies import VARIANTS, write_study

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]
JOB_S = 600
ITERATIONS = 12
SETTINGS = (
    *(
        "--trainer.strategy",
        "ddp",
        "--trainer.max_epochs",
        str(ITERATIONS),
        "--checkpoint.every_n_epochs",
        "6",
    ),
    *("--trainer.accumulate_grad_batches", "1", "--trainer.check_val_every_n_epoch", "3"),
    *("--model.reference_update", "EMA", "--model.reference_update.decay", "0.5"),
)
VLLM = ("--data.engine", "VLLMEngine", "--data.engine.dtype", "float32", "--data.engine.kv_cache_gib", "0.1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """It has a short path of its own, for munge's socket."""
    if absent := missing():
        pytest.fail(
            f"SLURM is not installed (no {', '.join(absent)}): run bash tools/test.sh --slurm as root"
        )
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        left = cluster.stop()
        shutil.rmtree(folder)
    assert not left, "processes outlived the cluster"


def command(model: Path, folder: Path, *arguments: str) -> list[str]:
    """How a user submits a job of two nodes."""
    return [
        *(sys.executable, "-m", "grpo_pl", "submit", "--nodes", "2", "--gpus-per-node", "0"),
        *("--cpus-per-task", "1", "--config", str(ROOT / "configs" / "tiny.yaml")),
        *("--pretrained", str(model), "--trainer.default_root_dir", str(folder), *SETTINGS, *arguments),
    ]


def submit(cluster: Cluster, model: Path, folder: Path, *arguments: str) -> str:
    """Submit one and give its id."""
    submitted = re.search(r"Job (\d+) is submitted", cluster.ask(*command(model, folder, *arguments)))
    assert submitted is not None
    return submitted[1]


def log(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("slurm-*.out")))


def fingerprint(folder: Path) -> str:
    """The sha256 of the final weights."""
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    everything = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        everything.update(name.encode() + tensor.numpy().tobytes())
    return everything.hexdigest()


def sampled(folder: Path, iteration: int) -> bool:
    path = folder / "samples.jsonl"
    return path.exists() and f'{{"iteration": {iteration},' in path.read_text()


@pytest.mark.parametrize(
    "engine", [pytest.param((), id="in-process"), pytest.param(VLLM, id="vllm", marks=pytest.mark.vllm)]
)
def test_a_preempted_job_ends_like_an_undisturbed_one(
    cluster: Cluster, tiny_model: Path, tmp_path: Path, engine: tuple[str, ...]
) -> None:
    whole, preempted = tmp_path / "whole", tmp_path / "preempted"
    job = submit(cluster, tiny_model, whole, *engine)
    assert cluster.finish(job, JOB_S) == "COMPLETED", log(whole)

    job = submit(cluster, tiny_model, preempted, *engine)
    wait(lambda: sampled(preempted, 3), JOB_S)
    cluster.ask("scancel", "--signal=USR1", job)
    assert cluster.finish(job, JOB_S) == "COMPLETED", log(preempted)
    assert cluster.field(job, "Restarts") == "1", log(preempted)
    assert f"job {job} is requeued and will continue" in log(preempted)

    assert fingerprint(preempted) == fingerprint(whole)
    assert column(preempted, "iteration") == list(range(ITERATIONS + 1))
    assert untimed(preempted) == untimed(whole)
    assert (preempted / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    assert not [*preempted.rglob("hpc_ckpt*"), *preempted.rglob("preempted-*"), *tmp_path.glob("*.1")]


def test_a_study_is_an_array_of_jobs_and_one_that_compares_them(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    out, study = tmp_path / "out", write_study(tmp_path, tiny_model, VARIANTS)
    ablate = [sys.executable, "-m", "grpo_pl", "ablate", str(study), "--out", str(out)]
    command = [*ablate, "--slurm", "--nodes 1 --gpus-per-node 0 --cpus-per-task 1"]
    said = re.search(r"Jobs (\d+)_\[0-1\] are submitted, and (\d+), which", cluster.ask(*command))
    assert said is not None
    assert cluster.finish(said[2], JOB_S) == "COMPLETED", log(out)
    assert [column(out / name / "seed-1", "iteration") for name in VARIANTS] == [[0, 1, 2]] * 2, log(out)
    assert (out / "report.html").exists()
    assert "2 runs of 2 variants: 2 have ended" in cluster.ask(*command)


@pytest.fixture
def addresses(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes' names resolve to nothing here: whoever asks SLURM for their hosts gets an address."""
    folder, scontrol = cluster.folder / "bin", shutil.which("scontrol")
    folder.mkdir()
    (folder / "scontrol").write_text(
        f"""#!/bin/sh
        [ "$1 $2" = "show hostnames" ] || exec {scontrol} "$@"
        {scontrol} "$@" | sed 's/.*/127.0.0.1/'
        """
    )
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setitem(cluster.environment, "PATH", f"{folder}:{cluster.environment['PATH']}")


@pytest.mark.vllm
@pytest.mark.usefixtures("addresses")
def test_a_heterogeneous_job_trains_on_one_node_with_the_server_on_the_other(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    both = ("--nodes", "1", "--server-nodes", "1", "--trainer.devices", "2", "--data.engine", "ServerEngine")
    server = ("--server-args", "--dtype float32 --kv_cache_gib 0.1 --transfer SharedFiles")
    job = submit(cluster, tiny_model, folder, *both, *server, "--trainer.max_epochs", "2")
    assert cluster.finish(job, JOB_S) == "COMPLETED", log(folder)
    said = log(folder)
    assert "serve: ready at" in said
    assert "VLLM_API_KEY" not in said
    assert max(column(folder, "sync/logprob_mismatch")) < 1e-5
    assert column(folder, "rollout/servers_lost") == [0, 0]


def test_the_folder_of_a_job_that_has_not_ended_is_refused(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    job = submit(cluster, tiny_model, tmp_path / "run", "--sbatch", "begin=now+1hour")
    again = subprocess.run(
        command(tiny_model, tmp_path / "run"),
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    cluster.ask("scancel", job)
    assert again.returncode == 2
    assert f"is the folder of job {job}, which is PENDING: name another, or scancel {job}" in again.stderr


@pytest.mark.parametrize("name", ["one_node", "many_nodes", "server_nodes"])
def test_slurm_understands_the_templates(cluster: Cluster, name: str) -> None:
    """It then finds no nodes with GPUs for them here."""
    done = subprocess.run(
        ["sbatch", "--test-only", ROOT / "tools" / "slurm" / f"{name}.sbatch"],
        env=cluster.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "node configuration is not available" in done.stderr, done.stderr
