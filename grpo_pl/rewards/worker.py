"""The inside of a worker process: it computes one call after the other. Imports nothing heavy."""

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
from typing import Any, BinaryIO

_MAX_MESSAGE_CHARS = 500


def main(calls: int, replies: int, lifeline: int, memory_bytes: int, module: str) -> None:
    """Answer the pickled calls that come in by one pipe with lines of JSON by another, until the first ends.

    Args:
        calls: Descriptor of the pipe that calls come by.
        replies: Descriptor of the pipe that replies leave by; the first says that the worker is ready.
        lifeline: Descriptor of a pipe that the parent holds open for as long as it lives.
        memory_bytes: What calls may take on top of the address space that `module` needs.
        module: What is imported before the worker is ready.
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
    """What the call returns or raises, as a line of JSON."""
    try:
        return json.dumps({"value": call()}, default=float)
    except MemoryError:
        os._exit(1)  # what else the heap holds now, nobody knows
    except Exception as error:  # noqa: BLE001 - rewards are the user's code and may raise anything
        return json.dumps({"error": f"{type(error).__name__}: {error}"[:_MAX_MESSAGE_CHARS]})


def _next_call(incoming: BinaryIO) -> Callable[[], Any] | None:
    try:
        call: Callable[[], Any] = pickle.load(incoming)
    except EOFError:
        return None
    return call


def _die_with_parent(lifeline: int) -> None:
    """Have the kernel kill this process when the last writer of a pipe is gone, whatever it is doing then.

    Unlike PR_SET_PDEATHSIG, which fires when the thread ends that started the process.
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
