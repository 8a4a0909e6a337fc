"""uvicorn as the gateway runs it: slow and endless requests end, and SIGTERM drains."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from socket import socket
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from triton_rerank.gateway.settings import Settings

_MAX_HEADER_BYTES = 65_536
_KEEP_ALIVE_S = 75  # longer than load balancers keep idle connections (60 s), so that they are the ones that close


class Protocol(HttpToolsProtocol):
    """Limits of headers, which uvicorn lacks: their time and their size. Trailers of chunked bodies count, too."""

    headers_timeout_s: float = 15.0
    _timer: asyncio.TimerHandle | None = None
    _pending: int = 0
    """Bytes since the parser last finished headers or found a part of a body."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time of the first request."""
        super().connection_made(transport)
        self._start_timer()

    def on_message_begin(self) -> None:
        """Start the time of a request on a kept connection."""
        super().on_message_begin()
        if self._timer is None:
            self._start_timer()

    def on_headers_complete(self) -> None:
        """End the time."""
        self._pending = 0
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Note the progress."""
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the progress."""
        self._pending = 0
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Parse, and refuse a connection that sends headers without end."""
        self._pending += len(data)
        super().data_received(data)
        if self._pending > _MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response("The headers are too large.")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.headers_timeout_s, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """A server that, on SIGTERM or SIGINT, stops being ready, goes on for a while, ends its calls and closes.

    Args:
        config: Of uvicorn.
        app: From `create_app`.
        drain_s: Seconds between the signal and the end of listening, for load balancers to notice.
        started: Called with the port when the server listens.
    """

    def __init__(self, config: uvicorn.Config, app: Starlette, drain_s: float, started: Callable[[int], None]) -> None:
        super().__init__(config)
        self.should_exit: bool = False
        self._app = app
        self._drain_s = drain_s
        self._tell: Callable[[int], None] = started
        self._stop_at: float | None = None

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Listen, and tell the port."""
        await super().startup(sockets)
        if self.started:
            self._tell(self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; on a second signal, end at once."""
        if self._stop_at is not None:
            self.should_exit = self.force_exit = True
            return
        self._app.state.served.draining = True
        self._stop_at = time.monotonic() + self._drain_s

    async def on_tick(self, counter: int) -> bool:
        """Uvicorn's clock, ten times a second."""
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)


def make_server(
    app: Starlette,
    settings: Settings,
    *,
    host: str,
    port: int,
    drain_s: float,
    started: Callable[[int], None],
    **tls: Any,  # noqa: ANN401  # uvicorn's options
) -> Server:
    """A server whose `run` serves until a signal comes.

    Args:
        app: From `create_app`.
        settings: Those of the application.
        host: Address to listen on.
        port: Port; 0 for a free one.
        drain_s: See `Server`.
        started: See `Server`.
        **tls: uvicorn's `ssl_certfile` and `ssl_keyfile`.
    """
    protocol = type("Protocol", (Protocol,), {"headers_timeout_s": settings.body_timeout})
    config = uvicorn.Config(
        app,
        host,
        port,
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(settings.timeout + settings.body_timeout),
        **tls,
    )
    return Server(config, app, drain_s, started)
