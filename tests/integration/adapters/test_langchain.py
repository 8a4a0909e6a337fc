"""LangChain: a vector store and the reranker in a ContextualCompressionRetriever."""

import asyncio
import copy
from contextlib import closing

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from support.small_corpus import SEARCHES, TEXTS, embed
from triton_rerank import InvalidRequestError, ModelNotFoundError, RerankClient
from triton_rerank.langchain import TritonRerank

pytestmark = pytest.mark.integration


class WordEmbeddings(Embeddings):
    def embed_documents(self, texts):
        return [embed(text) for text in texts]

    def embed_query(self, text):
        return embed(text)


class Recorder(BaseCallbackHandler):
    def __init__(self):
        self.runs = {}
        self.ended = {}
        self.failed = {}

    def on_chain_start(self, serialized, inputs, *, run_id, parent_run_id=None, name=None, **rest):
        self.runs[run_id] = (name, parent_run_id, inputs)

    def on_retriever_start(self, serialized, query, *, run_id, parent_run_id=None, name=None, **rest):
        self.runs[run_id] = (name, parent_run_id, query)

    def on_chain_end(self, outputs, *, run_id, **rest):
        self.ended[run_id] = outputs

    def on_chain_error(self, error, *, run_id, **rest):
        self.failed[run_id] = error

    def run(self, name):
        (run_id,) = [run_id for run_id, run in self.runs.items() if run[0] == name]
        return run_id


@pytest.fixture
def documents():
    return [Document(text, id=key, metadata={"key": key, "tags": ["a"]}) for key, text in TEXTS.items()]


@pytest.fixture
def first_stage(documents):
    store = InMemoryVectorStore(WordEmbeddings())
    store.add_documents(documents)
    return store.as_retriever(search_kwargs={"k": len(documents)})


@pytest.fixture
def reranker(server):
    with closing(TritonRerank(url=server.grpc_url)) as reranker:
        yield reranker


def awaited(reranker, call):
    """The outcome of an async call, in a loop of its own; its connections are closed."""

    async def whole():
        try:
            return await call()
        finally:
            await reranker.aclose()

    return asyncio.run(whole())


@pytest.fixture(params=["sync", "async"])
def compress(request):
    """Either twin, called the same way."""
    if request.param == "sync":
        return lambda reranker, *given: reranker.compress_documents(*given)
    return lambda reranker, *given: awaited(reranker, lambda: reranker.acompress_documents(*given))


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.best)
def test_puts_the_best_text_first(search, first_stage, reranker):
    reranker.top_n = 3
    pipeline = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=first_stage)
    assert first_stage.invoke(search.query)[0].metadata["key"] == search.trap
    found = pipeline.invoke(search.query)
    assert len(found) == 3
    assert found[0].metadata["key"] == search.best
    again = awaited(reranker, lambda: pipeline.ainvoke(search.query))
    assert [document.id for document in again] == [document.id for document in found]


def test_scores_are_the_clients(server, reranker, documents, compress):
    query = SEARCHES[0].query
    found = compress(reranker, documents, query)
    with RerankClient(server.grpc_url) as client:
        expected = client.rerank(query, list(TEXTS.values()))
    scores = [document.metadata["relevance_score"] for document in found]
    assert scores == pytest.approx([result.relevance_score for result in expected], abs=0.02)
    assert scores == sorted(scores, reverse=True)
    assert found[0].page_content == expected[0].document


def test_keeps_metadata_and_ids_and_changes_no_input(reranker, documents, compress):
    before = copy.deepcopy(documents)
    found = compress(reranker, documents, SEARCHES[0].query)
    assert documents == before
    assert len(found) == len(documents)
    for document in found:
        assert document.metadata.keys() == {"key", "tags", "relevance_score"}
        assert document.metadata["key"] == document.id
        assert document.page_content == TEXTS[document.id]


def test_options_reach_the_client(server, documents, compress):
    search = SEARCHES[1]
    with closing(TritonRerank(url=server.grpc_url, min_relevance_score=0.5)) as strict:
        assert {document.id for document in compress(strict, documents, search.query)} == search.relevant
    with closing(TritonRerank(url=[server.grpc_url], top_n=2, max_length=64, timeout=30)) as short:
        assert len(compress(short, documents, search.query)) == 2


def test_scores_the_fields_that_text_from_names(server, compress):
    search = SEARCHES[0]
    texts = [TEXTS["museum"], TEXTS[search.best], TEXTS["soup"]]
    documents = [Document("", metadata={"title": text, "page": 3}) for text in texts]
    for text_from in ("{title} (page {page})", ["title", "text"]):
        with closing(TritonRerank(url=server.grpc_url, text_from=text_from)) as reranker:
            found = compress(reranker, documents, search.query)
        assert found[0].metadata["title"] == TEXTS[search.best]
        assert found[0].page_content == ""


def test_no_documents(reranker, compress):
    assert compress(reranker, [], "anything") == []


def test_tells_callbacks_of_a_run_within_the_retrievers(first_stage, reranker):
    search = SEARCHES[0]
    pipeline = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=first_stage)
    for invoke in (
        pipeline.invoke,
        lambda *given, **named: awaited(reranker, lambda: pipeline.ainvoke(*given, **named)),
    ):
        recorder = Recorder()
        found = invoke(search.query, config={"callbacks": [recorder]})
        run_id = recorder.run("TritonRerank")
        _, parent, inputs = recorder.runs[run_id]
        assert parent == recorder.run("ContextualCompressionRetriever")
        assert inputs["query"] == search.query
        assert len(inputs["documents"]) == len(TEXTS)
        assert recorder.ended[run_id] == {"documents": found}


def test_errors_are_the_clients_and_callbacks_hear_them(server, documents, compress):
    recorder = Recorder()
    with (
        closing(TritonRerank(url=server.grpc_url, model="nobody")) as reranker,
        pytest.raises(ModelNotFoundError) as caught,
    ):
        compress(reranker, documents, "anything", [recorder])
    assert recorder.failed[recorder.run("TritonRerank")] is caught.value
    with closing(TritonRerank(url=server.grpc_url)) as reranker, pytest.raises(InvalidRequestError, match="query"):
        compress(reranker, documents, "half a pair: \ud83d")


def test_goes_through_json(server, documents):
    before = TritonRerank(
        url=[server.grpc_url],
        top_n=2,
        min_relevance_score=0.01,
        timeout=30,
        text_from="{key}: {text}",
        metadata={"authorization": "Bearer secret-token"},
    )
    assert isinstance(before, BaseDocumentCompressor)
    written = before.model_dump_json()
    for shown in (written, repr(before), str(before), str(before.model_dump())):
        assert "secret-token" not in shown
    after = TritonRerank.model_validate_json(written)
    assert after == before.model_copy(update={"metadata": None})
    query = SEARCHES[0].query
    with closing(before), closing(after):
        assert before.compress_documents(documents, query) == after.compress_documents(documents, query)


def test_works_on_after_closing_and_in_another_loop(reranker, documents):
    query = SEARCHES[0].query
    first = reranker.compress_documents(documents, query)
    for _ in range(2):
        reranker.close()
        assert [document.id for document in reranker.compress_documents(documents, query)] == [d.id for d in first]
        found = asyncio.run(reranker.acompress_documents(documents, query))  # nobody closes: the loop is gone
        assert [document.id for document in found] == [document.id for document in first]
