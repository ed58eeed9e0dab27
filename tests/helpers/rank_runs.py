"""Ranks of a run, forked from a process that has imported everything, which takes each of them 10 s."""

import multiprocessing
import os
import socket
import time
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from helpers.commands import PATHS

from grpo_pl.__main__ import main
from grpo_pl.commands.ablate.forked import IMPORTED

LIMIT_S = 500
IMPORTED_IN = os.getpid()
"""The process that imported this module: of a forked one, the one it was forked from."""


def forked() -> Any:
    """A context whose processes are forked from one that has imported what runs import.

    Python 3.11 does not give that one our `sys.path`, and is silent about what it cannot import.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTED, "helpers.rank_runs"])
    with patch.dict(os.environ, PYTHONPATH=PATHS):
        forkserver.ensure_running()
    return context


def rank(number: int, count: int, port: int, log: Path, arguments: Sequence[str]) -> None:
    """One of several ranks, as Lightning would start it."""
    write_to(log)
    os.environ |= {"LOCAL_RANK": str(number), "NODE_RANK": "0", "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    main(["fit", *arguments])


def write_to(log: Path) -> None:
    """What a forked process does first: write to a file, and compute in one thread."""
    assert os.getpid() != IMPORTED_IN, "imported anew: nothing was there to be forked"
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)


def run_ranks(arguments: Sequence[object], count: int, logs: Path) -> None:
    """Run `grpo_pl fit` in so many processes; they end with the first that fails."""
    codes, output = run_each([[str(word) for word in arguments]] * count, logs)
    assert codes == [0] * count, output


def run_each(arguments: Sequence[Sequence[str]], logs: Path) -> tuple[list[int | None], str]:
    """The exit codes of ranks that each have arguments of their own, and the end of what they said."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    files = [logs / f"rank-{number}.log" for number in range(len(arguments))]
    context = forked()
    processes = [
        context.Process(target=rank, args=(number, len(arguments), port, file, own))
        for number, (file, own) in enumerate(zip(files, arguments, strict=True))
    ]
    for process in processes:
        process.start()
    codes = wait(processes)
    return codes, "\n".join(file.read_text()[-3000:] for file in files if file.exists())


def wait(processes: Sequence[ForkServerProcess]) -> list[int | None]:
    """The exit codes, when all have ended or one has failed."""
    end = time.monotonic() + LIMIT_S
    while any(p.exitcode is None for p in processes) and time.monotonic() < end:
        if any(p.exitcode for p in processes):
            break
        time.sleep(0.05)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes
