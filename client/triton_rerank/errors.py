"""The errors of a call.

RerankError
├── InvalidRequestError (ValueError)            an argument is unusable, or Triton answered INVALID_ARGUMENT
├── ClientStateError (RuntimeError)             the client is closed, or belongs to another event loop
├── ModelNotFoundError                          Triton serves no model of this name
├── ServerUnavailableError (ConnectionError)    the server is down, starting or stopping        retried
│   └── ServerOverloadedError                   its queue is full, or a request waited too long       retried
├── RequestTimeoutError (TimeoutError)          the call's `timeout` has passed
├── RequestCancelledError                       the call was cancelled, here or by the server
├── InferenceError                              the model failed on this request
└── UnexpectedResponseError                     a missing tensor, a wrong shape, NaN

`error_from_status` translates every gRPC status; no other function knows gRPC's status names and Triton's wording.
"""

from __future__ import annotations

import re

__all__ = [
    "ClientStateError",
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


class ClientStateError(RerankError, RuntimeError):
    """The client cannot be used: it is closed, or belongs to another event loop that is still open."""


class ModelNotFoundError(RerankError):
    """The server has no model of this name."""


class ServerUnavailableError(RerankError, ConnectionError):
    """No server answers: down, starting, stopping, or its model process is dead. Retried with backoff."""


class ServerOverloadedError(ServerUnavailableError):
    """The server's queue is full. Retried with backoff, within the retry budget."""


class RequestTimeoutError(RerankError, TimeoutError):
    """The call's timeout passed before every part of it was answered."""


class RequestCancelledError(RerankError):
    """The call was cancelled: the client was closed during it, or the server dropped it."""


class InferenceError(RerankError):
    """The model failed on this request."""

    out_of_memory: bool = False
    """Whether the server had too little memory for it. The client then asks each of its other servers once."""


class OtherVersionError(ModelNotFoundError):
    """The server has another version of the model than the call began with. No call ends with this error."""


class UnexpectedResponseError(RerankError):
    """The answer is not what the tensor contract promises."""


# Triton answers UNAVAILABLE both when it is overloaded and when it stops; only the message tells them apart.
# "Exceeds maximum queue size": core/src/scheduler_utils.cc; "Request timeout expired": the queue policy's
# REJECT.
_OVERLOAD_MESSAGES = ("exceeds maximum queue size", "request timeout expired")

# A connection that breaks during a request ends in one of several statuses; gRPC's message tells.
_BROKEN_CONNECTION_MESSAGES = ("rst_stream", "goaway", "socket closed", "connection reset", "broken pipe")

# The Python backend's answer for a model whose process is dead (python_be.cc). Health endpoints do not show it.
_DEAD_MODEL_MESSAGES = ("is not healthy",)

# A server that has too little memory for a request: /dev/shm for its texts, or memory for the model's batch. "failed to
# allocate memory" is ONNX Runtime's.
_OUT_OF_MEMORY_MESSAGES = ("increase the shared memory pool", "out of memory", "failed to allocate memory")

# Remedies for gRPC's and Triton's messages; the first that fits.
_NO_SERVER = "is Triton running there? Its gRPC port is 8001 by default"
_UNTRUSTED = "the server's certificate is not trusted; pass its authority as TLS(root_certificates=...)"
_HINTS = (
    ("failed parsing http/2", "this is not a gRPC port; Triton's gRPC port is 8001 by default, its HTTP port 8000"),
    ("wrong_version_number", "the server answers, but not with TLS; leave out tls, or turn TLS on in the server"),
    ("certificate_verify_failed", _UNTRUSTED),
    ("hostname verification", "the certificate is for another name; pass that name as TLS(server_name=...)"),
    ("http proxy returned", "the connection goes through http_proxy; add the server to no_proxy"),
    (
        "last error: unavailable",
        "something answers there, but not plain-text gRPC; pass tls if the server has TLS on",
    ),
    ("failed to connect", _NO_SERVER),
    (
        "exceeds maximum queue size",
        "send fewer calls at once, add servers, or raise max_queue_size (on a CPU max_wait_s)",
    ),
    (
        "increase the shared memory pool",
        "the server's /dev/shm is full: enlarge it (--shm-size, shm_size, a larger emptyDir), or send shorter texts",
    ),
    (
        "failed to allocate memory",
        "the server has too little memory for it: pass a smaller max_length, or lower max_batch_size in all three "
        "config files",
    ),
    (
        "unexpected inference output",
        "not a reranker; pass the name of an ensemble as model, such as reranker",
    ),
)

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
    details = _REQUEST_ID.sub("", details or "no reason given")
    said = details.lower()
    kind = _KINDS.get(status, InferenceError)
    if kind is ServerUnavailableError and _has(said, _OVERLOAD_MESSAGES):
        kind = ServerOverloadedError
    elif (status in ("INTERNAL", "UNKNOWN", "CANCELLED") and _has(said, _BROKEN_CONNECTION_MESSAGES)) or (
        status in ("INTERNAL", "UNKNOWN") and _has(said, _DEAD_MODEL_MESSAGES)
    ):
        kind = ServerUnavailableError
    elif _OTHER_VERSION.search(said):
        kind = OtherVersionError
    elif kind is ModelNotFoundError and "has no available versions" in said:
        kind = ServerUnavailableError  # the model exists; Triton is loading or unloading it
    if kind is ServerOverloadedError and "larger than max" in said:
        kind = InvalidRequestError  # gRPC's RESOURCE_EXHAUSTED for a message beyond the size limit
    hint = next((hint for words, hint in _HINTS if words in said), None)
    error = kind(f"{server}: {details}; {hint}" if hint else f"{server}: {details}")
    if isinstance(error, InferenceError):
        error.out_of_memory = _has(said, _OUT_OF_MEMORY_MESSAGES)
    return error


# Triton's answer to a request for a version that it unloads (core/src/model_lifecycle.cc).
_OTHER_VERSION = re.compile(r"version \d+ is not at ready state")

_REQUEST_ID = re.compile(r"\[request id: <id_unknown>\] ")


def _has(said: str, messages: tuple[str, ...]) -> bool:
    return any(words in said for words in messages)
