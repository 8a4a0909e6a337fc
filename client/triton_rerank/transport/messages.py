"""gRPC and tritonclient, used by this module alone. It is imported when a client is made, since they load slowly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import grpc

try:
    from tritonclient.grpc import service_pb2, service_pb2_grpc
except TypeError as _clash:  # from protobuf, which knows no other name for it
    if "inference." not in str(_clash):
        raise
    raise ImportError(
        "tritonclient can't be used in this process: another package has defined the protobuf messages `inference.*` "
        "(kserve and mlserver do). Call triton_rerank in a process that imports neither of them"
    ) from _clash

from triton_rerank.errors import RerankError, UnexpectedResponseError, error_from_status
from triton_rerank.ranking.batching import Part
from triton_rerank.transport.connection import (
    TLS,
    Channel,
    Message,
    Rpc,
    Stub,
    channel_options,
    target_of,
    through_proxy,
)

OUTPUTS = ("logits", "num_tokens", "truncated")
COMPRESSION = {None: None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}

DEFAULT_PRIORITY = 2
"""Priority of calls that pass none, in the server's configs."""

RpcError = grpc.RpcError
UsageError = grpc.aio.UsageError
"""grpc.aio raises it for a request on a closed channel."""


@dataclass(frozen=True, slots=True)
class Request:
    """A message and the name of its RPC."""

    method: str
    message: Message
    priority: int | None = None


def stub(url: str, tls: TLS | None, compression: str | None) -> tuple[Channel, Stub]:
    """A channel to one server, and Triton's RPCs on it."""
    return _with_stub(_open(grpc, url, tls, compression))


def async_stub(url: str, tls: TLS | None, compression: str | None) -> tuple[Channel, Stub]:
    """As `stub`, for the event loop that is running."""
    return _with_stub(_open(grpc.aio, url, tls, compression))


def _open(module: ModuleType, url: str, tls: TLS | None, compression: str | None) -> Channel:
    options, packing, target = channel_options(url, tls), COMPRESSION[compression], target_of(url)
    if tls is None:
        return module.insecure_channel(target, options=options, compression=packing)
    roots, key, chain = tls.read()
    credentials = grpc.ssl_channel_credentials(roots, key, chain)
    return module.secure_channel(target, credentials, options=options, compression=packing)


def _with_stub(channel: Channel) -> tuple[Channel, Stub]:
    return channel, service_pb2_grpc.GRPCInferenceServiceStub(channel)


def infer_request(model: str, part: Part, parameters: Mapping[str, int | str], version: str = "") -> Request:
    """A part as Triton's ModelInferRequest.

    Args:
        model: Name of the ensemble.
        part: Its rows.
        parameters: Request parameters.
        version: The only version of the ensemble that may answer; any if empty.
    """
    message = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    for name in ("query", "document"):
        message.inputs.add(name=name, datatype="BYTES", shape=(len(part.rows), 1))
    message.raw_input_contents.extend((part.queries, part.documents))
    for name in OUTPUTS:
        message.outputs.add(name=name)
    for name, value in parameters.items():
        if isinstance(value, str):
            message.parameters[name].string_param = value
        elif name != "priority":
            message.parameters[name].int64_param = value
    return Request("ModelInfer", message, priority_of(parameters))


def priority_of(parameters: Mapping[str, int | str]) -> int | None:
    """The priority among request parameters."""
    value = parameters.get("priority")
    return value if isinstance(value, int) else None


def info_request(model: str, part: Part) -> Request:
    """Ask a tokenizer model for its output `model_info`, a description of the checkpoint, with one pair."""
    request = infer_request(model, part, {})
    del request.message.outputs[:]
    request.message.outputs.add(name="model_info")
    return request


def index_request() -> Request:
    """Ask for the names of the models."""
    return Request("RepositoryIndex", service_pb2.RepositoryIndexRequest(ready=True))


def config_request(model: str) -> Request:
    """Ask for a model's configuration."""
    return Request("ModelConfig", service_pb2.ModelConfigRequest(name=model))


def set_timeout(request: Request, remaining_s: float | None) -> None:
    """Set the remaining time of the call as Triton's request parameter `timeout`, in microseconds."""
    if request.method == "ModelInfer" and remaining_s is not None:
        request.message.parameters["timeout"].int64_param = max(1, int(remaining_s * 1e6))


def set_priority(request: Request, *, begun: bool) -> None:
    """Set Triton's request parameter `priority`: two levels for each priority, the first for calls that have begun.

    `priority_level` is the same number for a model that orders its requests itself: Triton hides `priority` from it.
    Without a priority, a call that has not begun gets the server's default level, which stands for DEFAULT_PRIORITY.
    """
    if request.method == "ModelInfer" and (begun or request.priority):
        level = 2 * (request.priority or DEFAULT_PRIORITY) - begun
        for name in ("priority", "priority_level"):
            request.message.parameters[name].int64_param = level


def error_from_rpc(error: Rpc, server: str) -> RerankError:
    """The error that a failed call stands for."""
    details = error.details()
    if through_proxy(server) and "failed to connect" in (details or ""):
        details += "; http_proxy or https_proxy is set: add the server to no_proxy if it is reached directly"
    return error_from_status(error.code().name, details, server)


def steps_of(config: Message) -> list[str]:
    """Names of the ensemble's models: first the tokenizer, last the one that scores. Empty for another model."""
    return [str(step.model_name) for step in config.ensemble_scheduling.step]


def tokenizer_of(config: Message) -> str:
    """Name of the ensemble's tokenizer.

    Raises:
        UnexpectedResponseError: The model is not an ensemble.
    """
    if not config.ensemble_scheduling.step:
        raise UnexpectedResponseError(f"model {config.name!r} is not an ensemble, so it names no tokenizer")
    return steps_of(config)[0]


def encoder_of(config: Message) -> str | None:
    """The model that computes vectors for a scoring model; None if the scoring model holds the weights."""
    return str(config.parameters["encoder_model"].string_value) if "encoder_model" in config.parameters else None
