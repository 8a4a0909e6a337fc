"""Rerank documents with a cross-encoder served by NVIDIA Triton.

from triton_rerank import RerankClient

with RerankClient("localhost:8001") as client:
    for result in client.rerank("如何预防流感？", ["Wash your hands often.", "Stocks fell today."], top_n=5):
        print(result.rank, f"{result.relevance_score:.3f}", result.document)
"""

from triton_rerank.async_client import AsyncRerankClient
from triton_rerank.client import RerankClient
from triton_rerank.errors import (
    ClientStateError,
    InferenceError,
    InvalidRequestError,
    ModelNotFoundError,
    RequestCancelledError,
    RequestTimeoutError,
    RerankError,
    ServerOverloadedError,
    ServerUnavailableError,
    UnexpectedResponseError,
)
from triton_rerank.transport.connection import TLS, MetadataSource
from triton_rerank.types import (
    CallOptions,
    Cascade,
    Chunk,
    Document,
    DocumentLike,
    LongDocuments,
    ModelInfo,
    RerankResponse,
    RerankResult,
    Stage,
    TextFrom,
    Timing,
    Usage,
)

__version__ = "0.2.0"

__all__ = [
    "TLS",
    "AsyncRerankClient",
    "CallOptions",
    "Cascade",
    "Chunk",
    "ClientStateError",
    "Document",
    "DocumentLike",
    "InferenceError",
    "InvalidRequestError",
    "LongDocuments",
    "MetadataSource",
    "ModelInfo",
    "ModelNotFoundError",
    "RequestCancelledError",
    "RequestTimeoutError",
    "RerankClient",
    "RerankError",
    "RerankResponse",
    "RerankResult",
    "ServerOverloadedError",
    "ServerUnavailableError",
    "Stage",
    "TextFrom",
    "Timing",
    "UnexpectedResponseError",
    "Usage",
    "__version__",
]
