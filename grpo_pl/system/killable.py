"""Processes for code that may hang, crash, take all memory or be taken over."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any

START_S = 120.0
"""The deadline of such a process's imports, in seconds; what it computes has a deadline of its own."""
_MAX_REPLY_BYTES = 1 << 24


class KillableProcess:
    """A Python process that dies with this one, however that ends, and takes its own children with it.

    It has a session and a folder for temporary files of its own.

    Args:
        main: Import path of the function that it runs. Its first argument is the lifeline, for
            `grpo_pl.system.in_killable.die_with_parent`; the others are `theirs` and `arguments`.
        theirs: Descriptors that it inherits; they are closed here.
        arguments: Further arguments, as text.
    """

    def __init__(self, main: str, theirs: Sequence[int], arguments: Sequence[str]) -> None:
        lifeline, self.lifeline = os.pipe()
        self.folder = TemporaryDirectory(prefix="grpo_pl-", ignore_cleanup_errors=True)
        module, _, function = main.rpartition(".")
        numbers, first = len(theirs) + 1, len(theirs) + len(arguments) + 2
        code = (
            f"import sys; sys.path[:] = sys.argv[{first}:]\nfrom {module} import {function}\n"
            f"{function}(*map(int, sys.argv[1:{numbers + 1}]), *sys.argv[{numbers + 1}:{first}])"
        )
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, str(lifeline), *map(str, theirs), *arguments, *sys.path],
                stdin=subprocess.DEVNULL,
                pass_fds=(lifeline, *theirs),
                env=os.environ
                | {"TMPDIR": self.folder.name, "PYTHONHASHSEED": "0"},  # else sets differ in order
                start_new_session=True,  # Ctrl-C in the terminal does not reach it
            )
        finally:
            for descriptor in (lifeline, *theirs):
                os.close(descriptor)

    def kill(self) -> None:
        """End the process and its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.lifeline)
        self.folder.cleanup()


class Replies:
    """Lines of JSON, `{"value": ...}` or `{"error": ...}`, from a process that may break the protocol."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self._received = descriptor, bytearray()

    def read(self) -> dict[str, Any] | None:
        """The next reply; None until it is complete.

        EOFError if the process has died or breaks the protocol: its code may have been taken over.
        """
        try:
            piece = os.read(self.descriptor, 1 << 16)
        except ConnectionResetError:  # a socket, with words to it that nobody has read
            piece = b""
        self._received += piece
        if not piece or len(self._received) > _MAX_REPLY_BYTES:
            raise EOFError
        if not self._received.endswith(b"\n"):
            return None
        line, self._received = self._received, bytearray()
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EOFError from error
        if not isinstance(reply, dict) or len(reply) != 1 or not reply.keys() <= {"value", "error"}:
            raise EOFError
        return reply
