"""A sandbox for untrusted Python programs."""

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
    """The kernel does not grant the sandbox."""


@dataclass(frozen=True)
class Box:
    """The limits of one program.

    Args:
        isolation: What separates it from the machine, see `CodeTests`.
        memory_bytes: Its address space.
        disk_bytes: The most that it may write: to its folder (`namespaces`), or to one file.
    """

    isolation: Isolation
    memory_bytes: int
    disk_bytes: int


class Program:
    """A Python program that runs in a sandbox, without the environment and in a temporary folder.

    The folder holds `files`, name -> text. `main.py` is run, and killed after `timeout_s` seconds of
    wall-clock or of CPU time.
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
        self._resources = ExitStack()
        folder = ""
        if box.isolation != "namespaces":  # these have a file system of their own
            folder = self._resources.enter_context(tempfile.TemporaryDirectory(prefix="grpo_pl-"))
        interpreter = os.path.realpath(sys.executable)
        command = [interpreter, "-P", "-s", "-S", "-X", "utf8", "main.py"]
        readable = [path for path in (*_LIBRARIES, sys.base_prefix) if os.path.exists(path)]
        request = asdict(box) | {"command": command, "files": dict(files), "folder": folder}
        request |= {"readable": readable, "timeout_s": timeout_s}
        order = os.memfd_create("order")
        self._resources.callback(os.close, order)
        os.write(order, json.dumps(request).encode())
        os.lseek(order, 0, os.SEEK_SET)
        self._trouble, trouble = os.pipe()
        self._resources.callback(os.close, self._trouble)
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
        """Whether the program exits with 0; waits until none of its processes is left.

        SandboxError if it never began.
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
        self._resources.close()


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
