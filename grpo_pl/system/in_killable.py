"""What runs inside a `KillableProcess`, below the code that may not be trusted. Imports nothing heavy."""

import fcntl
import json
import os
import pickle
import resource
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO

_MAX_MESSAGE_CHARS = 500


def requests(incoming: BinaryIO) -> Iterator[Any]:
    """Unpickle one request after the other until the parent closes their pipe."""
    with suppress(EOFError, ConnectionResetError):
        while True:
            yield pickle.load(incoming)


def answer(call: Callable[[], Any]) -> str:
    """The result or the error of a call, as a line of JSON."""
    try:
        return json.dumps({"value": call()}, default=_plain)
    except MemoryError:
        os._exit(1)  # the heap may be damaged
    except Exception as error:  # noqa: BLE001 - it is the user's code and may raise anything
        return json.dumps({"error": f"{type(error).__name__}: {error}"[:_MAX_MESSAGE_CHARS]})


def _plain(value: Any) -> Any:
    """The numbers of an array or a tensor, or a single one."""
    try:
        return list(value)
    except TypeError:
        return float(value)


def die_with_parent(lifeline: int) -> None:
    """Have the kernel kill this process and its group when the last writer of a pipe is gone.

    The process leads its group. PR_SET_PDEATHSIG would fire when the *thread* that started the process ends,
    and would spare its children.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    if select.select([lifeline], [], [], 0)[0]:
        sys.exit("its parent is gone")


def limit_memory(further_bytes: int) -> None:
    """Limit the address space to what this process holds now and so much more."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        limit = int(statm.read().split()[0]) * resource.getpagesize() + further_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
