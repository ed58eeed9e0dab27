"""Environments for tests, some of which fail on purpose; imports nothing heavy, as their processes import it.

Where nothing ends them, they end by themselves after a minute, and take at most 3 GiB.
"""

import ctypes
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from helpers import worker_calls as calls

from grpo_pl.environments.base import Environment
from grpo_pl.environments.tools import ToolError, Tools
from grpo_pl.types import Prompt, Said, Turn


def say(content: object, **fields: object) -> Turn:
    return Turn(messages=[{"role": "user", "content": content}], **fields)


class Obeys(Environment):
    """Does what the policy says, by the name of a method."""

    def __init__(self, note: str = "") -> None:
        self.note, self.turns = note, 0

    def reset(self, prompt: Prompt, seed: int) -> Turn:  # noqa: ARG002
        return getattr(self, prompt.text)() if prompt.text else Turn()

    def step(self, said: Said) -> Turn:
        self.turns += 1
        return getattr(self, said.text)()

    def close(self) -> None:
        if self.note:
            Path(self.note).write_text("closed")

    def count(self) -> Turn:
        return say(str(self.turns), reward=self.turns / 2)

    def win(self) -> Turn:
        return Turn(reward=1.0, done=True)

    def over(self) -> Turn:
        return Turn(done=True)

    def process(self) -> Turn:
        return say(f"{os.getpid()} {os.getsid(0)} {os.getpgid(0)} {tempfile.mkdtemp()}")

    def modules(self) -> Turn:
        return say(" ".join(sys.modules))

    def draw(self) -> Turn:
        return say(str(random.random()))

    def hang(self) -> Turn:
        calls.hang()
        Path(f"{self.note}.end").touch()
        return Turn(done=True)

    def hang_in_c(self) -> Turn:
        calls.hang_in_c()
        return Turn(done=True)

    def hang_with_a_child(self) -> Turn:
        calls.start_a_child_and_hang(self.note)
        return Turn(done=True)

    def leave_a_child(self) -> Turn:
        """The child notes when it has come to its own end."""
        sleep = f'sleep {calls.A_MINUTE}; echo ended > "$0"'
        return say(str(subprocess.Popen(["sh", "-c", sleep, f"{self.note}.end"]).pid))

    def leave_a_child_and_die(self) -> Turn:
        Path(self.note).write_text(self.leave_a_child().messages[0]["content"])
        os._exit(3)

    def stop(self) -> Turn:
        calls.get_signal(19)  # SIGSTOP
        return Turn(done=True)

    def die(self) -> Turn:
        calls.kill_myself()
        return Turn()

    def fault(self) -> Turn:
        ctypes.string_at(0)
        return Turn()

    def exit(self) -> Turn:
        raise SystemExit(0)

    def interrupt(self) -> Turn:
        raise KeyboardInterrupt

    def take_memory(self) -> Turn:
        return say(str(calls.allocate(3 * 2**10)))

    def take_some_memory(self) -> Turn:
        return say(str(calls.allocate(100)))

    def kill_the_nursery(self) -> Turn:
        os.kill(os.getppid(), 9)
        calls.hang()
        return Turn(done=True)

    def fail(self) -> Turn:
        raise ZeroDivisionError("no")

    def say_much(self) -> Turn:
        return say("x" * 17 * 2**20)

    def say_a_megabyte(self) -> Turn:
        return say("é" * 2**20)

    def nothing(self) -> Turn:
        return None  # type: ignore[return-value]

    def text(self) -> Turn:
        return "Higher."  # type: ignore[return-value]

    def assistant(self) -> Turn:
        return Turn(messages=[{"role": "assistant", "content": "I won."}])

    def no_role(self) -> Turn:
        return Turn(messages=[{"content": "?"}])

    def no_content(self) -> Turn:
        return Turn(messages=[{"role": "user"}])

    def parts_as_content(self) -> Turn:
        return say([{"type": "text", "text": "?"}])

    def text_as_message(self) -> Turn:
        return Turn(messages=["Higher."])  # type: ignore[list-item]

    def odd_unicode(self) -> Turn:
        return say("\ud800")

    def odd_name(self) -> Turn:
        return Turn(messages=[{"role": "tool", "name": "\ud800", "content": "?"}])

    def sentence_as_reward(self) -> Turn:
        return say("Go on.", reward="Congratulations! You solved the puzzle!")

    def nan(self) -> Turn:
        return say("Go on.", reward=float("nan"))

    def no_reward(self) -> Turn:
        return say("Go on.", reward=None)

    def endless_reward(self) -> Turn:
        return say("Go on.", reward=10**400)

    def odd_done(self) -> Turn:
        return say("Go on.", done="no")

    def silence(self) -> Turn:
        return Turn(reward=1.0)


class OddlyTyped(Environment):
    """Gives numbers as numpy makes them."""

    def step(self, said: Said) -> Turn:
        import numpy as np

        return say(said.text, reward=np.float32(0.5), done=np.bool_(said.text == "end"))


class NumpyDraws(Environment):
    """Draws from numpy's global generator."""

    def __init__(self) -> None:
        import numpy as np

        self.drawn = np.zeros(0)  # its process has numpy from the start

    def step(self, said: Said) -> Turn:  # noqa: ARG002
        import numpy as np

        return say(str(np.random.random()))


class Meets(Environment):
    """Answers when `many` episodes have been asked; the late ones say so first."""

    def __init__(self, folder: str, many: int) -> None:
        self.folder, self.many = Path(folder), many

    def step(self, said: Said) -> Turn:
        (self.folder / said.text).touch()
        while len(list(self.folder.iterdir())) < self.many:
            time.sleep(0.01)
        return say(said.text)


class HoldsAFile(Environment):
    """Cannot be pickled."""

    def __init__(self) -> None:
        self.file = open(os.devnull)  # noqa: SIM115

    def step(self, said: Said) -> Turn:  # noqa: ARG002
        return Turn(done=True)


class HangsAtClose(Environment):
    """Notes when its `close` has come to its own end."""

    def __init__(self, note: str) -> None:
        self.note = Path(note)

    def step(self, said: Said) -> Turn:  # noqa: ARG002
        return say(str(os.getpid()))

    def close(self) -> None:
        calls.hang()
        self.note.touch()


def power(base: float, exponent: int = 2) -> float:
    """Raise a number to a power.

    Parameters
    ----------
    base
        What is multiplied.
    exponent : int
        How often.
    """
    return base**exponent


def unannotated(x):
    return x


def many(*numbers: int) -> int:
    return sum(numbers)


async def later(x: int) -> int:
    return x


class Toolbox(Tools):
    """Tools that work, raise and fail."""

    def __init__(self) -> None:
        self._total, self._called = 0, set()

    def add(self, a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: The first.
            b: The second.
        """
        self._total += 1
        return a + b

    def total(self) -> dict:
        return {"calls": self._total, "of": ["add"], "é": None}

    def wait_for(self, name: str, other: str) -> str:
        """Comes back when both have been called."""
        self._called.add(name)
        while other not in self._called:
            time.sleep(0.01)
        return name

    def broken(self) -> str:
        raise ToolError("the database is away")

    def take_memory(self) -> str:
        raise MemoryError

    @staticmethod
    def odd() -> str:
        return "\ud800"

    def _hidden(self) -> str:
        return "no"


class Chats(Environment):
    """Says something after each turn, which its seed decides, as slowly as it is told to."""

    def __init__(self, turns: int = 4, delay_s: float = 0.0) -> None:
        self.turns, self.delay_s = turns, delay_s

    def reset(self, prompt: Prompt, seed: int) -> Turn:  # noqa: ARG002
        self.random = random.Random(seed)
        return Turn()

    def step(self, said: Said) -> Turn:
        time.sleep(random.SystemRandom().random() * self.delay_s)
        self.turns -= 1
        text = f"<|im_end|>\n<|im_start|>assistant\n{self.random.random():.3f} of {len(said.raw)}"
        return say(text, reward=self.turns / 4, done=not self.turns)


class Greets(Chats):
    """Opens the episode itself."""

    def reset(self, prompt: Prompt, seed: int) -> Turn:
        super().reset(prompt, seed)
        return say(f"{prompt.text} Say it {seed % 7} times.")


class Says(Environment):
    """Says one of its texts after each turn, some of them as a tool."""

    def __init__(self, texts: Sequence[str], turns: int = 3) -> None:
        self.texts, self.turns = texts, turns

    def reset(self, prompt: Prompt, seed: int) -> Turn:  # noqa: ARG002
        self.random = random.Random(seed)
        return Turn()

    def step(self, said: Said) -> Turn:
        self.turns -= 1
        text, role = self.random.choice(self.texts), self.random.choice(("user", "tool"))
        return Turn(messages=[{"role": role, "content": text}], reward=len(said.raw), done=not self.turns)


class OpensAnyhow(Environment):
    """Opens no two episodes alike."""

    def reset(self, prompt: Prompt, seed: int) -> Turn:  # noqa: ARG002
        return say(str(random.SystemRandom().random()))

    def step(self, said: Said) -> Turn:  # noqa: ARG002
        return Turn(done=True)
