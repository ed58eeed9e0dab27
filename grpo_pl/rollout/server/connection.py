"""Connections to one vLLM server, and to several at once."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import aiohttp

log = logging.getLogger(__name__)


class ServerError(Exception):
    """A server's failure, in words."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        """The HTTP status; None if there was no answer."""


class Server:
    """One server, within a session."""

    def __init__(self, url: str, session: aiohttp.ClientSession, timeout_s: float) -> None:
        self.url, self._session, self.timeout_s = url, session, timeout_s

    async def get(self, path: str) -> Any:
        """The answer to a request that needs no computation."""
        return await self._ask("GET", path, None, self.timeout_s)

    async def post(self, path: str, body: Any = None, *, forever: bool = False) -> Any:
        """The answer to a request, which may take `forever` where something else watches the server.

        ServerError without an answer, or with another status than OK.
        """
        return await self._ask("POST", path, body, None if forever else self.timeout_s)

    async def check_weights(self, version: str) -> None:
        """Ask its engine for a sign of life; ServerError without one, or with other (restarted) weights."""
        held = (await self.get("/weight_info"))["weight_version"]
        if held != version:
            raise ServerError(f"it has the weights {held!r} instead of {version!r}")

    async def _ask(self, method: str, path: str, body: Any, timeout_s: float | None) -> Any:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=self.timeout_s)
        try:
            async with self._session.request(
                method, self.url + path, json=body, timeout=timeout, allow_redirects=False
            ) as reply:
                text = await reply.text()
        except TimeoutError:
            raise ServerError(f"no answer within {self.timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ServerError(str(error) or type(error).__name__) from None
        if reply.status != HTTPStatus.OK:
            raise ServerError(f"status {reply.status}: {explanation(text)}", reply.status)
        return json.loads(text)


def explanation(text: str) -> str:
    """The message in vLLM's answer to a failed request."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return text[:200]


@asynccontextmanager
async def connected(urls: Iterable[str], key: str, timeout_s: float) -> AsyncIterator[list[Server]]:
    """The servers at these addresses."""
    headers = {"Authorization": f"Bearer {key}"}
    # one connection a request: one that is kept may be closed just when it is used again, as if by a death
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        yield [Server(url, session, timeout_s) for url in urls]


class Fleet:
    """Servers that do the same at the same time; one that fails is dropped."""

    def __init__(self, servers: list[Server]) -> None:
        self.servers, self.lost = servers, dict[str, ServerError]()

    async def each(self, ask: Callable[[Server], Awaitable[object]]) -> None:
        """Run a request on all servers."""
        outcomes = await asyncio.gather(*map(ask, self.servers), return_exceptions=True)
        for server, outcome in zip(list(self.servers), outcomes, strict=True):
            if isinstance(outcome, ServerError):
                self.servers.remove(server)
                self.lost[server.url] = outcome
            elif isinstance(outcome, BaseException):
                raise outcome

    def lose_all(self, error: ServerError) -> None:
        """Drop all servers."""
        self.lost |= {server.url: error for server in self.servers}
        self.servers.clear()

    async def post(self, path: str, body: Any = None) -> None:
        """Post the same to all servers."""
        await self.each(lambda server: server.post(path, body))
