"""Runs in processes that are forked from one that has imported what they use."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import NamedTuple

PROGRAM = "grpo_pl.__main__"
IMPORTED = (
    *(PROGRAM, "grpo_pl.commands.fit.running", "transformers.models.auto.modeling_auto"),
    *("transformers.modeling_utils", "transformers.models.llama.modeling_llama"),
    *("transformers.models.qwen2.modeling_qwen2", "matplotlib.backends.backend_agg"),
    *("matplotlib.backends.backend_svg", "PIL.JpegImagePlugin", "peft", "omegaconf"),
    *("huggingface_hub.hf_file_system", "transformers.tokenization_utils_sentencepiece"),
)
"""Modules that most runs import, some of them by libraries; a run imports the rest itself."""
POLL_S = 0.01


class Request(NamedTuple):
    """A command to run."""

    arguments: list[str]
    log: Path
    """The file to which its output is appended."""
    environment: Mapping[str, str]
    """All its variables."""
    folder: Path
    """Its working directory."""
    path: list[str]
    """Its `sys.path`."""


class Ended(NamedTuple):
    """A process that has ended."""

    pid: int
    code: int
    """Below 0 for a signal."""


class ForkServer:
    """Starts processes by forking one that has imported their modules; it ends with this process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._codes: dict[int, int | None] = {}
        """Process -> its exit code; None while it goes on."""

    def begin(self, more: Sequence[str] = ()) -> None:
        """Have it import `IMPORTED` and `more` modules, once, without waiting for it."""
        if self._process is not None:
            return
        self._connection, theirs = Pipe()
        program = [sys.executable, "-m", "grpo_pl.commands.ablate.fork_server", str(theirs.fileno())]
        self._process = subprocess.Popen(
            [*program, *IMPORTED, *more],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C reaches the command alone, which tells its runs
        )
        theirs.close()

    def fork(self, request: Request) -> int:
        """Start a process; returns its id."""
        self._listen()
        self.begin()
        self._connection.send(request)
        while isinstance(answer := self._connection.recv(), Ended):
            self._codes[answer.pid] = answer.code
        self._codes[answer] = None
        return int(answer)

    def code(self, pid: int) -> int | None:
        """The exit code of a process that it has started; None while that runs."""
        self._listen()
        return self._codes[pid]

    def wait(self, seconds: float) -> None:
        """Return when it reports something, such as the end of a process, or after so many seconds."""
        if self._process is None:
            time.sleep(seconds)
        else:
            self._connection.poll(seconds)

    def _listen(self) -> None:
        try:
            while self._process is not None and self._connection.poll():
                ended: Ended = self._connection.recv()
                self._codes[ended.pid] = ended.code
        except (EOFError, ConnectionResetError):  # it was killed, and with it all that it had started
            self._codes = {p: -signal.SIGKILL if code is None else code for p, code in self._codes.items()}
            self.__exit__()

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it, and with it all processes that it has started."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._connection.close()


class ForkedRun:
    """A command, as after `grpo_pl`, in a forked process with a session of its own."""

    def __init__(
        self, server: ForkServer, arguments: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        self._server = server
        self.pid = server.fork(Request(list(arguments), log, dict(environment), Path.cwd(), list(sys.path)))

    @property
    def code(self) -> int | None:
        """Its exit code, below 0 for a signal; None while it runs."""
        return self._server.code(self.pid)

    def wait(self) -> None:
        """Return when it has ended."""
        while self.code is None:
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Have it save at the end of its iteration."""
        if self.code is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it with all processes of its group, and wait until it is gone."""
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()
