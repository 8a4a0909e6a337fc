"""The only module that touches gRPC and tritonclient: imported when a client is made, as it loads slowly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from triton_rerank.errors import RerankError, UnexpectedResponseError, error_from_status
from triton_rerank.ranking.batching import Part
from triton_rerank.transport.connection import TLS, channel_options
from triton_rerank.transport.untyped import Channel, Message, Rpc, Stub

OUTPUTS = ("logits", "num_tokens", "truncated")
COMPRESSION = {None: None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}

DEFAULT_PRIORITY = 2
"""Of calls that say nothing, in the server's configs."""

RpcError = grpc.RpcError


@dataclass(frozen=True, slots=True)
class Request:
    """A message and the remote procedure that takes it."""

    method: str
    message: Message
    priority: int | None = None


def stub(url: str, tls: TLS | None, compression: str | None) -> tuple[Channel, Stub]:
    """A channel to one server, and Triton's procedures on it."""
    return _with_stub(_open(grpc, url, tls, compression))


def async_stub(url: str, tls: TLS | None, compression: str | None) -> tuple[Channel, Stub]:
    """As `stub`, for the event loop that is running."""
    return _with_stub(_open(grpc.aio, url, tls, compression))


def _open(module: ModuleType, url: str, tls: TLS | None, compression: str | None) -> Channel:
    options, packing = channel_options(url), COMPRESSION[compression]
    if tls is None:
        return module.insecure_channel(url, options=options, compression=packing)
    roots, key, chain = tls.read()
    credentials = grpc.ssl_channel_credentials(roots, key, chain)
    return module.secure_channel(url, credentials, options=options, compression=packing)


def _with_stub(channel: Channel) -> tuple[Channel, Stub]:
    return channel, service_pb2_grpc.GRPCInferenceServiceStub(channel)


def infer_request(model: str, part: Part, parameters: Mapping[str, int]) -> Request:
    """A part as Triton's ModelInferRequest."""
    message = service_pb2.ModelInferRequest(model_name=model)
    for name in ("query", "document"):
        message.inputs.add(name=name, datatype="BYTES", shape=(len(part.rows), 1))
    message.raw_input_contents.extend((part.queries, part.documents))
    for name in OUTPUTS:
        message.outputs.add(name=name)
    for name, value in parameters.items():
        if name != "priority":
            message.parameters[name].int64_param = value
    return Request("ModelInfer", message, parameters.get("priority"))


def info_request(model: str, part: Part) -> Request:
    """Ask a tokenizer model what it knows of the checkpoint: its output `model_info`, for one pair."""
    request = infer_request(model, part, {})
    del request.message.outputs[:]
    request.message.outputs.add(name="model_info")
    return request


def config_request(model: str) -> Request:
    """Ask for a model's configuration."""
    return Request("ModelConfig", service_pb2.ModelConfigRequest(name=model))


def set_timeout(request: Request, remaining_s: float | None) -> None:
    """Tell Triton how long somebody waits for this request, in its own parameter, microseconds."""
    if request.method == "ModelInfer" and remaining_s is not None:
        request.message.parameters["timeout"].int64_param = max(1, int(remaining_s * 1e6))


def set_priority(request: Request, *, begun: bool) -> None:
    """Tell Triton whose turn it is, in its own parameter: two levels for each priority, the first for calls begun.

    The level of a call that says nothing and has not begun is the server's default, which stands for DEFAULT_PRIORITY.
    """
    if request.method == "ModelInfer" and (begun or request.priority):
        level = 2 * (request.priority or DEFAULT_PRIORITY) - begun
        request.message.parameters["priority"].int64_param = level


def error_from_rpc(error: Rpc, server: str) -> RerankError:
    """The error that a failed call stands for."""
    return error_from_status(error.code().name, error.details(), server)


def steps_of(config: Message) -> list[str]:
    """Names of the ensemble's models: first the tokenizer, last the one that scores.

    Raises:
        UnexpectedResponseError: The model is no ensemble.
    """
    steps = config.ensemble_scheduling.step
    if not steps:
        raise UnexpectedResponseError(f"model {config.name!r} is no ensemble, so it names no tokenizer")
    return [str(step.model_name) for step in steps]


def encoder_of(config: Message) -> str | None:
    """The model that a scoring model asks for vectors, as it says itself; None for one that holds the weights."""
    return str(config.parameters["encoder_model"].string_value) if "encoder_model" in config.parameters else None
