"""Worker processes for calls that may hang, crash or take all memory: one call at a time, with a deadline."""

import atexit
import math
import os
import pickle
import selectors
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any, Literal

from typing_extensions import override

from grpo_pl.rewards.base import RewardError
from grpo_pl.system.killable import START_S, KillableProcess, Replies
from grpo_pl.system.refusal import ArgumentError, check_at_least


@dataclass(frozen=True)
class Workers:
    """The processes in which a reward is computed, and the scores of samples that they fail on.

    Args:
        processes: Samples computed at once, on each rank.
        timeout_s: Wall-clock limit for one sample, in seconds; then its worker is killed and replaced.
        memory_gib: Memory for samples, beside what a worker holds after its imports, in GiB.
        retries: Further attempts at a sample that timed out or crashed.
        on_timeout: The score of a sample that timed out each time: a number, or `abstain`.
        on_crash: The score of a sample whose worker died or ran out of memory: a number, or `abstain`.
    """

    processes: int = 2
    timeout_s: float = 5.0
    memory_gib: float = 1.0
    retries: int = 0
    on_timeout: Literal["abstain"] | float = 0.0
    on_crash: Literal["abstain"] | float = 0.0

    def __post_init__(self) -> None:
        check_at_least(1, processes=self.processes)
        check_at_least(0, retries=self.retries)
        for key, limit in (("timeout_s", self.timeout_s), ("memory_gib", self.memory_gib)):
            if not 0 < limit < math.inf:
                raise ArgumentError(f"{key}={limit}: expected a finite number above 0")
        for key, score in (("on_timeout", self.on_timeout), ("on_crash", self.on_crash)):
            if score != "abstain" and not math.isfinite(score):
                raise ArgumentError(f"{key}={score}: expected a finite number or abstain")


Call = Callable[[], Any]
"""A worker's task: a `functools.partial` of a function that it can import, with plain data."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a call: its value, the error that it raised, or a failure of its worker."""

    value: Any = None
    error: str | None = None
    failure: Literal["timeout", "crash"] | None = None


class _Worker(KillableProcess):
    """One process; idle, starting or computing."""

    def __init__(self, module: str, memory_bytes: int) -> None:
        theirs_in, self.calls = os.pipe()
        replies, theirs_out = os.pipe()
        super().__init__("grpo_pl.rewards.worker.main", (theirs_in, theirs_out), (str(memory_bytes), module))
        self.replies = Replies(replies)
        self.deadline = time.monotonic() + START_S
        self.row: int | None = None  # of the call that it computes
        self.ready, self.used = False, False

    def ask(self, row: int, call: bytes, timeout_s: float) -> None:
        self.row, self.deadline = row, time.monotonic() + timeout_s
        with suppress(BrokenPipeError), open(self.calls, "wb", closefd=False) as pipe:
            pipe.write(call)  # a dead worker shows when its reply is read

    @override
    def kill(self) -> None:
        super().kill()
        for descriptor in (self.calls, self.replies.descriptor):
            os.close(descriptor)


class Pool:
    """Worker processes that have imported one module; they start on first use.

    A worker imports neither torch nor the engine unless the module does, gets calls by pickle, answers in
    JSON, and dies with this process, however that ends.
    """

    def __init__(self, module: str, workers: Workers) -> None:
        self.module, self.limits = module, workers
        self._workers: list[_Worker] = []
        self._lock = Lock()

    def run(self, calls: Sequence[Call]) -> list[Outcome]:
        """The outcome of each call; RewardError if a worker cannot import the module.

        Earlier calls do not change an outcome: if a used worker crashes, the call is repeated in a new one.
        """
        pickled = [pickle.dumps(call) for call in calls]
        outcomes = [Outcome()] * len(calls)
        tries = [0] * len(calls)
        waiting = deque(range(len(calls)))
        with self._lock:
            try:
                while waiting or any(worker.row is not None for worker in self._workers):
                    self._hand_out(waiting, pickled)
                    for worker, reply in self._wait():
                        row, outcome = worker.row, self._outcome(worker, reply)
                        if row is None:
                            continue
                        if outcome.failure == "crash" and worker.used:
                            waiting.appendleft(row)
                        elif outcome.failure and tries[row] < self.limits.retries:
                            tries[row] += 1
                            waiting.appendleft(row)
                        else:
                            outcomes[row] = outcome
                        worker.row, worker.used = None, True
            finally:  # after an interrupt no one reads the replies
                for worker in [worker for worker in self._workers if worker.row is not None]:
                    self._remove(worker)
        return outcomes

    def close(self) -> None:
        """End all workers; `run` would start new ones."""
        for worker in list(self._workers):
            self._remove(worker)

    def _hand_out(self, waiting: deque[int], pickled: Sequence[bytes]) -> None:
        """Give calls to idle workers, and start workers for the rest."""
        for worker in self._workers:
            if waiting and worker.ready and worker.row is None:
                row = waiting.popleft()
                worker.ask(row, pickled[row], self.limits.timeout_s)
        starting = sum(not worker.ready for worker in self._workers)
        for _ in range(min(len(waiting) - starting, self.limits.processes - len(self._workers))):
            self._workers.append(_Worker(self.module, int(self.limits.memory_gib * 2**30)))

    def _wait(self) -> list[tuple[_Worker, dict[str, Any] | Literal["timeout", "crash"]]]:
        """The workers that have replied, died or run out of time; waits for the first of them."""
        busy = [worker for worker in self._workers if worker.row is not None or not worker.ready]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.replies.descriptor, selectors.EVENT_READ, worker)
            patience = min(worker.deadline for worker in busy) - time.monotonic()
            readable = {key.fd for key, _ in selector.select(max(patience, 0.0))}
        events: list[tuple[_Worker, Any]] = []
        for worker in busy:
            try:
                reply = worker.replies.read() if worker.replies.descriptor in readable else None
            except EOFError:
                events.append((worker, "crash"))
                continue
            if reply is not None:
                events.append((worker, reply))
            elif time.monotonic() >= worker.deadline:
                events.append((worker, "timeout"))
        return events

    def _outcome(self, worker: _Worker, reply: dict[str, Any] | Literal["timeout", "crash"]) -> Outcome:
        """The outcome of the worker's call; a worker that failed is removed."""
        if isinstance(reply, str):
            self._remove(worker)
            outcome = Outcome(failure=reply)
        else:
            outcome = Outcome(**reply)
        if not worker.ready and (reason := outcome.failure or outcome.error):
            raise RewardError(
                f"A worker could not import {self.module} ({reason}): check that "
                f"`python -c 'import {self.module}'` works."
            )
        worker.ready = True
        return outcome

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.kill()


def run_in_workers(calls: Sequence[Call], module: str, workers: Workers) -> list[Outcome]:
    """The outcome of each call, in the module's pool: one for all rewards with the same settings."""
    return _pool(module, workers, os.getpid()).run(calls)


@cache
def _pool(module: str, workers: Workers, pid: int) -> Pool:  # noqa: ARG001 - a fork has no workers
    pool = Pool(module, workers)
    atexit.register(pool.close)
    return pool
