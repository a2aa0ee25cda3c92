"""What stands around the application: the key, the size of bodies, one log line per request, and the last safety net.

Nothing here logs what a request says: paths that are not ours, queries and exceptions' own words may all hold texts.
"""

import asyncio
import hmac
import json
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from search_r3_mteb.serving.errors import RequestError, failed
from search_r3_mteb.serving.metrics import Metrics

PATHS = ("/", "/health", "/metrics", "/v1/embeddings", "/v1/models", "/v1/indexes", "/v1/search")
OPEN = ("/", "/health")  # served without a key: neither holds anything of anybody
METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH")
_THROWN_AWAY = 16  # times the largest body are read of one that is refused (our choice)
_SILENCE = 1.0  # seconds without a part of it, after which it is answered
_log = logging.getLogger(__name__)
AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]


class Guard:
    """An ASGI application around another one. `key` None lets everybody in; `max_bytes` bounds a request's body."""

    def __init__(self, app: Any, metrics: Metrics, key: str | None, max_bytes: int) -> None:
        self.app, self.metrics, self.max_bytes = app, metrics, max_bytes
        self._expected = None if key is None else f"Bearer {key}".encode("ascii")

    async def __call__(self, scope: AsgiMessage, receive: Receive, send: Send) -> None:
        """Serve one connection of ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in PATHS else "other"
        method = scope["method"] if scope["method"] in METHODS else "other"
        status, began = 0, time.perf_counter()

        async def counted(message: AsgiMessage) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._serve(scope, receive, counted)
        except Exception as error:  # noqa: BLE001  nothing may reach the server, which would log the exception's words
            frames = [f"{Path(each.filename).name}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__)]
            _log.error("%s at %s", type(error).__name__, " < ".join(frames[:-7:-1]))
            if not status:
                await _answer(failed(), counted)
        finally:
            seconds = time.perf_counter() - began
            status = status or 499  # the client went away before there was an answer
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            _log.info("%s %s %d %.0f ms", method, path, status, seconds * 1000)

    async def _serve(self, scope: AsgiMessage, receive: Receive, send: Send) -> None:
        headers, refusal = dict(scope["headers"]), None
        try:
            if scope["path"] not in OPEN:
                self._check_key(headers.get(b"authorization", b""))
        except RequestError as error:
            refusal = error
        try:
            body = await self._body(headers, receive, refusal)
        except RequestError as error:
            await _answer(error, send)
            return
        if body is None:
            return
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> AsgiMessage:
            return given.pop() if given else await receive()

        await self.app(scope, replayed, send)

    def _check_key(self, given: bytes) -> None:
        """Raises RequestError unless the key was given; comparing takes as long wherever the two differ."""
        scheme, _, key = given.partition(b" ")
        given = b" ".join([b"Bearer", key]) if scheme.lower() == b"bearer" else given  # RFC 9110: in any case
        if self._expected is None or hmac.compare_digest(given, self._expected):
            return
        what = "is not the key of this server" if given else "is missing"
        raise RequestError(
            401,
            f"The API key {what}. Send the header 'Authorization: Bearer KEY' (OpenAI's clients: api_key=KEY).",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )

    async def _body(self, headers: dict[bytes, bytes], receive: Receive, refusal: RequestError | None) -> bytes | None:
        """The whole body, None when the client went away. Raises RequestError for one that is too large, or `refusal`.

        A body that is refused is read all the same, and thrown away: most clients read no answer before they have sent
        everything, and would see a broken connection only. One that waits for leave to send it is told at once.
        """
        said = headers.get(b"content-length", b"0")
        if refusal is None and said.isdigit() and int(said) > self.max_bytes:
            refusal = self._too_large()
        if refusal is not None and headers.get(b"expect", b"").lower() == b"100-continue":
            raise refusal
        parts: list[bytes] = []
        size, more = 0, True
        while more and size <= _THROWN_AWAY * self.max_bytes:
            try:
                message = await asyncio.wait_for(receive(), None if refusal is None else _SILENCE)
            except TimeoutError:  # it has said how much it would send, and sends nothing
                break
            if message["type"] == "http.disconnect":
                return None
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if refusal is None and size > self.max_bytes:
                refusal = self._too_large()
                parts.clear()
            if refusal is None:
                parts.append(part)
        if refusal is not None:
            raise refusal
        return b"".join(parts)

    def _too_large(self) -> RequestError:
        return RequestError(
            413,
            f"The request's body is larger than {self.max_bytes:,} bytes. Send fewer texts at once.",
            code="request_too_large",
            headers={"connection": "close"},
        )


async def _answer(error: RequestError, send: Send) -> None:
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))} | error.headers
    named = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": named})
    await send({"type": "http.response.body", "body": body})
