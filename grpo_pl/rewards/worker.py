"""A worker process's own code: it computes one call after the other. Imports nothing heavy."""

import fcntl
import importlib
import json
import os
import pickle
import resource
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, cast

_MAX_MESSAGE_CHARS = 500


def main(calls: int, replies: int, lifeline: int, memory_bytes: int, module: str) -> None:
    """Answer pickled calls from one pipe with lines of JSON in another, until the first is closed.

    Args:
        calls: Descriptor of the pipe of calls.
        replies: Descriptor of the pipe of replies; the first says that the worker is ready.
        lifeline: Descriptor of a pipe that the parent holds open as long as it lives.
        memory_bytes: Address space for calls, beside what `module` needs.
        module: Imported before the worker is ready.
    """
    _die_with_parent(lifeline)
    with open(calls, "rb") as incoming, open(replies, "w", encoding="ascii") as outgoing:
        ready = _answer(lambda: importlib.import_module(module) and None)
        limit = _address_space() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        print(ready, file=outgoing, flush=True)
        while (call := _next_call(incoming)) is not None:
            print(_answer(call), file=outgoing, flush=True)


def _answer(call: Callable[[], Any]) -> str:
    """The result or the error of a call, as a line of JSON."""
    try:
        return json.dumps({"value": call()}, default=_plain)
    except MemoryError:
        os._exit(1)  # the heap may be damaged
    except Exception as error:  # noqa: BLE001 - rewards are the user's code and may raise anything
        return json.dumps({"error": f"{type(error).__name__}: {error}"[:_MAX_MESSAGE_CHARS]})


def _plain(value: Any) -> Any:
    """The numbers of an array or a tensor, or a single one."""
    try:
        return list(value)
    except TypeError:
        return float(value)


def _next_call(incoming: BinaryIO) -> Callable[[], Any] | None:
    try:
        return cast(Callable[[], Any], pickle.load(incoming))
    except EOFError:
        return None


def _die_with_parent(lifeline: int) -> None:
    """Have the kernel kill this process when the last writer of a pipe is gone, whatever it is doing then.

    PR_SET_PDEATHSIG would fire when the *thread* that started the process ends.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    if select.select([lifeline], [], [], 0)[0]:
        sys.exit("its parent is gone")


def _address_space() -> int:
    """Bytes of address space that this process holds."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()
