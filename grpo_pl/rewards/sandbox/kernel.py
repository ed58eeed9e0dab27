"""Calls of libc that Python does not offer."""

import ctypes
import os
import signal

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


def call(name: str, *arguments: object) -> int:
    """The result of a function of libc; OSError if it is below 0."""
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process; the options are those of linux/prctl.h."""
    call("prctl", option, ctypes.c_ulong(value), 0, 0, 0)


def hide() -> None:
    """Let no process of the same user trace this one or read its memory."""
    prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent() -> None:
    """End this process by SIGKILL when the thread that started it ends."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
