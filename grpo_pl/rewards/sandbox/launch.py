"""The process between a worker and a program: it builds the sandbox and waits until that is empty."""

import json
import os
import resource
import select
import signal
from typing import Any, NoReturn

from grpo_pl.rewards.sandbox import landlock, namespaces, seccomp
from grpo_pl.rewards.sandbox.kernel import die_with_parent, hide, prctl

_MAX_THREADS, _MAX_OPEN_FILES = 64, 64
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITIES = 64
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # nothing else; without it sets have another order in each run


def main(order: int, trouble: int, parent: int) -> NoReturn:
    """Run a program in a sandbox and exit as it does, not with 0 when its time is up.

    At the end no process of the program is left.

    Args:
        order: Descriptor of the JSON that `box.Program` writes.
        trouble: Descriptor for the reason if the sandbox cannot be built.
        parent: Process that this one dies with.
    """
    with os.fdopen(order) as file:
        request = json.load(file)
    os.set_inheritable(trouble, False)
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    try:
        _prepare(request)
        alive, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(theirs)
            _die_with_launcher(alive)
            if request["isolation"] == "namespaces":
                _as_first_process(request)
            else:
                _execute(request)
    except OSError as error:
        os.write(trouble, str(error).encode())
        os._exit(1)
    for end in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(end, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, request["timeout_s"])
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)


def _prepare(request: dict[str, Any]) -> None:
    """Change to the program's folder, and write its files."""
    if request["isolation"] == "namespaces":
        namespaces.enter(request["readable"], request["disk_bytes"])
    else:
        os.chdir(request["folder"])
    for name, text in request["files"].items():
        with open(name, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)


def _die_with_launcher(alive: int) -> None:
    die_with_parent()
    if select.select([alive], [], [], 0)[0]:
        os._exit(1)
    os.close(alive)


def _as_first_process(request: dict[str, Any]) -> NoReturn:
    """Wait for the program as process 1: when that ends, the kernel kills what the program left running."""
    hide()
    child = os.fork()
    if child == 0:
        namespaces.become_nobody()
        _execute(request)
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _execute(request: dict[str, Any]) -> NoReturn:
    """Become the program, under all limits."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for capability in range(_CAPABILITIES):
        try:
            prctl(_PR_CAPBSET_DROP, capability)
        except OSError:  # no such capability, or not root
            break
    inside = request["isolation"] == "namespaces"
    if not inside:
        landlock.restrict([*request["readable"], request["folder"]], ["/dev/null"])
    limits = {
        resource.RLIMIT_CPU: int(request["timeout_s"]) + 1,
        resource.RLIMIT_AS: request["memory_bytes"],
        resource.RLIMIT_FSIZE: request["disk_bytes"],
        resource.RLIMIT_NOFILE: _MAX_OPEN_FILES,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_CORE: 0,
    }
    if inside:
        limits[resource.RLIMIT_NPROC] = _MAX_THREADS
    for which, most in limits.items():
        resource.setrlimit(which, (most, most))
    seccomp.install(threads=inside)
    interpreter, *arguments = request["command"]
    os.execve(interpreter, [interpreter, *arguments], _ENVIRONMENT)
