"""Requests spread over several servers, each answered exactly once even if servers die."""

import asyncio
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from grpo_pl.rollout.server.connection import Server, ServerError

PATIENCE_S = 0.02
"""The longest wait for an answer, in seconds, before whoever asks may submit further requests."""
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
    """Requests to /v1/completions that are under way.

    A request goes to the server that has read its beginning (the same prompt, or an earlier turn, which had
    the same number), if that has room, else to the one with the fewest under way. A server is lost if its
    connection breaks, it refuses, gives no sign of life in time or has other weights. Another server answers
    its open requests, and those it has answered since its weights were last confirmed.

    Args:
        servers: The servers.
        weights: The version that every server must have.
        at_once: Requests under way at one server.
    """

    def __init__(self, servers: Iterable[Server], *, weights: str, at_once: int) -> None:
        self._weights, self._at_once = weights, at_once
        self._bodies: dict[int, dict[str, Any]] = {}
        self._waiting: deque[int] = deque()
        self._begun: dict[tuple[int, ...], Server] = {}
        """The server that has read a beginning."""
        self._asked: dict[int, Server] = {}
        """The server that a number was last handed to."""
        self._work = {server: Work() for server in servers}
        self._events: asyncio.Queue[tuple[Server, int, dict[str, Any] | Exception]] = asyncio.Queue()
        self._choices: dict[int, dict[str, Any]] = {}
        self.lost: dict[str, ServerError] = {}
        self.retried = 0

    @property
    def under_way(self) -> int:
        """Requests without an answer."""
        return len(self._bodies)

    def submit(self, number: int, body: dict[str, Any]) -> None:
        """Ask for an answer, which `answers` returns under this number."""
        self._bodies[number] = body
        self._waiting.append(number)

    async def answers(self) -> dict[int, dict[str, Any]]:
        """The answers that have come since the last call, by number; waits a moment for the first.

        Each comes from a server whose weights were confirmed after it. Raises what a request has raised that
        is not the failure of a server.
        """
        for server, work in self._work.items():
            work.watch = work.watch or asyncio.create_task(self._watch(server))
        self._hand_out()
        with suppress(TimeoutError):
            self._take(*await asyncio.wait_for(self._events.get(), PATIENCE_S))
        while not self._events.empty():
            self._take(*self._events.get_nowait())
        await self._confirm()
        answered, self._choices = self._choices, {}
        for number in answered:
            del self._bodies[number]
        return answered

    def cancel(self) -> None:
        """Leave all requests unanswered."""
        for work in self._work.values():
            work.cancel()

    def _hand_out(self) -> None:
        full = []
        while self._waiting and self._work:
            number = self._waiting.popleft()
            server = self._server_for(number)
            if server is None:
                full.append(number)
                break
            self._asked[number] = server
            self._work[server].under_way[number] = asyncio.create_task(self._ask(server, number))
        self._waiting.extendleft(full)

    def _server_for(self, number: int) -> Server | None:
        """A server with room for a request; None if there is none."""
        beginning = tuple(self._bodies[number]["prompt"])
        begun = self._begun.get(beginning, self._asked.get(number))
        if begun in self._work and len(self._work[begun].under_way) < self._at_once:
            return begun
        server = min(self._work, key=lambda server: len(self._work[server].under_way))
        if len(self._work[server].under_way) >= self._at_once:
            return None
        self._begun[beginning] = server
        return server

    def _take(self, server: Server, number: int, outcome: dict[str, Any] | Exception) -> None:
        if server not in self._work:
            return  # another has been asked since
        if isinstance(outcome, ServerError):
            self._lose(server, outcome)
            return
        if isinstance(outcome, Exception):
            raise outcome
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
        self._waiting.extendleft(again)
        self.retried += len(again)
        self.lost[server.url] = error

    async def _ask(self, server: Server, number: int) -> None:
        try:
            reply = await server.post("/v1/completions", self._bodies[number], forever=True)
            choice: dict[str, Any] = reply["choices"][0]
            if choice["finish_reason"] not in ("stop", "length"):
                raise ServerError(f"it ended a response with {choice['finish_reason']!r}")
            await self._events.put((server, number, choice))
        except Exception as error:  # noqa: BLE001 - whoever waits for the answer raises it
            await self._events.put((server, number, error))

    async def _watch(self, server: Server) -> None:
        while True:
            await asyncio.sleep(server.timeout_s / CHECKS_PER_TIMEOUT)
            try:
                await server.check_weights(self._weights)
            except Exception as error:  # noqa: BLE001
                await self._events.put((server, -1, error))
                return

    async def _confirm(self) -> None:
        """Check that the answers come from the right weights; a server with others is lost."""
        unsure = [server for server, work in self._work.items() if work.unconfirmed]
        checks = [server.check_weights(self._weights) for server in unsure]
        outcomes = await asyncio.gather(*checks, return_exceptions=True)
        for server, outcome in zip(unsure, outcomes, strict=True):
            if isinstance(outcome, ServerError):
                self._lose(server, outcome)
            elif outcome is not None:
                raise outcome
            else:
                self._work[server].unconfirmed.clear()
