"""Episodes in processes of their own: one that hangs, crashes or takes all memory costs itself alone."""

import json
import math
import os
import pickle
import re
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import wait
from typing import Any, Literal

from typing_extensions import override

from grpo_pl.environments.base import Environment
from grpo_pl.system.killable import START_S, KillableProcess, Replies
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Prompt, Said, Turn

_LARGEST_REWARD = 3.4e38
"""About the largest float32."""
_REST_S = 1.0
"""The longest wait for the rest of an answer that has begun to come, in seconds."""


@dataclass(frozen=True)
class Failure:
    """Why an episode cannot go on; its process is gone."""

    kind: Literal["timeout", "crash", "error"]
    """A call took too long; its process died or ran out of memory; it raised, or gave no valid Turn."""
    message: str = ""
    """Begins with the environment's name and the method's. Example: `Maze.step: ValueError: no such door`."""


class Sessions:
    """Plays many episodes of an environment at once: asks at any time, answers as they come.

    One process loads the environment from a pickle and is forked for each episode; it imports torch only if
    the environment does. An episode keeps its process, and what its object holds, until it ends. Everything
    dies with this process, however that ends. For one thread.

    Args:
        environment: A prototype, of a class that can be imported; each episode has a copy.
        timeout_s: Wall-clock limit of one `reset`, `step` or `close`, in seconds; then the process is killed.
        memory_gib: Memory of an episode, beside what its process holds at its start, in GiB.
        processes: Episodes open at once; others wait.
    """

    def __init__(
        self, environment: Environment, *, timeout_s: float, memory_gib: float, processes: int
    ) -> None:
        self.environment, self.timeout_s, self.processes = environment, timeout_s, processes
        self.memory_bytes = int(memory_gib * 2**30)
        self._waiting: dict[int, tuple[Prompt, int]] = {}
        self._open: dict[int, _Episode] = {}
        self._numbers = count()
        self._nursery = _Nursery(environment, self.memory_bytes)

    def reset(self, key: int, prompt: Prompt, seed: int) -> None:
        """Open an episode, as soon as there is room; `key` is of none that is open."""
        assert key not in self._open
        assert key not in self._waiting
        self._waiting[key] = prompt, seed
        self._start()

    def step(self, key: int, said: Said) -> None:
        """Ask for the answer to what the policy has said; all before has been answered."""
        episode = self._open[key]
        assert not episode.method
        episode.ask("step", self.timeout_s, said)

    def answers(self, patience_s: float) -> list[tuple[int, Turn | Failure]]:
        """What has come, by key; waits at most so long for the first, and not at all if nothing is asked.

        An episode that has failed is not open any more.
        """
        until = time.monotonic() + patience_s
        while True:
            self._start()
            asked = {episode.channel: key for key, episode in self._open.items() if episode.method}
            if not asked:
                return []
            soonest = min(until, *(self._open[key].deadline for key in asked.values()))
            ready = wait([*asked, self._nursery.orders], max(0.0, soonest - time.monotonic()))
            answers = [(key, self._answer(key, channel in ready)) for channel, key in asked.items()]
            found = [(key, answer) for key, answer in answers if answer is not None]
            if found or time.monotonic() >= until:
                return found

    def end(self, key: int) -> None:
        """End an episode that is open, waits or has failed; its `close` runs on, at most for `timeout_s`.

        Of an episode that owes an answer the process is killed, and the answer never comes.
        """
        self._waiting.pop(key, None)
        if (episode := self._open.get(key)) and not episode.method:
            episode.ask("close", self.timeout_s, self.timeout_s)
            self._open.pop(key).channel.close()
        elif episode:
            self._kill(key)
        self._start()

    def close(self) -> None:
        """Kill all processes."""
        self._waiting.clear()
        for key in list(self._open):
            self._kill(key)
        self._nursery.kill()

    def _start(self) -> None:
        """Start episodes that wait while there is room, and the nursery if it has died, with its episodes."""
        if wait([self._nursery.orders], 0):  # it says nothing: that is its end
            self._nursery.kill()
            self._nursery = _Nursery(self.environment, self.memory_bytes)
        while self._waiting and len(self._open) < self.processes:
            key = next(iter(self._waiting))
            prompt, seed = self._waiting.pop(key)
            self._open[key] = episode = _Episode(next(self._numbers), self._nursery)
            episode.ask("reset", self.timeout_s, prompt, seed)

    def _answer(self, key: int, ready: bool) -> Turn | Failure | None:
        """The answer of an episode that was asked, None if it has not come; a failed episode is killed."""
        episode = self._open[key]
        call = f"{type(self.environment).__name__}.{episode.method}"
        try:
            reply, until = None, time.monotonic() + _REST_S
            while ready and reply is None:  # a long one comes in pieces, and nobody may have looked till now
                reply = episode.replies.read()
                ready = not reply and bool(wait([episode.channel], max(0.0, until - time.monotonic())))
        except EOFError:
            self._kill(key)
            return Failure("crash", f"{call}: its process died or ran out of memory")
        if reply is None:
            if time.monotonic() < episode.deadline:
                return None
            self._kill(key)
            return Failure("timeout", f"{call}: took more than {self.timeout_s:g} s")
        turn = reply.get("error") or _turn(reply.get("value"), opening=episode.method == "reset")
        if not isinstance(turn, Turn):
            self._kill(key)
            return Failure("error", f"{call}: {turn}")
        episode.method = ""
        return turn

    def _kill(self, key: int) -> None:
        episode = self._open.pop(key)
        episode.channel.close()
        self._nursery.order(f"kill {episode.number}")


class _Nursery(KillableProcess):
    """The process that has loaded the environment and is forked for each episode."""

    def __init__(self, environment: Environment, memory_bytes: int) -> None:
        name, module = type(environment).__name__, type(environment).__module__
        try:
            pickled = pickle.dumps(environment)
        except Exception as error:
            raise ConfigError(
                f"{name} cannot be pickled for its episodes ({type(error).__name__}: {error}): keep plain "
                "data in its constructor, and open files and connections in reset",
                of=environment,
            ) from error
        prototype = os.memfd_create("environment")
        with open(prototype, "wb", closefd=False) as file:
            file.write(pickled)
        os.lseek(prototype, 0, os.SEEK_SET)
        self.orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.orders.settimeout(START_S)
        main = "grpo_pl.environments.nursery.main"
        super().__init__(main, (theirs.detach(), prototype), (str(memory_bytes),))
        try:
            said = self.orders.recv(1 << 16)
            reason = json.loads(said).get("error") if said else "it died"
        except TimeoutError:
            reason = f"it took more than {START_S:g} s"
        if reason:
            self.kill()
            raise ConfigError(
                f"{name} cannot be loaded in a process of its own ({reason}): define it in a module, and "
                f"check that `python -c 'import {module}'` works",
                of=environment,
            )

    def order(self, order: str, *descriptors: int) -> None:
        with suppress(OSError):  # it has died: the next call starts another
            socket.send_fds(self.orders, [order.encode()], descriptors)

    @override
    def kill(self) -> None:
        super().kill()
        self.orders.close()


class _Episode:
    """One process, idle or asked."""

    def __init__(self, number: int, nursery: _Nursery) -> None:
        self.number = number
        self.channel, theirs = socket.socketpair()
        self.replies = Replies(self.channel.fileno())
        with theirs:
            nursery.order(f"fork {number}", theirs.fileno())
        self.method, self.deadline = "", math.inf

    def ask(self, method: str, timeout_s: float, *arguments: Any) -> None:
        self.method, self.deadline = method, time.monotonic() + timeout_s
        self.channel.settimeout(timeout_s)  # of a process that is stopped and does not read
        with suppress(OSError):  # it has died: that shows when its answer is read
            self.channel.sendall(pickle.dumps((method, *arguments)))


def _turn(fields: Any, opening: bool) -> Turn | str:
    """The Turn with these fields, or what is wrong with them: user's code gave them."""
    match fields:
        case {"messages": list(messages), "reward": reward, "done": done}:
            pass
        case _:
            return "expected a Turn"
    roles = ("system", "user", "tool") if opening else ("user", "tool")
    for message in messages:
        match message:
            case {"role": str(role), "content": str()} if role in roles:
                if re.search("[\ud800-\udfff]", json.dumps(message, ensure_ascii=False)):
                    return f"a message is no valid Unicode: {message!r:.80}"
            case _:
                return f"expected messages of {', '.join(roles)} with text as content, got {message!r:.80}"
    if not isinstance(reward, int | float) or not abs(reward) <= _LARGEST_REWARD:
        return f"expected a finite number as the reward, got {reward!r:.80}"
    if opening and reward:
        return f"reward {reward:g} before the policy has said anything"
    if done not in (0, 1):
        return f"expected done to be true or false, got {done!r:.80}"
    if opening and done:
        return "done before the policy has said anything"
    if not (opening or done or messages):
        return "no message, though the episode is not over"
    return Turn(messages=messages, reward=float(reward), done=bool(done))
