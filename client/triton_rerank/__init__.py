"""Rerank documents with a cross-encoder served by NVIDIA Triton.

from triton_rerank import RerankClient

with RerankClient("localhost:8001") as client:
    for result in client.rerank("如何预防流感？", ["Wash your hands often.", "Stocks fell today."], top_n=5):
        print(result.rank, f"{result.relevance_score:.3f}", result.document)
"""

from triton_rerank.async_client import AsyncRerankClient
from triton_rerank.client import RerankClient
from triton_rerank.errors import (
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
from triton_rerank.transport.connection import TLS
from triton_rerank.types import Chunk, Document, DocumentLike, ModelInfo, RerankResponse, RerankResult, Timing, Usage

__version__ = "0.1.0"

__all__ = [
    "TLS",
    "AsyncRerankClient",
    "Chunk",
    "Document",
    "DocumentLike",
    "InferenceError",
    "InvalidRequestError",
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
    "Timing",
    "UnexpectedResponseError",
    "Usage",
    "__version__",
]
