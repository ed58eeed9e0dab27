"""Runs of `fit` in processes that are forked from one that has imported what they use.

That process has run nothing: the child of one that has been through a parallel region of OpenMP hangs in its
own first one, and CUDA knows no forks at all.
"""

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path

from grpo_pl.rewards.sandbox.kernel import die_with_parent

CONTEXT = multiprocessing.get_context("forkserver")
PROGRAM = "grpo_pl.__main__"
IMPORTED = (
    *("grpo_pl.fork_server", PROGRAM, "grpo_pl.cli"),
    *("transformers.models.auto.modeling_auto", "transformers.modeling_utils"),
    *("transformers.models.llama.modeling_llama", "transformers.models.qwen2.modeling_qwen2"),
    *("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
)
"""What most runs use, in this order; what only some use, they import themselves."""


def begin_imports(*more: str) -> None:
    """Start the process that runs are forked from, if there is none, and do not wait for it.

    Args:
        more: Modules that it imports besides `IMPORTED`; a missing one is left to the run.
    """
    from multiprocessing.forkserver import ensure_running

    CONTEXT.set_forkserver_preload([*IMPORTED, *more])
    ensure_running()


class ForkedRun:
    """A run of `fit` in a session of its own, which ends with this process.

    Args:
        arguments: What follows `fit`.
        log: The file to which its output is appended.
        environment: All its variables.
    """

    def __init__(self, arguments: Iterable[str], log: Path, environment: Mapping[str, str]) -> None:
        begin_imports()
        given = ["fit", *arguments], log, dict(environment)
        self._process = CONTEXT.Process(target=run_here, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, below 0 for a signal; None while it goes on."""
        return self._process.exitcode

    def wait(self) -> None:
        """Return when it has ended."""
        self._process.join()

    def stop(self) -> None:
        """Have it save at the end of its iteration."""
        self._process.terminate()

    def kill(self) -> None:
        """End it with all processes of its group, and wait until it is gone."""
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()


def run_here(arguments: list[str], log: Path, environment: Mapping[str, str]) -> None:
    """Run a command in this forked process as if it had been started by that command line."""
    os.setsid()
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    import torch

    if threads := environment.get("OMP_NUM_THREADS"):  # which OpenMP has read when it was loaded
        torch.set_num_threads(int(threads))
    program = import_module(PROGRAM)
    sys.modules["__main__"] = program  # what Lightning starts further ranks by, and multiprocessing workers
    sys.argv = [str(program.__file__), *arguments]
    try:
        program.main(arguments)
    finally:
        atexit._run_exitfuncs()  # a process of multiprocessing does not
