"""A progress line for something long."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

TERMINAL_S, LOG_S = 1.0, 30.0
"""Seconds between lines."""
CLEAR = "\r\033[K"


@contextmanager
def heartbeat(says: Callable[[], str], descriptor: int = 1) -> Iterator[None]:
    """Write what `says` gives, and for how long, while the body runs.

    In a terminal the seconds move; elsewhere there is a line every 30 s. It goes where the file descriptor
    leads at the beginning, whatever is captured in the body.
    """
    over = threading.Event()
    with os.fdopen(os.dup(descriptor), "w") as out:
        thread = threading.Thread(target=beat, args=(says, out, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            out.write(CLEAR if out.isatty() else "")


def beat(says: Callable[[], str], out: TextIO, over: threading.Event) -> None:
    """Write a line again and again until it is over."""
    began, terminal = time.monotonic(), out.isatty()
    while not over.wait(TERMINAL_S if terminal else LOG_S):
        line = f"{says()}, {time.monotonic() - began:.0f} s"
        out.write(f"{CLEAR}{line}" if terminal else f"{line}\n")
        out.flush()
