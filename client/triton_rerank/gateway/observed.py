"""Around every request: its id, its log line, its metrics, and an answer to whatever goes wrong."""

from __future__ import annotations

import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triton_rerank.gateway.errors import error_response, internal
from triton_rerank.gateway.metrics import Metrics
from triton_rerank.gateway.record import Record, begin, request_id_of
from triton_rerank.transport.tracing import Tracer

logger: logging.Logger = logging.getLogger("triton_rerank.gateway")

_PROBES = ("health", "ready", "live", "metrics")


class Observed:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._tracer = Tracer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        status = 0
        with self._tracer.continued(headers) as left:
            record = Record(request_id_of(headers.get("x-request-id")), left)
            begin(record)

            async def send_with_id(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    MutableHeaders(scope=message)["x-request-id"] = record.request_id
                await send(message)

            try:
                await self._app(scope, receive, send_with_id)
            except Exception as error:
                logger.exception("request %s failed", record.request_id)
                if status:
                    raise  # the answer has begun: the server closes the connection
                failed: Response = error_response(internal(repr(error)), record)
                await failed(scope, receive, send_with_id)
            finally:
                self._metrics.count(record, status)
                _log(record, scope, status)


def _log(record: Record, scope: Scope, status: int) -> None:
    """One line for each request, but not for probes and scrapes: `served` tells when readiness changes."""
    level = logging.DEBUG if record.endpoint in _PROBES else logging.INFO
    if not logger.isEnabledFor(level):
        return
    logger.log(
        level,
        "id=%s method=%s path=%s status=%d dialect=%s documents=%d tokens=%d ms=%.1f%s",
        record.request_id,
        scope["method"],
        ascii(scope["path"][:200])[1:-1].replace(" ", "%20"),
        status,
        record.dialect,
        record.documents,
        record.tokens,
        (time.perf_counter() - record.started) * 1e3,
        f" reason={record.reason!r}" if record.reason else "",
    )
