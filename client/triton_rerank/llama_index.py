"""A node postprocessor for LlamaIndex.

from triton_rerank.llama_index import TritonRerank

reranker = TritonRerank(url="localhost:8001", top_n=5)
engine = index.as_query_engine(similarity_top_k=100, node_postprocessors=[reranker])

It is told to LlamaIndex's instrumentation and callbacks like its own rerankers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

try:
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
    from llama_index_instrumentation import get_dispatcher
except ImportError as _error:
    raise ImportError('llama-index-core is not installed; run: pip install "triton-rerank[llama-index]"') from _error

from triton_rerank.errors import InvalidRequestError
from triton_rerank.integrations.order import Order, rerank, rerank_async
from triton_rerank.integrations.settings import RerankSettings

__all__ = ["TritonRerank"]

_dispatcher = get_dispatcher(__name__)


class TritonRerank(RerankSettings, BaseNodePostprocessor):
    """Reranks nodes with a cross-encoder that Triton serves.

    The result holds the nodes, most relevant first, each with its score, 0 to 1, in `NodeWithScore.score`. What
    came in is not changed. An empty query returns the nodes in their order. Errors are those of `RerankClient`; see
    `on_error`.
    """

    metadata_mode: MetadataMode = MetadataMode.EMBED
    """Metadata that precedes a node's text in the scored text. The default is that of LlamaIndex's own rerankers: all
    but `excluded_embed_metadata_keys`. `MetadataMode.NONE` scores the text only."""

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex serializes."""
        return "TritonRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query(query_bundle)
        with self._events(nodes, query) as found:
            order = rerank(self._client, query, self._prepare(nodes), self.on_error, self._options())
            found.extend(_build(nodes, order))
        return found

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query(query_bundle)
        with self._events(nodes, query) as found:
            order = await rerank_async(self._async_client, query, self._prepare(nodes), self.on_error, self._options())
            found.extend(_build(nodes, order))
        return found

    def _prepare(self, nodes: Sequence[NodeWithScore]) -> list[str]:
        return [node.node.get_content(metadata_mode=self.metadata_mode) for node in nodes]

    @contextmanager
    def _events(self, nodes: list[NodeWithScore], query: str) -> Iterator[list[NodeWithScore]]:
        """Send LlamaIndex's events at the start and end of a call; the block fills the list with its result."""
        found: list[NodeWithScore] = []
        wanted = len(nodes) if self.top_n is None else self.top_n
        _dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=wanted, model_name=self.model))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: wanted,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            yield found
            event.on_end(payload={EventPayload.NODES: found})
        _dispatcher.event(ReRankEndEvent(nodes=found))


def _query(query_bundle: QueryBundle | None) -> str:
    if query_bundle is None:
        raise InvalidRequestError("the query is missing; pass query_str or query_bundle")
    return query_bundle.query_str


def _build(nodes: Sequence[NodeWithScore], order: Order) -> list[NodeWithScore]:
    return [
        nodes[index] if score is None else nodes[index].model_copy(update={"score": score}) for index, score in order
    ]
