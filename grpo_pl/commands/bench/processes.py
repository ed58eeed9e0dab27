"""The parts of `bench` in processes of their own, one after the other or taking turns."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.status import Status

from grpo_pl.commands.bench import Numbers

DONE = "measured"
"""How the line begins with which a part ends an iteration."""


class Part:
    """A part, measured in a process that runs while it is waited for, and is stopped between iterations.

    Args:
        part: Its name in `grpo_pl.commands.bench.parts`.
        options: Options of `fit`.
        iterations: How many it measures.
        paths: Folders of packages before those of this process.
    """

    def __init__(self, part: str, options: Sequence[str], iterations: int, paths: Sequence[str] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory()
        here = Path(self._folder.name)
        self._result, self._log = here / "result.json", (here / "log").open("w+")
        program = [sys.executable, "-P", "-m", "grpo_pl.commands.bench.parts"]
        command = [*program, part, str(iterations), str(self._result), *options]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (*paths, *sys.path)))}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, env=environment, text=True
        )
        self._process.send_signal(signal.SIGSTOP)

    def __enter__(self) -> "Part":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
        self._folder.cleanup()

    def iterate(self) -> str:
        """Let it measure an iteration; returns what it says of it, or nothing if it has ended."""
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        for line in self._process.stdout:
            self._log.write(line)
            if line.startswith(DONE):
                self._process.send_signal(signal.SIGSTOP)  # before it begins the next one
                return line.strip()
        return ""

    def rows(self) -> list[Numbers]:
        """Its measurements of each iteration, once it has ended; its failure ends the command."""
        while self.iterate():
            pass
        if code := self._process.wait():
            self._log.flush()
            self._log.seek(0)
            text = self._log.read().strip()
            sys.stderr.write((text.splitlines()[-1] if code == 2 else text) + "\n")
            sys.exit(code)
        return json.loads(self._result.read_text())  # type: ignore[no-any-return]


class Bench:
    """Runs each part to its end and shows its progress."""

    def __init__(self, status: Status) -> None:
        self.status = status

    def __call__(
        self, part: str, label: str, options: list[str], iterations: int, path: str = ""
    ) -> list[Numbers]:
        """A part's measurements of each iteration; its failure ends the command."""
        with Part(part, options, iterations, [path]) as running:
            said = "starting"
            while said:
                self.status.update(f"{label}: {said}")
                said = running.iterate()
            return running.rows()

    def in_turns(
        self, part: str, labels: Sequence[str], paths: Sequence[str], options: list[str], iterations: int
    ) -> list[list[Numbers]]:
        """The same part by two builds of grpo_pl, in these folders: one runs at a time, an iteration each."""
        with (
            Part(part, options, iterations, [paths[0]]) as one,
            Part(part, options, iterations, [paths[1]]) as other,
        ):
            for _ in range(iterations):
                for label, running in zip(labels, (one, other), strict=True):
                    self.status.update(f"{label}: {running.iterate()}")
            return [one.rows(), other.rows()]
