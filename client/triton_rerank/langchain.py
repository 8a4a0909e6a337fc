"""A document compressor for LangChain.

from langchain_classic.retrievers import ContextualCompressionRetriever
from triton_rerank.langchain import TritonRerank

reranker = TritonRerank(url="localhost:8001", top_n=5)
retriever = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=first_stage)
documents = retriever.invoke("如何预防流感？")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

try:
    from langchain_core.callbacks import AsyncCallbackManager, CallbackManager, Callbacks
    from langchain_core.documents import BaseDocumentCompressor
    from langchain_core.documents import Document as LangChainDocument
except ImportError as _error:
    raise ImportError('langchain-core is not installed; run: pip install "triton-rerank[langchain]"') from _error

from triton_rerank.integrations.order import Order, rerank, rerank_async
from triton_rerank.integrations.settings import RerankSettings
from triton_rerank.types import Document

__all__ = ["TritonRerank"]

_NAME = "TritonRerank"


class TritonRerank(RerankSettings, BaseDocumentCompressor):
    """Reranks documents with a cross-encoder that Triton serves.

    The result holds copies, most relevant first; each has its score, 0 to 1, in
    `metadata["relevance_score"]`. An empty query returns the documents in their order, without scores. LangChain's
    callbacks see a call as a run named "TritonRerank". Errors are those of `RerankClient`; see `on_error`.
    """

    text_from: str | list[str] | None = None
    """The scored text: the page content if None; else a template such as "{title}: {text}", or names of fields
    joined by newlines. Fields are those of the metadata, "text" (the page content) and "id"."""

    def compress_documents(
        self, documents: Sequence[LangChainDocument], query: str, callbacks: Callbacks = None
    ) -> list[LangChainDocument]:
        """Order documents by relevance to a query, most relevant first.

        Args:
            documents: Candidates of a first stage. They are not changed.
            query: The search text.
            callbacks: LangChain's callbacks, or the manager that a retriever passes.

        Raises:
            RerankError: See `RerankClient.rerank`.
        """
        manager = CallbackManager.configure(inheritable_callbacks=callbacks)
        run = manager.on_chain_start({}, {"query": query, "documents": documents}, name=_NAME)
        try:
            order = rerank(self._client, query, _prepare(documents), self.on_error, self._options())
        except BaseException as error:
            run.on_chain_error(error)
            raise
        found = _build(documents, order)
        run.on_chain_end({"documents": found})
        return found

    async def acompress_documents(
        self, documents: Sequence[LangChainDocument], query: str, callbacks: Callbacks = None
    ) -> list[LangChainDocument]:
        """`compress_documents`, awaited. Cancelling it cancels its requests on the server."""
        manager = AsyncCallbackManager.configure(inheritable_callbacks=callbacks)
        run = await manager.on_chain_start({}, {"query": query, "documents": documents}, name=_NAME)
        try:
            order = await rerank_async(self._async_client, query, _prepare(documents), self.on_error, self._options())
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        found = _build(documents, order)
        await run.on_chain_end({"documents": found})
        return found

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "text_from": self.text_from}


def _prepare(documents: Sequence[LangChainDocument]) -> list[Document]:
    return [Document(document.page_content, document.id, document.metadata) for document in documents]


def _build(documents: Sequence[LangChainDocument], order: Order) -> list[LangChainDocument]:
    return [_scored(documents[index], score) for index, score in order]


def _scored(document: LangChainDocument, relevance_score: float | None) -> LangChainDocument:
    if relevance_score is None:
        return document
    return document.model_copy(update={"metadata": {**document.metadata, "relevance_score": relevance_score}})
