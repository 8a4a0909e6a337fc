"""A ranker component for Haystack.

from triton_rerank.haystack import TritonRanker

pipeline.add_component("ranker", TritonRanker(url="localhost:8001", top_k=5))
pipeline.connect("retriever.documents", "ranker.documents")

`pipeline.close()` and `close_async()` close its connections. Haystack 3 loads a pipeline only from modules that
it is told to trust: `Pipeline.loads(text, allowed_modules=["triton_rerank.haystack"])`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import Secret
except ImportError as _error:
    raise ImportError('haystack-ai is not installed; run: pip install "triton-rerank[haystack]"') from _error

from triton_rerank.async_client import AsyncRerankClient
from triton_rerank.client import RerankClient
from triton_rerank.errors import InvalidRequestError
from triton_rerank.integrations.clients import Clients, tls_to_dict
from triton_rerank.integrations.order import OnError, Order, check_on_error, rerank, rerank_async
from triton_rerank.ranking.validation import (
    check_cascade,
    check_length,
    check_optional_int,
    check_priority,
    check_query_length,
    check_relevance_score,
    check_timeout,
    kind_of,
    renamed_request_size,
)
from triton_rerank.transport.connection import TLS
from triton_rerank.types import Cascade, LongDocuments

__all__ = ["TritonRanker"]


@component
class TritonRanker:
    """Ranks documents with a cross-encoder that Triton serves.

    The result holds copies, most relevant first, each with its score, 0 to 1, in `Document.score`. Of documents with
    one id, the copy with the higher score is ranked. An empty query returns the documents in their order. Arguments
    are those of `RerankClient` and its `rerank`; `top_n` is called `top_k`, as in Haystack's other rankers.
    Errors are those of `RerankClient` too.

    Args:
        url: "host:port" of Triton's gRPC endpoint, a list of them, or "dns:///name:port".
        model: Name of the ensemble in Triton.
        top_k: How many documents to return; all of them if None.
        max_length: Tokens of a query and document together after truncation; the server's default if None.
        query_max_length: Tokens of the query after truncation; three quarters of `max_length` if None. 0 cuts the
            longer of query and document first.
        min_relevance_score: Leave out documents whose relevance score is below it, before `top_k` is taken.
        long_documents: "truncate" or "chunk": whether a document beyond `max_length` is truncated, or scored in chunks.
        priority: Priority of the requests in the server's queue, 1 the highest; the server's default if None.
        cascade: Rank in two stages: late interaction orders all documents, and `model` scores the best of them: a
            number, a share as a float, or a `Cascade`. The result holds those that `model` scored.
        meta_fields_to_embed: Metadata to put before a document's content in what is scored.
        meta_data_separator: What stands between them.
        timeout: Seconds for a whole call, retries included; None for no limit.
        max_retries: Retries of a request after an overload or a connection failure.
        pairs_per_request: Pairs in one request at most; as many as suit the server if None.
        tls: True for gRPC's bundled root certificates, or a `TLS`. Serialization writes paths, never PEM bytes.
        metadata: gRPC metadata as secrets: {"authorization": Secret.from_env_var("RERANK_AUTHORIZATION")}.
            Haystack serializes the variable's name, and refuses to serialize Secret.from_token.
        compression: "gzip", "deflate" or None: compression of messages to the server.
        on_error: What follows when the server can't rank: "raise" the client's error, or "keep_order": the first
            `top_k` documents as they came in, and a warning in the log. An invalid request raises its error in both.
        request_size: Deprecated name of `pairs_per_request`.

    Raises:
        InvalidRequestError: An argument is unusable.
    """

    def __init__(
        self,
        url: str | list[str] = "localhost:8001",
        model: str = "reranker",
        top_k: int | None = 10,
        *,
        max_length: int | None = None,
        query_max_length: int | None = None,
        min_relevance_score: float | None = None,
        long_documents: LongDocuments = "truncate",
        priority: int | None = None,
        cascade: int | float | Cascade | None = None,
        meta_fields_to_embed: list[str] | None = None,
        meta_data_separator: str = "\n",
        timeout: float | None = 60.0,
        max_retries: int = 2,
        pairs_per_request: int | None = None,
        tls: bool | TLS = False,
        metadata: dict[str, Secret] | None = None,
        compression: str | None = None,
        on_error: OnError = "raise",
        request_size: int | None = None,
    ) -> None:
        if request_size is not None:
            pairs_per_request = renamed_request_size(request_size)
        self.url = url
        self.model = model
        self.top_k: int | None = _check_top_k(top_k)
        self.max_length: int | None = check_length(max_length, "max_length")
        self.query_max_length: int | None = check_query_length(query_max_length)
        self.min_relevance_score: float | None = check_relevance_score(min_relevance_score)
        self.long_documents = long_documents
        self.priority: int | None = check_priority(priority)
        self.cascade: Cascade | None = check_cascade(cascade)
        self.meta_fields_to_embed: list[str] = list(meta_fields_to_embed or [])
        self.meta_data_separator = meta_data_separator
        self.timeout: float | None = check_timeout(timeout)
        self.max_retries = max_retries
        self.pairs_per_request = pairs_per_request
        self.tls = tls
        self.metadata: dict[str, Secret] = _check_secrets(metadata or {})
        self.compression = compression
        self.on_error = check_on_error(on_error)
        self._clients = Clients()

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401  # of any setting
        if "_clients" in vars(self):
            self._clients.check_change(name)
        object.__setattr__(self, name, value)  # Haystack's decorator makes the class anew, which breaks super()

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """Order documents by relevance to a query, most relevant first.

        Args:
            query: The search text.
            documents: Candidates of a first stage. They are not changed.
            top_k: How many documents to return; the component's `top_k` if None.

        Returns:
            {"documents": [...]}.

        Raises:
            RerankError: See `RerankClient.rerank`.
        """
        documents = _without_duplicates(documents)
        order = rerank(self._client, query, self._prepare(documents), self.on_error, self._options(top_k))
        return _build(documents, order)

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """`run`, awaited. Cancelling it cancels its requests on the server."""
        documents = _without_duplicates(documents)
        texts, options = self._prepare(documents), self._options(top_k)
        return _build(documents, await rerank_async(self._async_client, query, texts, self.on_error, options))

    def close(self) -> None:
        """Close the connections of synchronous calls. A later call opens new ones."""
        self._clients.close()

    async def close_async(self) -> None:
        """Close the connections of synchronous calls and those of this event loop."""
        await self._clients.aclose()

    def to_dict(self) -> dict[str, Any]:
        """The component as plain values.

        Raises:
            ValueError: A secret was made with Secret.from_token, which Haystack does not serialize.
        """
        settings: dict[str, Any] = default_to_dict(
            self,
            url=self.url,
            model=self.model,
            top_k=self.top_k,
            max_length=self.max_length,
            query_max_length=self.query_max_length,
            min_relevance_score=self.min_relevance_score,
            long_documents=self.long_documents,
            priority=self.priority,
            cascade=None if self.cascade is None else asdict(self.cascade),
            meta_fields_to_embed=self.meta_fields_to_embed,
            meta_data_separator=self.meta_data_separator,
            timeout=self.timeout,
            max_retries=self.max_retries,
            pairs_per_request=self.pairs_per_request,
            tls=tls_to_dict(self.tls),
            metadata={key: secret.to_dict() for key, secret in self.metadata.items()},
            compression=self.compression,
            on_error=self.on_error,
        )
        return settings

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TritonRanker:
        """Create a component from the output of `to_dict`."""
        settings = dict(data.get("init_parameters", {}))
        if isinstance(settings.get("tls"), dict):
            settings["tls"] = TLS(**settings["tls"])
        if isinstance(settings.get("cascade"), dict):
            settings["cascade"] = Cascade(**settings["cascade"])
        secrets = settings.get("metadata") or {}
        settings["metadata"] = {key: Secret.from_dict(secret) for key, secret in secrets.items()}
        ranker: TritonRanker = default_from_dict(cls, {**data, "init_parameters": settings})
        return ranker

    def _client(self) -> RerankClient:
        return self._clients.get(self._connection)

    def _async_client(self) -> AsyncRerankClient:
        return self._clients.get_async(self._connection)

    def _connection(self) -> dict[str, Any]:
        secrets = {key: secret.resolve_value() for key, secret in self.metadata.items()}
        return {
            "url": self.url,
            "model": self.model,
            "timeout": None,  # each call passes its own
            "max_retries": self.max_retries,
            "pairs_per_request": self.pairs_per_request,
            "tls": self.tls,
            "metadata": {key: value for key, value in secrets.items() if value is not None},
            "compression": self.compression,
        }

    def _options(self, top_k: int | None) -> dict[str, Any]:
        return {
            "top_n": self.top_k if top_k is None else _check_top_k(top_k),
            "max_length": self.max_length,
            "query_max_length": self.query_max_length,
            "min_relevance_score": self.min_relevance_score,
            "long_documents": self.long_documents,
            "priority": self.priority,
            "cascade": self.cascade,
            "timeout": self.timeout,
        }

    def _prepare(self, documents: Sequence[Document]) -> list[str]:
        return [self._text(document) for document in documents]

    def _text(self, document: Document) -> str:
        values = (document.meta.get(field) for field in self.meta_fields_to_embed)
        fields = [str(value) for value in values if value is not None and value != ""]
        return self.meta_data_separator.join([*fields, document.content or ""])


def _without_duplicates(documents: Sequence[Document]) -> list[Document]:
    """One document for each id, the copy with the higher score, as Haystack's own rankers do."""
    best: dict[str, Document] = {}
    for document in documents:
        known = best.get(document.id)
        if known is None or _score(document) > _score(known):
            best[document.id] = document
    return list(best.values())


def _score(document: Document) -> float:
    return -math.inf if document.score is None else document.score


def _build(documents: Sequence[Document], order: Order) -> dict[str, list[Document]]:
    found = [documents[index] if score is None else replace(documents[index], score=score) for index, score in order]
    return {"documents": found}


def _check_top_k(top_k: int | None) -> int | None:
    return check_optional_int(top_k, "top_k", remedy="pass 1 or more, or None for all documents")


def _check_secrets(metadata: Mapping[str, Secret]) -> dict[str, Secret]:
    for key, value in metadata.items():
        if not isinstance(value, Secret):
            raise InvalidRequestError(
                f"metadata[{key!r}] is not a Secret (got {kind_of(value)}); "
                "pass Secret.from_env_var(name) from haystack.utils"
            )
    return dict(metadata)
