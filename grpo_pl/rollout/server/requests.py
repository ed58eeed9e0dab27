"""Requests spread over several servers, each answered exactly once even if servers die."""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_pl.rollout.server.connection import Server, ServerError

CHECKS_PER_TIMEOUT = 4
"""Signs of life requested from a server within its timeout."""


@dataclass
class Work:
    """A server's open and finished requests."""

    under_way: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    unconfirmed: set[int] = field(default_factory=set)
    """Answered since the last look at its weights."""
    watch: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Cancel everything."""
        for task in filter(None, (*self.under_way.values(), self.watch)):
            task.cancel()


class Answering:
    """One round of requests to /v1/completions.

    A group of requests goes to the server with the fewest under way, where its prompt is then read once. A
    server is lost for this round if its connection breaks, it refuses, gives no sign of life in time or has
    other weights. Another server answers its open requests, and those it has answered since its weights were
    last confirmed.

    Args:
        servers: The servers.
        requests: Bodies of the requests.
        groups: Groups of requests with the same prompt.
        weights: The version that every server must have.
        at_once: Requests under way at one server.
    """

    def __init__(
        self,
        servers: Iterable[Server],
        requests: Sequence[dict[str, Any]],
        groups: Iterable[Sequence[int]],
        *,
        weights: str,
        at_once: int,
    ) -> None:
        self._requests, self._weights, self._at_once = requests, weights, at_once
        self._waiting = deque(groups)
        self._work = {server: Work() for server in servers}
        self._events: asyncio.Queue[tuple[Server, int, dict[str, Any] | ServerError]] = asyncio.Queue()
        self._choices: dict[int, dict[str, Any]] = {}
        self.lost: dict[str, ServerError] = {}
        self.retried = 0

    async def run(self) -> list[dict[str, Any]]:
        """The answers, in the order of the requests; fewer if no server is left."""
        async with asyncio.TaskGroup() as self._tasks:
            for server, work in self._work.items():
                work.watch = self._tasks.create_task(self._watch(server, work))
            while self._work:
                if len(self._choices) < len(self._requests):
                    self._hand_out()
                    self._take(*await self._events.get())
                elif await self._confirm():
                    break
            for work in self._work.values():
                work.cancel()
        return [self._choices[number] for number in sorted(self._choices)]

    def _hand_out(self) -> None:
        while self._waiting:
            server, work = min(self._work.items(), key=lambda pair: len(pair[1].under_way))
            if len(work.under_way) >= self._at_once:
                return
            for number in self._waiting.popleft():
                work.under_way[number] = self._tasks.create_task(self._ask(server, number))

    def _take(self, server: Server, number: int, outcome: dict[str, Any] | ServerError) -> None:
        if server not in self._work:
            return  # another has been asked since
        if isinstance(outcome, ServerError):
            self._lose(server, outcome)
            return
        work = self._work[server]
        del work.under_way[number]
        work.unconfirmed.add(number)
        self._choices[number] = outcome

    def _lose(self, server: Server, error: ServerError) -> None:
        work = self._work.pop(server)
        work.cancel()
        for number in work.unconfirmed:
            del self._choices[number]
        again = [*work.under_way, *work.unconfirmed]
        self._waiting.extendleft([number] for number in again)
        self.retried += len(again)
        self.lost[server.url] = error

    async def _ask(self, server: Server, number: int) -> None:
        try:
            reply = await server.post("/v1/completions", self._requests[number], forever=True)
            choice: dict[str, Any] = reply["choices"][0]
            if choice["finish_reason"] not in ("stop", "length"):
                raise ServerError(f"it ended a response with {choice['finish_reason']!r}")
            await self._events.put((server, number, choice))
        except ServerError as error:
            await self._events.put((server, number, error))

    async def _watch(self, server: Server, work: Work) -> None:
        while True:
            await asyncio.sleep(server.timeout_s / CHECKS_PER_TIMEOUT)
            answered = set(work.unconfirmed)
            try:
                await server.check_weights(self._weights)
            except ServerError as error:
                await self._events.put((server, -1, error))
                return
            work.unconfirmed -= answered

    async def _confirm(self) -> bool:
        """Check that the last answers, too, come from the right weights."""
        unsure = [server for server, work in self._work.items() if work.unconfirmed]
        checks = [server.check_weights(self._weights) for server in unsure]
        outcomes = await asyncio.gather(*checks, return_exceptions=True)
        for server, outcome in zip(unsure, outcomes, strict=True):
            if isinstance(outcome, ServerError):
                self._lose(server, outcome)
            elif outcome is not None:
                raise outcome
        return len(self._choices) == len(self._requests)
