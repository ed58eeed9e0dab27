"""A box for Python programs that nobody trusts."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

from grpo_pl.rewards.sandbox import seccomp

Isolation = Literal["namespaces", "landlock"]
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[3])
_LAUNCH = """\
import sys
sys.path.append(sys.argv[1])
from grpo_pl.rewards.sandbox.launch import main
main(*map(int, sys.argv[2:]))"""
_LIBRARIES = "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"


class SandboxError(RuntimeError):
    """The kernel does not grant the box that was asked for."""


@dataclass(frozen=True)
class Box:
    """The limits of one program.

    Args:
        isolation: what keeps it from the machine, see `CodeTests`.
        memory_bytes: its address space.
        disk_bytes: what it may write: to its folder (`namespaces`), or to one file.
    """

    isolation: Isolation
    memory_bytes: int
    disk_bytes: int


class Program:
    """A Python program that runs in a box, without the environment and in a folder that is thrown away.

    Args:
        box: its limits.
        files: what lies in its folder: name -> text. `main.py` is run.
        stdin: where it reads from.
        stdout: where it writes to.
        stderr: where it complains to.
        timeout_s: it is killed after so many seconds on the clock, or of computing.
    """

    def __init__(
        self,
        box: Box,
        files: Mapping[str, str],
        *,
        stdin: int | IO[bytes],
        stdout: int | IO[bytes],
        stderr: int | IO[bytes] = subprocess.DEVNULL,
        timeout_s: float,
    ) -> None:
        self._left = ExitStack()
        folder = ""
        if box.isolation != "namespaces":  # there it is a file system of its own
            folder = self._left.enter_context(tempfile.TemporaryDirectory(prefix="grpo_pl-"))
        interpreter = os.path.realpath(sys.executable)
        command = [interpreter, "-P", "-s", "-S", "-X", "utf8", "main.py"]
        readable = [path for path in (*_LIBRARIES, sys.base_prefix) if os.path.exists(path)]
        asked = asdict(box) | {"command": command, "files": dict(files), "folder": folder}
        asked |= {"readable": readable, "timeout_s": timeout_s}
        order = os.memfd_create("order")
        self._left.callback(os.close, order)
        os.write(order, json.dumps(asked).encode())
        os.lseek(order, 0, os.SEEK_SET)
        self._trouble, trouble = os.pipe()
        self._left.callback(os.close, self._trouble)
        try:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", "-c", _LAUNCH, _PACKAGE_ROOT),
                    *map(str, (order, trouble, os.getpid())),
                ],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(order, trouble),
            )
        finally:
            os.close(trouble)

    def wait(self) -> bool:
        """Whether the program ended with exit code 0; none of its processes is left then.

        Raises:
            SandboxError: If it never began.
        """
        code = self._process.wait()
        if trouble := os.read(self._trouble, 1000):
            raise SandboxError(trouble.decode())
        return code == 0

    def __enter__(self) -> "Program":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        self._left.close()


def refusal(isolation: Isolation) -> str | None:
    """Why this machine does not grant the isolation; None if it does."""
    if not seccomp.is_known():
        return f"seccomp is not known on {platform.machine()}"
    box = Box(isolation, memory_bytes=2**29, disk_bytes=2**20)
    try:
        with Program(
            box, {"main.py": ""}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout_s=60.0
        ) as nothing:
            return None if nothing.wait() else "an empty program fails"
    except SandboxError as error:
        return str(error)
