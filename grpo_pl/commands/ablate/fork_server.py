"""The process that runs are forked from: it imports their modules and does nothing else.

A child of a process that has been through a parallel region of OpenMP hangs in its own first one, and CUDA
knows no forks at all.
"""

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection, wait
from typing import NoReturn

from grpo_pl.commands.ablate.forked import PROGRAM, Ended, Request
from grpo_pl.rewards.sandbox.kernel import die_with_parent
from grpo_pl.system.output import captured_output, tame_logs


def main(descriptor: int, modules: Iterable[str]) -> None:
    """Import modules and fork for each request of a connection, by its descriptor; a child runs the command.

    A module that cannot be imported is left to the run that needs it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # where SLURM tells every process, runs save
    tame_logs()  # libraries read their log level when they are imported
    with captured_output():
        for module in modules:
            with suppress(ImportError):
                import_module(module)
    gc.collect()
    gc.freeze()  # or each child's collections would copy the pages of all modules
    request = serve(Connection(descriptor))
    if request is not None:
        run(request)


def serve(connection: Connection) -> Request | None:
    """Fork until the connection ends, and report children that have ended; in a child, return its request."""
    children: dict[int, int] = {}  # descriptor -> process
    while True:
        for ready in wait([connection, *children]):
            if isinstance(ready, int):
                _, status = os.waitpid(children[ready], 0)
                connection.send(Ended(children.pop(ready), os.waitstatus_to_exitcode(status)))
                os.close(ready)
                continue
            try:
                request: Request = connection.recv()
            except EOFError:
                return None
            pid = os.fork()
            if pid == 0:
                for descriptor in children:
                    os.close(descriptor)
                connection.close()
                return request
            children[os.pidfd_open(pid)] = pid
            connection.send(pid)


def run(request: Request) -> None:
    """Run a command in this process as if that command line had started it."""
    os.setsid()
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    with request.log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    sys.path[:] = request.path
    if threads := os.environ.get("OMP_NUM_THREADS"):  # OpenMP has read what the parent was started with
        import torch

        torch.set_num_threads(int(threads))
    program = import_module(PROGRAM)
    sys.modules["__main__"] = program  # by its name Lightning and multiprocessing start further processes
    sys.argv = [str(program.__file__), *request.arguments]
    leave(exit_code(lambda: program.main(request.arguments)))


def exit_code(program: Callable[[], None]) -> int:
    """Run a program; returns the exit code that Python would give it."""
    try:
        program()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001 - as Python does with what nobody has caught
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def leave(code: int) -> NoReturn:
    """End the process as multiprocessing ends its own: without tearing down what all children share."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
