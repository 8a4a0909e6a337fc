"""What a call can end in.

RerankError
├── InvalidRequestError (ValueError)            an argument is unusable, or Triton answered INVALID_ARGUMENT
├── ModelNotFoundError                          Triton serves no model of this name
├── ServerUnavailableError (ConnectionError)    the server is down, starting or stopping        retried
│   └── ServerOverloadedError                   its queue is full, or a request waited too long       retried
├── RequestTimeoutError (TimeoutError)          the call's `timeout` has passed
├── RequestCancelledError                       the call was cancelled, here or by the server
├── InferenceError                              the model failed on this request
└── UnexpectedResponseError                     a missing tensor, a wrong shape, NaN

Every lower error becomes one of these in `error_from_status`, the only place that knows gRPC's status names
and Triton's wording.
"""

from __future__ import annotations

__all__ = [
    "InferenceError",
    "InvalidRequestError",
    "ModelNotFoundError",
    "RequestCancelledError",
    "RequestTimeoutError",
    "RerankError",
    "ServerOverloadedError",
    "ServerUnavailableError",
    "UnexpectedResponseError",
    "error_from_status",
]


class RerankError(Exception):
    """Base of every error that a call raises on purpose."""


class InvalidRequestError(RerankError, ValueError):
    """An argument cannot be used; the message names it, its index, and the remedy."""


class ModelNotFoundError(RerankError):
    """The server has no model of this name."""


class ServerUnavailableError(RerankError, ConnectionError):
    """No server answers: down, starting or stopping. Retried within the call's timeout."""


class ServerOverloadedError(ServerUnavailableError):
    """The server refused for want of room. Retried with back-off, within the retry budget."""


class RequestTimeoutError(RerankError, TimeoutError):
    """The call's timeout passed before every part of it was answered."""


class RequestCancelledError(RerankError):
    """The call was cancelled: the client was closed under it, or the server gave it up."""


class InferenceError(RerankError):
    """The model failed on this request."""


class UnexpectedResponseError(RerankError):
    """The answer is not what the tensor contract promises."""


# Triton says UNAVAILABLE both when it is overloaded and when it is not there; only the message tells which.
# "Exceeds maximum queue size": core/src/scheduler_utils.cc; "Request timeout expired": the queue policy's
# REJECT.
_OVERLOAD_MESSAGES = ("exceeds maximum queue size", "request timeout expired")

# A connection that breaks in mid-request reaches the caller with one of several statuses, told by gRPC's own
# words.
_BROKEN_CONNECTION_MESSAGES = ("rst_stream", "goaway", "socket closed", "connection reset", "broken pipe")

_KINDS: dict[str, type[RerankError]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "OUT_OF_RANGE": InvalidRequestError,
    "NOT_FOUND": ModelNotFoundError,
    "UNAVAILABLE": ServerUnavailableError,
    "RESOURCE_EXHAUSTED": ServerOverloadedError,
    "DEADLINE_EXCEEDED": RequestTimeoutError,
    "CANCELLED": RequestCancelledError,
}


def error_from_status(status: str, details: str | None, server: str) -> RerankError:
    """The error that a gRPC status stands for.

    Args:
        status: Name of the status, "UNAVAILABLE" or as tritonclient writes it "StatusCode.UNAVAILABLE".
        details: The server's or gRPC's own words.
        server: Address that was asked; it opens the message.
    """
    status = status.rpartition(".")[2]
    details = details or "no reason given"
    said = details.lower()
    kind = _KINDS.get(status, InferenceError)
    if kind is ServerUnavailableError and any(words in said for words in _OVERLOAD_MESSAGES):
        kind = ServerOverloadedError
    elif status in ("INTERNAL", "UNKNOWN", "CANCELLED") and any(w in said for w in _BROKEN_CONNECTION_MESSAGES):
        kind = ServerUnavailableError
    elif kind is ModelNotFoundError and "has no available versions" in said:
        kind = ServerUnavailableError  # Triton knows the model, and is loading or unloading it
    if kind is ServerOverloadedError and "larger than max" in said:
        kind = InvalidRequestError  # gRPC's RESOURCE_EXHAUSTED for a message beyond the size limit
    if "failed to connect" in said:
        details += "; is Triton running there? Its gRPC port is 8001 unless it is told otherwise"
    return kind(f"{server}: {details}")
