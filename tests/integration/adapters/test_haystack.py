"""Haystack: BM25 and the ranker in a Pipeline."""

import asyncio
import copy
import json
from contextlib import closing

import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret

from support.small_corpus import SEARCHES, TEXTS
from triton_rerank import TLS, InvalidRequestError, ModelNotFoundError, RerankClient
from triton_rerank.haystack import TritonRanker

pytestmark = pytest.mark.integration


@pytest.fixture
def documents():
    return [Document(id=key, content=text, meta={"key": key}) for key, text in TEXTS.items()]


@pytest.fixture
def first_stage(documents):
    store = InMemoryDocumentStore()
    store.write_documents(documents)
    yield InMemoryBM25Retriever(store, top_k=len(documents))
    store.shutdown()


@pytest.fixture
def ranker(server):
    with closing(TritonRanker(url=server.grpc_url)) as ranker:
        yield ranker


def pipeline_of(first_stage, ranker):
    pipeline = Pipeline()
    pipeline.add_component("retriever", first_stage)
    pipeline.add_component("ranker", ranker)
    pipeline.connect("retriever.documents", "ranker.documents")
    return pipeline


def awaited(component, call):
    """The outcome of an async call, in a loop of its own; the component's connections are closed."""

    async def whole():
        try:
            return await call()
        finally:
            await component.close_async()

    return asyncio.run(whole())


@pytest.fixture(params=["sync", "async"])
def run(request):
    """Either twin, called the same way."""
    if request.param == "sync":
        return lambda ranker, *given, **named: ranker.run(*given, **named)["documents"]
    return lambda ranker, *given, **named: awaited(ranker, lambda: ranker.run_async(*given, **named))["documents"]


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.best)
def test_puts_the_best_text_first(search, first_stage, ranker):
    pipeline = pipeline_of(first_stage, ranker)
    given = {"retriever": {"query": search.query}, "ranker": {"query": search.query, "top_k": 3}}
    assert first_stage.run(search.query)["documents"][0].id == search.trap
    found = pipeline.run(given)["ranker"]["documents"]
    assert 0 < len(found) <= 3
    assert found[0].id == search.best
    again = awaited(pipeline, lambda: pipeline.run_async(given))["ranker"]["documents"]
    assert [document.id for document in again] == [document.id for document in found]
    pipeline.close()


def test_scores_are_the_clients(server, ranker, documents, run):
    query = SEARCHES[0].query
    found = run(ranker, query, documents)
    with RerankClient(server.grpc_url) as client:
        expected = client.rerank(query, list(TEXTS.values()))
    scores = [document.score for document in found]
    assert scores == pytest.approx([result.relevance_score for result in expected], abs=0.02)
    assert scores == sorted(scores, reverse=True)
    assert found[0].content == expected[0].document


def test_keeps_meta_and_changes_no_input(ranker, documents, run):
    before = copy.deepcopy(documents)
    found = run(ranker, SEARCHES[0].query, documents)
    assert documents == before
    assert {document.id: (document.meta, document.content) for document in found} == {
        document.id: (document.meta, document.content) for document in documents
    }


def test_options_reach_the_client(server, documents, run):
    search = SEARCHES[1]
    with closing(TritonRanker(url=server.grpc_url, min_relevance_score=0.5)) as strict:
        assert {document.id for document in run(strict, search.query, documents)} == search.relevant
    with closing(TritonRanker(url=[server.grpc_url], top_k=2, max_length=64, timeout=30)) as short:
        assert len(run(short, search.query, documents)) == 2
        assert len(run(short, search.query, documents, top_k=3)) == 3
    with closing(TritonRanker(url=server.grpc_url, top_k=None)) as every:
        assert len(run(every, search.query, documents * 2)) == len(documents)  # each document once


def test_scores_the_meta_fields_that_are_named(server, run):
    search = SEARCHES[0]
    texts = [TEXTS["museum"], TEXTS[search.best], TEXTS["soup"]]
    documents = [Document(meta={"title": text, "page": 0, "author": None}) for text in texts]
    with closing(TritonRanker(url=server.grpc_url, meta_fields_to_embed=["title", "page", "author"])) as ranker:
        found = run(ranker, search.query, documents)
    assert found[0].meta["title"] == TEXTS[search.best]


def test_no_documents(ranker, run):
    assert run(ranker, "anything", []) == []


def test_errors_are_the_clients(server, documents, run):
    with closing(TritonRanker(url=server.grpc_url, model="nobody")) as ranker, pytest.raises(ModelNotFoundError):
        run(ranker, "anything", documents)
    with closing(TritonRanker(url=server.grpc_url)) as ranker:
        with pytest.raises(InvalidRequestError, match="query"):
            run(ranker, "half a pair: \ud83d", documents)
        with pytest.raises(InvalidRequestError, match="top_k is 0"):
            run(ranker, "anything", documents, top_k=0)


@pytest.mark.parametrize(
    "unusable",
    [{"top_k": -1}, {"max_length": 0}, {"timeout": 0}, {"min_relevance_score": 2}, {"metadata": {"key": "a token"}}],
    ids=lambda unusable: next(iter(unusable)),
)
def test_refuses_unusable_settings(unusable):
    (name,) = unusable
    with pytest.raises(InvalidRequestError, match=name):
        TritonRanker(**unusable)


def test_pipeline_goes_through_yaml(server, documents, first_stage, monkeypatch):
    monkeypatch.setenv("RERANK_AUTHORIZATION", "Bearer secret-token")
    ranker = TritonRanker(
        url=[server.grpc_url],
        top_k=2,
        min_relevance_score=0.01,
        meta_fields_to_embed=["key"],
        timeout=30,
        metadata={"authorization": Secret.from_env_var("RERANK_AUTHORIZATION")},
    )
    before = pipeline_of(first_stage, ranker)
    written = before.dumps()
    assert "secret-token" not in written
    after = Pipeline.loads(written, allowed_modules=["triton_rerank.haystack"])
    assert after.to_dict() == before.to_dict()
    loaded = after.get_component("ranker")
    query = SEARCHES[0].query
    with closing(ranker), closing(loaded):
        assert loaded.run(query, documents) == ranker.run(query, documents)
    after.get_component("retriever").document_store.shutdown()


def test_secrets_are_never_written():
    with pytest.raises(ValueError, match="Cannot serialize token-based secret"):
        TritonRanker(metadata={"authorization": Secret.from_token("secret-token")}).to_dict()
    ranker = TritonRanker(tls=TLS("roots.pem", private_key=b"secret-key", certificate_chain="chain.pem"))
    assert "secret-key" not in json.dumps(ranker.to_dict())
    assert ranker.to_dict()["init_parameters"]["tls"] == {
        "root_certificates": "roots.pem",
        "certificate_chain": "chain.pem",
    }
    assert TritonRanker.from_dict(ranker.to_dict()).tls == TLS("roots.pem", certificate_chain="chain.pem")


def test_works_on_after_closing_and_in_another_loop(ranker, documents):
    query = SEARCHES[0].query
    first = [document.id for document in ranker.run(query, documents)["documents"]]
    for _ in range(2):
        ranker.close()
        assert [document.id for document in ranker.run(query, documents)["documents"]] == first
        found = asyncio.run(ranker.run_async(query, documents))["documents"]  # nobody closes: the loop is gone
        assert [document.id for document in found] == first
