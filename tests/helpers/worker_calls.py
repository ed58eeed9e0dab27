"""What tests of the pool compute in workers; imports nothing heavy, as a worker imports it."""

import os
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_seen: list[bytearray] = []


def double(number: float) -> float:
    return 2 * number


def slow_double(number: float, seconds: float) -> float:
    time.sleep(seconds)
    return 2 * number


def hang() -> None:
    while True:
        pass


def note_and_hang(path: str) -> None:
    with Path(path).open("a") as file:
        file.write("tried\n")
    hang()


def hang_in_c() -> int:
    """Holds the interpreter's lock, so that no thread and no Python signal handler could end it."""
    return 7 ** (10**9)


def ignore_all_signals_and_sleep() -> None:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    time.sleep(600)


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    raise SystemExit(0)


def fail(message: str) -> None:
    raise ZeroDivisionError(message)


def allocate(mib: int) -> int:
    return len(bytearray(mib * 2**20))


def hoard(mib: int) -> int:
    """Takes memory and never gives it back."""
    _seen.append(bytearray(mib * 2**20))
    return len(_seen)


def start_a_child_and_hang(note: str) -> None:
    Path(note).write_text(str(subprocess.Popen(["sleep", "600"]).pid))
    hang()


def write_pid_and_hang(note: str) -> None:
    Path(note).write_text(str(os.getpid()))
    hang_in_c()


def die_the_first_time(note: str) -> float:
    """Crashes in a world without the file, which it leaves."""
    if not os.path.exists(note):
        Path(note).touch()
        kill_myself()
    return 1.0


def modules() -> list[str]:
    import sys

    return sorted(sys.modules)


def session() -> int:
    return os.getsid(0)


def plus_metadata(*, prompt: str, response: str, answer: str, metadata: dict[str, float]) -> float:
    return len(prompt) + len(response) + len(answer) + metadata["more"]


def nothing() -> None:
    pass


def hash_of(text: str) -> int:
    return hash(text)


def leave_a_file_and_hang(note: str) -> None:
    Path(note).write_text(tempfile.mkstemp()[1])
    hang()


def say(words: str) -> None:
    """Write to every pipe that is open here, among them that of the replies, and wait."""
    for descriptor in range(3, 300):
        with suppress(OSError):
            os.write(descriptor, words.encode())
    time.sleep(600)


def say_endlessly() -> None:
    """Fill every pipe that is open here with a line without end."""
    while True:
        for descriptor in range(3, 300):
            with suppress(OSError):
                os.write(descriptor, b"x" * 60000)


def trl(completions: list, answer: list[str], scale: float = 1.0, **_: object) -> list[float | None]:
    """A reward of TRL's signature, for chats and texts."""
    [completion], [gold] = completions, answer
    return [scale * (gold in completion) if completion else None]


class _Row:
    """As an array of NumPy: iterable, and JSON does not know it."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def __iter__(self):
        return iter(self.values)


def trl_array(completions: list, **_: object) -> _Row:
    return _Row(*(bool(text) for text in completions))


def verl(data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None) -> dict:
    right = ground_truth in solution_str
    return {"score": float(right), "acc": right, "source": data_source, "extra": extra_info}


def wrong(solution_str: str, ground_truth: str) -> dict[str, int]:
    return {"acc": len(solution_str + ground_truth) // 2}
