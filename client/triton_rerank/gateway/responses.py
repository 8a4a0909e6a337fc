"""JSON responses."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from triton_rerank.gateway.errors import GatewayError
from triton_rerank.gateway.record import Record


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with a JSON body."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def error_response(error: GatewayError, record: Record) -> Response:
    """The answer to a request that failed. Its reason goes to the log."""
    record.reason = error.reason or error.message
    body = error.body(record.request_id, tei=record.dialect == "tei")
    return json_response(body, error.status, error.headers)
