"""The process that has loaded the environment and is forked for each episode. Imports nothing heavy."""

import os
import pickle
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from grpo_pl.environments.base import Environment
from grpo_pl.system.in_killable import answer, die_with_parent, limit_memory, requests
from grpo_pl.types import Prompt, Turn

Children = dict[int, tuple[int, str]]
"""Number of the episode -> its process and its folder for temporary files."""


def main(lifeline: int, orders: int, prototype: int, memory_bytes: str) -> None:
    """Obey orders until their socket is closed: `fork N`, with the socket of episode N, and `kill N`.

    Args:
        lifeline: Descriptor of a pipe that the trainer holds open as long as it lives.
        orders: Descriptor of the socket of orders; a line of JSON in it says that the environment is loaded.
        prototype: Descriptor of a file with the pickled environment.
        memory_bytes: Address space of an episode, beside what this process holds.
    """
    die_with_parent(lifeline)
    loaded: list[Environment] = []
    children: Children = {}
    with socket.socket(fileno=orders) as trainer:
        with open(prototype, "rb") as file:
            trainer.send(answer(lambda: loaded.append(pickle.load(file))).encode())
        ended, note = os.pipe2(os.O_NONBLOCK)
        signal.set_wakeup_fd(note)  # a handler that reaped could be interrupted by itself
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            if ended in select.select([trainer.fileno(), ended], [], [])[0]:
                os.read(ended, 4096)
                _reap(children)
                continue
            order, descriptors, _, _ = socket.recv_fds(trainer, 64, 1)
            match order.split():
                case [b"fork", number]:
                    with suppress(OSError):  # no room for a process: the trainer reads a crash
                        folder = tempfile.mkdtemp()
                        if (pid := _fork()) == 0:
                            signal.set_wakeup_fd(-1)
                            trainer.close()
                            os.close(ended)
                            os.close(note)
                            _play(loaded[0], descriptors[0], lifeline, int(memory_bytes), folder)
                        children[int(number)] = pid, folder
                    os.close(descriptors[0])
                case [b"kill", number] if int(number) in children:
                    _kill(children[int(number)][0])
                case []:
                    return


def _fork() -> int:
    """Fork a process that leads a group; gives 0 in it, its number here."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    with suppress(OSError):  # done in both, so that it is done when either goes on
        os.setpgid(pid, pid)
    return pid


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _reap(children: Children) -> None:
    """Forget the processes that have ended, kill what they have started, and remove their files."""
    for number, (pid, folder) in list(children.items()):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            _kill(pid)  # before the wait, which frees its number for others
            os.waitpid(pid, 0)
            del children[number]
            try:
                os.rmdir(folder)
            except OSError:
                subprocess.Popen(["rm", "-rf", folder])  # may take long, and episodes wait for this process


def _play(environment: Environment, channel: int, lifeline: int, memory_bytes: int, folder: str) -> NoReturn:
    """Be the process of an episode: answer pickled requests with lines of JSON until `close`."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent(os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY | os.O_NONBLOCK))  # it has one owner
        os.close(lifeline)
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        limit_memory(memory_bytes)
        calls: dict[str, Callable[..., Any]] = {"reset": _reset, "step": _step, "close": _close}
        with open(channel, "rb") as incoming, open(channel, "w", encoding="ascii", closefd=False) as outgoing:
            for method, *arguments in requests(incoming):
                print(answer(partial(calls[method], environment, *arguments)), file=outgoing, flush=True)
    except Exception:  # noqa: BLE001 - data that cannot be unpickled here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(0)


def _reset(environment: Environment, prompt: Prompt, seed: int) -> dict[str, Any]:
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    return _fields(environment.reset(prompt, seed))


def _step(environment: Environment, said: Any) -> dict[str, Any]:
    return _fields(environment.step(said))


def _fields(turn: Turn) -> dict[str, Any]:
    if not isinstance(turn, Turn):
        raise TypeError(f"expected a Turn, got {turn!r:.80}")
    return vars(turn)


def _close(environment: Environment, timeout_s: float) -> None:
    """The last call; nobody awaits its end."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        environment.close()
    except Exception:  # noqa: BLE001 - the user's code may raise anything
        traceback.print_exc()
    raise SystemExit
