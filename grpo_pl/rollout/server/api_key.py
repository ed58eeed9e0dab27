"""Middleware of vLLM's server: every request needs the API key."""

import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class RequireKey:
    """ASGI middleware: every request but `/health` needs the key of `VLLM_API_KEY`.

    vLLM 0.32 asks for its key under /v1 and a few more paths, and leaves those open that replace weights,
    call any method of a worker and show the configuration
    (vllm/entrypoints/serve/middleware/authenticate.py).
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app, self._expected = app, f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass authorized requests on."""
        if scope["type"] == "http" and scope["path"] != "/health" and not self._has_key(scope):
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})
        elif scope["type"] in ("http", "lifespan"):
            await self._app(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        key = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(key, self._expected)
