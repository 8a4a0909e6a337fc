"""LlamaIndex: a vector index and the reranker in a query engine."""

import asyncio
import copy
from contextlib import closing

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index_instrumentation import get_dispatcher
from pydantic import PrivateAttr

from support.small_corpus import SEARCHES, TEXTS, embed
from triton_rerank import InvalidRequestError, ModelNotFoundError, RerankClient
from triton_rerank.llama_index import TritonRerank

pytestmark = pytest.mark.integration


class WordEmbedding(BaseEmbedding):
    def _get_text_embedding(self, text):
        return embed(text)

    def _get_query_embedding(self, query):
        return embed(query)

    async def _aget_query_embedding(self, query):
        return embed(query)


class Recorder(BaseEventHandler):
    _events: list = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls):
        return "Recorder"

    def handle(self, event, **rest):
        if isinstance(event, (ReRankStartEvent, ReRankEndEvent)):
            self._events.append(event)


@pytest.fixture
def nodes():
    return [TextNode(text=text, id_=key, metadata={"key": key}) for key, text in TEXTS.items()]


@pytest.fixture
def found_first(nodes):
    return [NodeWithScore(node=node, score=0.5) for node in nodes]


@pytest.fixture
def first_stage(nodes):
    for node in nodes:
        node.excluded_embed_metadata_keys = ["key"]
    index = VectorStoreIndex(nodes, embed_model=WordEmbedding())
    return index.as_retriever(similarity_top_k=len(nodes))


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
def postprocess(request):
    """Either twin, called the same way."""
    if request.param == "sync":
        return lambda reranker, nodes, query: reranker.postprocess_nodes(nodes, query_str=query)
    return lambda reranker, nodes, query: awaited(reranker, lambda: reranker.apostprocess_nodes(nodes, query_str=query))


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.best)
def test_puts_the_best_text_first(search, first_stage, reranker):
    reranker.top_n = 3
    engine = RetrieverQueryEngine(first_stage, NoText(llm=MockLLM()), node_postprocessors=[reranker])
    assert first_stage.retrieve(search.query)[0].node_id == search.trap
    found = engine.query(search.query).source_nodes
    assert len(found) == 3
    assert found[0].node_id == search.best
    again = awaited(reranker, lambda: engine.aquery(search.query)).source_nodes
    assert [node.node_id for node in again] == [node.node_id for node in found]


def test_scores_are_the_clients(server, reranker, found_first, postprocess):
    reranker.metadata_mode = MetadataMode.NONE
    query = SEARCHES[0].query
    found = postprocess(reranker, found_first, query)
    with RerankClient(server.grpc_url) as client:
        expected = client.rerank(query, list(TEXTS.values()))
    scores = [node.score for node in found]
    assert scores == pytest.approx([result.relevance_score for result in expected], abs=0.02)
    assert scores == sorted(scores, reverse=True)
    assert found[0].text == expected[0].document


def test_keeps_nodes_and_changes_no_input(reranker, found_first, postprocess):
    before = copy.deepcopy(found_first)
    found = postprocess(reranker, found_first, SEARCHES[0].query)
    assert found_first == before
    assert len(found) == len(found_first)
    for node in found:
        assert node.metadata == {"key": node.node_id}
        assert node.text == TEXTS[node.node_id]


def test_options_reach_the_client(server, found_first, postprocess):
    search = SEARCHES[1]
    with closing(TritonRerank(url=server.grpc_url, min_relevance_score=0.5)) as strict:
        assert {node.node_id for node in postprocess(strict, found_first, search.query)} == search.relevant
    with closing(TritonRerank(url=[server.grpc_url], top_n=2, max_length=64, timeout=30)) as short:
        assert len(postprocess(short, found_first, search.query)) == 2


def test_metadata_is_scored_as_the_mode_says(server, postprocess):
    search = SEARCHES[0]
    texts = [TEXTS["museum"], TEXTS[search.best], TEXTS["soup"]]
    nodes = [NodeWithScore(node=TextNode(text="See above.", metadata={"title": text})) for text in texts]
    with closing(TritonRerank(url=server.grpc_url)) as reranker:
        assert postprocess(reranker, nodes, search.query)[0].metadata["title"] == TEXTS[search.best]
    with closing(TritonRerank(url=server.grpc_url, metadata_mode=MetadataMode.NONE)) as reranker:
        found = postprocess(reranker, nodes, search.query)
    assert [node.metadata["title"] for node in found] == texts  # equal scores keep their order


def test_no_nodes(reranker, postprocess):
    assert postprocess(reranker, [], "anything") == []


def test_tells_callbacks_and_instrumentation(server, found_first, postprocess):
    search, debug, recorder = SEARCHES[0], LlamaDebugHandler(print_trace_on_end=False), Recorder()
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(recorder)
    try:
        with closing(TritonRerank(url=server.grpc_url, top_n=2, callback_manager=CallbackManager([debug]))) as reranker:
            found = postprocess(reranker, found_first, search.query)
    finally:
        dispatcher.event_handlers.remove(recorder)
    ((start, end),) = debug.get_event_pairs(CBEventType.RERANKING)
    assert start.payload[EventPayload.QUERY_STR] == search.query
    assert start.payload[EventPayload.TOP_K] == 2
    assert end.payload[EventPayload.NODES] == found
    began, ended = recorder._events
    assert (began.query, began.top_n, began.model_name) == (search.query, 2, "reranker")
    assert ended.nodes == found


def test_errors_are_the_clients_and_callbacks_hear_them(server, found_first, postprocess):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    manager = CallbackManager([debug])
    with (
        closing(TritonRerank(url=server.grpc_url, model="nobody", callback_manager=manager)) as reranker,
        pytest.raises(ModelNotFoundError) as caught,
    ):
        postprocess(reranker, found_first, "anything")
    ((_, end),) = debug.get_event_pairs(CBEventType.RERANKING)
    assert end.payload[EventPayload.EXCEPTION] is caught.value
    with closing(TritonRerank(url=server.grpc_url)) as reranker:
        for query in (None, "half a pair: \ud83d"):
            with pytest.raises(InvalidRequestError, match="query"):
                postprocess(reranker, found_first, query)


def test_goes_through_json(server, found_first):
    before = TritonRerank(
        url=[server.grpc_url],
        top_n=2,
        min_relevance_score=0.01,
        timeout=30,
        metadata_mode=MetadataMode.NONE,
        metadata={"authorization": "Bearer secret-token"},
    )
    assert isinstance(before, BaseNodePostprocessor)
    written = before.to_json()
    for shown in (written, repr(before), str(before), str(before.to_dict())):
        assert "secret-token" not in shown
    after = TritonRerank.from_json(written)
    assert after.to_dict() == before.to_dict()
    query = SEARCHES[0].query
    with closing(before), closing(after):
        assert before.postprocess_nodes(found_first, query_str=query) == after.postprocess_nodes(
            found_first, query_str=query
        )


def test_works_on_after_closing_and_in_another_loop(reranker, found_first):
    query = SEARCHES[0].query
    first = [node.node_id for node in reranker.postprocess_nodes(found_first, query_str=query)]
    for _ in range(2):
        reranker.close()
        assert [node.node_id for node in reranker.postprocess_nodes(found_first, query_str=query)] == first
        found = asyncio.run(reranker.apostprocess_nodes(found_first, query_str=query))  # the loop is gone
        assert [node.node_id for node in found] == first
