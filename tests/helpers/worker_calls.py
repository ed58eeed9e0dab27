"""What tests of the pool compute in workers; imports nothing heavy, as a worker imports it.

Where the pool fails to end a call, the call harms nobody: it ends by itself after about a minute, takes at
most 3 GiB, and starts at most two processes.
"""

import mmap
import os
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

A_MINUTE = 60
_seen: list[bytearray] = []


def double(number: float) -> float:
    return 2 * number


def slow_double(number: float, seconds: float) -> float:
    time.sleep(seconds)
    return 2 * number


def hang() -> None:
    end = time.monotonic() + A_MINUTE
    while time.monotonic() < end:
        pass


def note_and_hang(path: str) -> None:
    with Path(path).open("a") as file:
        file.write("tried\n")
    hang()


def hang_in_c() -> int:
    """Holds the interpreter's lock, so that no thread and no Python signal handler could end it."""
    return sum(range(2 * 10**9))


def ignore_all_signals_and_sleep() -> None:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    time.sleep(A_MINUTE)


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
    """The child notes when it has come to its own end."""
    child = subprocess.Popen(["sh", "-c", f'sleep {A_MINUTE}; echo ended > "$0"', f"{note}.end"])
    Path(note).write_text(str(child.pid))
    hang()


def write_pid_and_hang(note: str) -> None:
    """Notes when it has come to its own end."""
    Path(note).write_text(str(os.getpid()))
    hang_in_c()
    Path(f"{note}.end").write_text("ended")


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
    time.sleep(A_MINUTE)


def say_much() -> None:
    """Fill every pipe that is open here with a line of 72 MB."""
    for _ in range(1200):
        for descriptor in range(3, 300):
            with suppress(OSError):
                os.write(descriptor, b"x" * 60000)


def take_as_text() -> int:
    return len("x" * (3 * 2**30))


def take_in_pieces() -> int:
    return sum(map(len, [bytearray(2**24) for _ in range(192)]))


def map_memory() -> int:
    with mmap.mmap(-1, 3 * 2**30) as memory:
        return len(memory)


def recurse(depth: int = 10**5) -> int:
    return depth and recurse(depth - 1)


def sleep_in_a_thread() -> None:
    thread = threading.Thread(target=time.sleep, args=(A_MINUTE,))
    thread.start()
    thread.join()


def wait_for_a_child() -> None:
    subprocess.run(["sleep", str(A_MINUTE)], check=True)


def leave_a_child_behind() -> float:
    subprocess.Popen(["sleep", str(A_MINUTE)])
    return 1.0


def read_what_never_comes() -> bytes:
    signal.alarm(A_MINUTE)
    return os.read(os.pipe()[0], 1)


def leave_at_once(code: int) -> None:
    os._exit(code)


def get_signal(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(A_MINUTE)


def end_all_calls() -> None:
    raise KeyboardInterrupt


class WordlessError(Exception):
    """Its message raises."""

    def __str__(self) -> str:
        raise ValueError("no words")


def fail_without_words() -> None:
    raise WordlessError


def print_rubbish() -> float:
    for descriptor in (1, 2):
        os.write(descriptor, bytes(range(256)) + b'{"value": 7}\n')
    return 1.0


def close_all_files() -> float:
    os.closerange(0, 300)
    return 1.0


def give_text(characters: int) -> str:
    return "x" * characters


def give_what_json_lacks() -> object:
    return object()


def give_a_deep_list() -> list:
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    return deep


def give_a_circle() -> list:
    circle: list = []
    circle.append(circle)
    return circle


def fork() -> float:
    """The other process comes back from the fork as well, and leaves."""
    if os.fork() == 0:
        os._exit(0)
    return 1.0


def move_away() -> float:
    os.chdir("/")
    return 1.0


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
