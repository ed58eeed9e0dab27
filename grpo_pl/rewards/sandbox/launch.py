"""The process that stands between a worker and a program: it builds the box and waits until it is empty."""

import json
import os
import resource
import select
import signal
import sys
from typing import Any, NoReturn

from grpo_pl.rewards.sandbox import landlock, namespaces, seccomp
from grpo_pl.rewards.sandbox.kernel import hide, prctl

_MAX_THREADS, _MAX_OPEN_FILES = 64, 64
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_CAPABILITIES = 64
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # all of it; without this, sets have another order in each run


def main(order: int, trouble: int, parent: int) -> NoReturn:
    """Run a program in a box and exit as it does, or with 1 when its time is up.

    When this returns, no process of the program is left.

    Args:
        order: Descriptor of the JSON that says what to run, see `box.Box`.
        trouble: Descriptor that takes the reason where the box cannot be built.
        parent: Process that this one dies with.
    """
    with os.fdopen(order) as file:
        asked = json.load(file)
    os.set_inheritable(trouble, False)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    try:
        _prepare(asked)
        alive, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(theirs)
            _die_with_launcher(alive)
            if asked["isolation"] == "namespaces":
                _as_first_process(asked)
            else:
                _execute(asked)
    except OSError as error:
        os.write(trouble, str(error).encode())
        os._exit(1)
    for end in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(end, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, asked["timeout_s"])
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)


def _prepare(asked: dict[str, Any]) -> None:
    """Go where the program will run, and lay its files there."""
    if asked["isolation"] == "namespaces":
        namespaces.enter(asked["readable"], asked["disk_bytes"])
    else:
        os.chdir(asked["folder"])
    for name, text in asked["files"].items():
        with open(name, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)


def _die_with_launcher(alive: int) -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([alive], [], [], 0)[0]:
        os._exit(1)
    os.close(alive)


def _as_first_process(asked: dict[str, Any]) -> NoReturn:
    """Wait for the program as process 1: the kernel kills whatever the program leaves when this one ends."""
    hide()
    child = os.fork()
    if child == 0:
        namespaces.become_nobody()
        _execute(asked)
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _execute(asked: dict[str, Any]) -> NoReturn:
    """Become the program, under all limits."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for capability in range(_CAPABILITIES):
        try:
            prctl(_PR_CAPBSET_DROP, capability)
        except OSError:  # no such capability, or not root
            break
    inside = asked["isolation"] == "namespaces"
    if not inside:
        landlock.restrict([*asked["readable"], asked["folder"]], ["/dev/null"])
    limits = {
        resource.RLIMIT_CPU: int(asked["timeout_s"]) + 1,
        resource.RLIMIT_AS: asked["memory_bytes"],
        resource.RLIMIT_FSIZE: asked["disk_bytes"],
        resource.RLIMIT_NOFILE: _MAX_OPEN_FILES,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_CORE: 0,
    }
    if inside:
        limits[resource.RLIMIT_NPROC] = _MAX_THREADS
    for which, most in limits.items():
        resource.setrlimit(which, (most, most))
    seccomp.install(threads=inside)
    interpreter, *arguments = asked["command"]
    os.execve(interpreter, [interpreter, *arguments], _ENVIRONMENT)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
