"""What a failed request is answered with.

One body serves all callers: Cohere's SDK and LangChain's NVIDIARerank read `message`, Jina's callers and Xinference
read `detail`, which must be a string, and OpenAI's and vLLM's callers read the object `error`. A call in the format of
text-embeddings-inference gets that server's form, in which `error` is a string.

The status is never 422: with a string as `detail` it crashes infinity's client. Overload is 429, since several callers
retry 503 ten times.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from triton_rerank.errors import (
    InferenceError,
    InvalidRequestError,
    RequestTimeoutError,
    RerankError,
    ServerOverloadedError,
    UnexpectedResponseError,
)
from triton_rerank.gateway.record import Record


class GatewayError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        message: For the caller; it holds no text of the request.
        kind: The error's type in the body.
        param: The key of the request that is wrong, such as "documents[3]".
        tei_kind: The type in the form of text-embeddings-inference.
        headers: Further headers.
        reason: For the log only, such as an address that does not answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        param: str | None = None,
        tei_kind: str = "validation",
        headers: Mapping[str, str] | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.tei_kind = tei_kind
        self.headers: dict[str, str] = dict(headers or {})
        self.reason = reason

    def body(self, request_id: str, *, tei: bool) -> dict[str, object]:
        """The JSON object to answer with.

        Args:
            request_id: Of the request.
            tei: Whether the request came in the format of text-embeddings-inference.
        """
        said = {"message": self.message, "detail": self.message}
        if tei:
            return {"error": self.message, "error_type": self.tei_kind, **said}
        details = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return {"error": details, **said, "id": request_id}


def invalid(message: str, param: str | None = None, *, empty: bool = False) -> GatewayError:
    """The error of a request that cannot be served as it is."""
    return GatewayError(400, message, param=param, tei_kind="empty" if empty else "validation")


def overloaded(reason: str) -> GatewayError:
    """The error of a request for which there is no room."""
    message = "the reranker has too many calls waiting; try again in a second, or send fewer at once"
    headers = {"Retry-After": "1"}
    return GatewayError(429, message, "overloaded_error", tei_kind="overloaded", headers=headers, reason=reason)


def unavailable(reason: str) -> GatewayError:
    """The error while no reranker answers: it is down, starting, or has no such model."""
    message = "the reranker does not answer or is starting; try again in 5 s"
    headers = {"Retry-After": "5"}
    return GatewayError(503, message, "unavailable_error", tei_kind="unhealthy", headers=headers, reason=reason)


_SERVER = re.compile(r"^[^\s]+:\d+: ")


def from_client(error: RerankError) -> GatewayError:
    """The answer to an error of the client. Addresses of servers go to the log, not to the caller."""
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, InvalidRequestError):
        return invalid(_SERVER.sub("", str(error)))
    if isinstance(error, ServerOverloadedError):
        return overloaded(reason)
    if isinstance(error, RequestTimeoutError):
        return GatewayError(
            504, "the reranker did not answer in time", "timeout_error", tei_kind="backend", reason=reason
        )
    if isinstance(error, (InferenceError, UnexpectedResponseError)):
        return internal(reason)
    return unavailable(reason)  # down, no such model, or closed in mid-call


def internal(reason: str) -> GatewayError:
    """The error of a model or a gateway that failed."""
    message = "the reranker failed on this request; its operator finds the reason under the request id"
    return GatewayError(500, message, "internal_error", tei_kind="backend", reason=reason)


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with a JSON body."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def error_response(error: GatewayError, record: Record) -> Response:
    """The answer to a request that failed. Its reason goes to the log."""
    record.reason = error.reason or error.message
    body = error.body(record.request_id, tei=record.dialect == "tei")
    return json_response(body, error.status, error.headers)
