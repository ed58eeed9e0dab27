"""A worker process's own code: it computes one call after the other. Imports nothing heavy."""

import importlib

from grpo_pl.system.in_killable import answer, die_with_parent, limit_memory, requests


def main(lifeline: int, calls: int, replies: int, memory_bytes: str, module: str) -> None:
    """Answer pickled calls from one pipe with lines of JSON in another, until the first is closed.

    Args:
        lifeline: Descriptor of a pipe that the parent holds open as long as it lives.
        calls: Descriptor of the pipe of calls.
        replies: Descriptor of the pipe of replies; the first says that the worker is ready.
        memory_bytes: Address space for calls, beside what `module` needs.
        module: Imported before the worker is ready.
    """
    die_with_parent(lifeline)
    with open(calls, "rb") as incoming, open(replies, "w", encoding="ascii") as outgoing:
        ready = answer(lambda: importlib.import_module(module) and None)
        limit_memory(int(memory_bytes))
        print(ready, file=outgoing, flush=True)
        for call in requests(incoming):
            print(answer(call), file=outgoing, flush=True)
