"""Reading of bodies: limits of size and time, before any work is done."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triton_rerank.gateway.errors import GatewayError, invalid, overloaded

_BODIES_IN_MEMORY = 8
_LINGER_S = 1.0
_LINGER_BYTES = 100_000_000


class Reader:
    """Reads bodies. All bodies that are being read or ranked fit in a few times the limit of one."""

    def __init__(self, max_body: int, timeout_s: float) -> None:
        self._max_body = max_body
        self._timeout_s = timeout_s
        self._room = _BODIES_IN_MEMORY * max_body

    async def read(self, request: Request) -> bytearray:
        """The body of a request. `release` gives its room back.

        Raises:
            GatewayError: It is too large, compressed, or does not arrive in time; or too many others are in memory.
            CallerGoneError: The caller hung up.
        """
        if request.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
            raise invalid("the body is compressed; send it without Content-Encoding")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_body:
            raise self._too_large()
        body = bytearray()
        try:
            await asyncio.wait_for(self._fill(body, request), self._timeout_s)
        except BaseException as error:
            self.release(body)
            if isinstance(error, asyncio.TimeoutError):
                raise GatewayError(
                    408, f"the body did not arrive within {self._timeout_s:g} s", "request_timeout"
                ) from None
            raise
        return body

    def release(self, body: bytearray) -> None:
        """Give the room of a body back."""
        self._room += len(body)

    async def _fill(self, body: bytearray, request: Request) -> None:
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise CallerGoneError
            part: bytes = message.get("body", b"")
            if len(body) + len(part) > self._max_body:
                raise self._too_large()
            if len(part) > self._room:
                raise overloaded("the bodies of other requests fill the memory")
            self._room -= len(part)
            body += part
            more = message.get("more_body", False)

    def _too_large(self) -> GatewayError:
        limit = f"{self._max_body:,} bytes"
        return GatewayError(
            413, f"the body is larger than {limit}; send fewer or shorter documents", "request_too_large"
        )


class CallerGoneError(GatewayError):
    """The caller closed the connection. Nobody reads the answer; the status is for log and metrics."""

    def __init__(self) -> None:
        super().__init__(499, "the caller closed the connection", "caller_gone")


class Unread:
    """Closes a connection whose request was answered before its body was read.

    A connection that is closed with unread bytes is reset, and the caller may lose the answer. The rest is therefore
    discarded, for a second and 100 MB at most.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and look after its body."""
        if scope["type"] != "http" or not _has_body(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        unread = True

        async def receive_and_note() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and bool(message.get("more_body"))
            return message

        async def discard() -> None:
            size = 0
            while unread and size < _LINGER_BYTES:
                size += len((await receive_and_note()).get("body", b""))

        async def send_and_close(message: Message) -> None:
            if not unread:
                await send(message)
            elif message["type"] == "http.response.start":
                await send({**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]})
            else:
                await send({**message, "more_body": True})
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(discard(), _LINGER_S)
                await send({"type": "http.response.body", "body": b""})

        await self._app(scope, receive_and_note, send_and_close)


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
