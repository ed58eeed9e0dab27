"""A progress line for long work."""

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
    """Write the text of `says` and the seconds so far, while the body runs.

    A terminal shows one moving line; elsewhere there is a line every 30 s. It goes to the file descriptor as
    it was at the beginning, even if the body captures output.
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
    """Write a line at intervals until `over` is set."""
    began, terminal = time.monotonic(), out.isatty()
    while not over.wait(TERMINAL_S if terminal else LOG_S):
        line = f"{says()}, {time.monotonic() - began:.0f} s"
        out.write(f"{CLEAR}{line}" if terminal else f"{line}\n")
        out.flush()
