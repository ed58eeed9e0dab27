"""Runs that are under way in a process group of their own, to be sent signals."""

import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from helpers.commands import PATHS
from helpers.rank_runs import forked, write_to
from helpers.repository import ROOT

from grpo_pl.__main__ import main


class Started(ABC):
    """A command of grpo_pl that is under way, and the file of what it says."""

    pid: int

    def __init__(self, output: Path) -> None:
        self.output = output

    @abstractmethod
    def code(self) -> int | None:
        """The exit code of a process that has ended."""

    @abstractmethod
    def wait(self, seconds: float) -> int | None:
        """The exit code, when all that it has started has ended too."""

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def kill(self) -> None:
        """End it with its process group, if it has not ended."""
        if self.code() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait(60)


class CommandLine(Started):
    """Started by `python -m grpo_pl`."""

    def __init__(self, words: Sequence[str], output: Path) -> None:
        super().__init__(output)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "grpo_pl", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS},
        )
        assert self._process.stdout is not None
        self._said = self._process.stdout
        self.pid = self._process.pid

    def code(self) -> int | None:
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        if not self._said.closed:
            self.output.write_bytes(self._process.communicate(timeout=seconds)[0])
        return self._process.returncode


class Forked(Started):
    """Forked from a process that has imported everything."""

    def __init__(self, words: Sequence[str], output: Path) -> None:
        super().__init__(output)
        self._process = forked().Process(target=lead_a_group, args=(list(words), output))
        self._process.start()
        self.pid = self._process.pid

    def code(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def wait(self, seconds: float) -> int | None:
        self._process.join(seconds)
        return self.code()


def lead_a_group(words: list[str], output: Path) -> None:
    os.setpgid(0, 0)
    write_to(output)
    main(words)
