"""A document compressor for LangChain.

from langchain_classic.retrievers import ContextualCompressionRetriever
from triton_rerank.langchain import TritonRerank

reranker = TritonRerank(url="localhost:8001", top_n=5)
retriever = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=first_stage)
documents = retriever.invoke("如何预防流感？")
"""

from __future__ import annotations

from collections.abc import Sequence

try:
    from langchain_core.callbacks import AsyncCallbackManager, CallbackManager, Callbacks
    from langchain_core.documents import BaseDocumentCompressor
    from langchain_core.documents import Document as LangChainDocument
except ImportError as _error:
    raise ImportError('langchain-core is not installed; run: pip install "triton-rerank[langchain]"') from _error

from triton_rerank.integrations.settings import RerankSettings
from triton_rerank.types import Document, RerankResponse

__all__ = ["TritonRerank"]

_NAME = "TritonRerank"


class TritonRerank(RerankSettings, BaseDocumentCompressor):
    """Reranks documents with a cross-encoder that Triton serves.

    The result holds copies, most relevant first; each has its score, 0 to 1, in
    `metadata["relevance_score"]`. A call is told to LangChain's callbacks as a run of its own, named
    "TritonRerank". Errors are those of `RerankClient`.
    """

    text_from: str | list[str] | None = None
    """What is scored: the page content if None; else a template such as "{title}: {text}", or names of fields
    to join by newlines. Fields are those of the metadata, "text" (the page content) and "id"."""

    def compress_documents(
        self, documents: Sequence[LangChainDocument], query: str, callbacks: Callbacks = None
    ) -> list[LangChainDocument]:
        """Order documents by relevance to a query, most relevant first.

        Args:
            documents: What a first stage found. They are not changed.
            query: What was searched for.
            callbacks: LangChain's callbacks, or the manager that a retriever hands on.

        Raises:
            RerankError: See `RerankClient.rerank`.
        """
        manager = CallbackManager.configure(inheritable_callbacks=callbacks)
        run = manager.on_chain_start({}, {"query": query, "documents": documents}, name=_NAME)
        try:
            response = self._client().rerank(query, _prepare(documents), text_from=self.text_from, **self._options())
        except BaseException as error:
            run.on_chain_error(error)
            raise
        found = _build(documents, response)
        run.on_chain_end({"documents": found})
        return found

    async def acompress_documents(
        self, documents: Sequence[LangChainDocument], query: str, callbacks: Callbacks = None
    ) -> list[LangChainDocument]:
        """`compress_documents`, awaited. Cancelling it cancels its requests on the server."""
        manager = AsyncCallbackManager.configure(inheritable_callbacks=callbacks)
        run = await manager.on_chain_start({}, {"query": query, "documents": documents}, name=_NAME)
        try:
            response = await self._async_client().rerank(
                query, _prepare(documents), text_from=self.text_from, **self._options()
            )
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        found = _build(documents, response)
        await run.on_chain_end({"documents": found})
        return found


def _prepare(documents: Sequence[LangChainDocument]) -> list[Document]:
    return [Document(document.page_content, document.id, document.metadata) for document in documents]


def _build(documents: Sequence[LangChainDocument], response: RerankResponse) -> list[LangChainDocument]:
    return [_scored(documents[result.index], result.relevance_score) for result in response]


def _scored(document: LangChainDocument, relevance_score: float) -> LangChainDocument:
    return document.model_copy(update={"metadata": {**document.metadata, "relevance_score": relevance_score}})
