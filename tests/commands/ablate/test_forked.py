"""Runs forked from a process that has imported what they use end as runs in processes of their own do."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.repository import ROOT
from helpers.run_results import rows, untimed

from grpo_pl.commands.ablate.forked import ForkedRun, ForkServer
from grpo_pl.runs.layout import ENDED_FILE

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
"""Two threads: the first parallel region of a child of a process that had one of its own would hang."""
Fork = Any


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


def command(tiny_model: Path, folder: Path, *arguments: object) -> list[str]:
    fixed = ("fit", "--config", ROOT / "configs" / "tiny.yaml", "--pretrained", tiny_model)
    return [str(word) for word in (*fixed, "--trainer.default_root_dir", folder, *arguments)]


@pytest.fixture
def fork(server: ForkServer, tiny_model: Path, tmp_path: Path) -> Fork:
    def fork(name: str, *arguments: object) -> ForkedRun:
        words = command(tiny_model, tmp_path / name, *arguments)
        return ForkedRun(server, words, tmp_path / f"{name}.log", ENVIRONMENT)

    return fork


def wait_for(path: Path, run: ForkedRun) -> None:
    while not path.exists():
        assert run.code is None
        time.sleep(0.01)


@pytest.mark.timeout(600)
def test_a_forked_run_with_two_threads_ends_as_one_that_a_command_line_starts(
    fork: Fork, tiny_model: Path, tmp_path: Path
) -> None:
    run = fork("forked")
    run.wait()
    assert run.code == 0, (tmp_path / "forked.log").read_text()
    words = [sys.executable, "-m", "grpo_pl", *command(tiny_model, tmp_path / "started")]
    subprocess.run(words, env=ENVIRONMENT, check=True, capture_output=True)
    assert untimed(tmp_path / "forked") == untimed(tmp_path / "started")
    assert (tmp_path / "forked" / ENDED_FILE).exists()


@pytest.mark.timeout(600)
def test_a_run_that_crashes_or_is_killed_takes_no_other_with_it(fork: Fork, tmp_path: Path) -> None:
    killed, whole = fork("killed", "--trainer.max_epochs", 1000), fork("whole")
    refused = fork("refused", "--data.group_size", 1)
    wait_for(tmp_path / "killed" / "metrics.csv", killed)
    killed.kill()
    refused.wait()
    whole.wait()
    assert (killed.code, refused.code, whole.code) == (-signal.SIGKILL, 2, 0)
    assert "set data.group_size to 2" in (tmp_path / "refused.log").read_text()
    assert rows(tmp_path / "whole")[-1]["iteration"] == 3


@pytest.mark.timeout(600)
def test_a_forked_run_saves_where_it_is_told_to_stop(fork: Fork, tmp_path: Path) -> None:
    run = fork("stopped", "--trainer.max_epochs", 1000)
    wait_for(tmp_path / "stopped" / "samples.jsonl", run)  # before, Lightning takes the signal
    run.stop()
    run.wait()
    assert run.code == 75
    assert (tmp_path / "stopped" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.timeout(600)
def test_lightning_starts_the_other_ranks_of_a_forked_run(fork: Fork, tmp_path: Path) -> None:
    run = fork("ranks", "--trainer.devices", 2, "--trainer.strategy", "ddp")
    run.wait()
    assert run.code == 0, (tmp_path / "ranks.log").read_text()
    assert rows(tmp_path / "ranks")[-1]["iteration"] == 3


@pytest.mark.timeout(600)
def test_runs_of_a_server_that_is_killed_are_killed_and_the_next_one_has_another(
    tiny_model: Path, tmp_path: Path
) -> None:
    with ForkServer() as server:
        words = command(tiny_model, tmp_path / "lost", "--trainer.max_epochs", 1000)
        lost = ForkedRun(server, words, tmp_path / "lost.log", ENVIRONMENT)
        wait_for(tmp_path / "lost" / "metrics.csv", lost)
        assert server._process is not None
        server._process.kill()
        lost.wait()
        assert lost.code == -signal.SIGKILL
        help_alone = ForkedRun(server, ["--version"], tmp_path / "next.log", ENVIRONMENT)
        help_alone.wait()
        assert help_alone.code == 0
    assert (tmp_path / "next.log").read_text().startswith("grpo_pl ")
    before = (tmp_path / "lost" / "metrics.csv").read_text()
    time.sleep(1)
    assert (tmp_path / "lost" / "metrics.csv").read_text() == before
