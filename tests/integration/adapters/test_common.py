"""Behaviour common to the adapters of all frameworks: connections, secrets, copies, errors."""

import asyncio
import copy
import json
import logging
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from haystack import Document as HaystackDocument
from haystack.utils import Secret
from langchain_core.documents import Document as LangChainDocument
from llama_index.core.schema import NodeWithScore, TextNode
from pydantic import ValidationError

from support.fake_triton import FakeTriton, hang
from triton_rerank import TLS, Cascade, InvalidRequestError, RequestTimeoutError, ServerUnavailableError
from triton_rerank import haystack as haystack_adapter
from triton_rerank import langchain as langchain_adapter
from triton_rerank import llama_index as llama_index_adapter

TEXTS = ["1", "3", "2"]  # the fake server's logits


class LangChain:
    make = langchain_adapter.TritonRerank
    document = staticmethod(LangChainDocument)

    @staticmethod
    def sync(component, documents, query="query"):
        return [document.page_content for document in component.compress_documents(documents, query)]

    @staticmethod
    async def awaited(component, documents, query="query"):
        return [document.page_content for document in await component.acompress_documents(documents, query)]


class LlamaIndex:
    make = llama_index_adapter.TritonRerank

    @staticmethod
    def document(text):
        return NodeWithScore(node=TextNode(text=text))

    @staticmethod
    def sync(component, documents, query="query"):
        return [node.text for node in component.postprocess_nodes(documents, query_str=query)]

    @staticmethod
    async def awaited(component, documents, query="query"):
        return [node.text for node in await component.apostprocess_nodes(documents, query_str=query)]


class Haystack:
    make = haystack_adapter.TritonRanker

    @staticmethod
    def document(text):
        return HaystackDocument(content=text)

    @staticmethod
    def sync(component, documents, query="query"):
        return [document.content for document in component.run(query, documents)["documents"]]

    @staticmethod
    async def awaited(component, documents, query="query"):
        return [document.content for document in (await component.run_async(query, documents))["documents"]]


PYDANTIC = [LangChain, LlamaIndex]


@pytest.fixture(params=[*PYDANTIC, Haystack], ids=lambda kind: kind.__name__)
def adapter(request):
    return request.param


@pytest.fixture
def documents(adapter):
    return [adapter.document(text) for text in TEXTS]


@pytest.fixture
def server():
    with FakeTriton() as server:
        yield server


async def aclose(component):
    await (component.close_async() if hasattr(component, "close_async") else component.aclose())


def test_threads_share_one_client(adapter, documents, server):
    component = adapter.make(url=server.url)
    assert server.config_calls == 0  # nothing is asked before the first call
    assert adapter.sync(component, documents) == ["3", "2", "1"]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: tuple(adapter.sync(component, documents)), range(40))) == {("3", "2", "1")}
    component.close()
    assert server.config_calls == 3  # the ensemble's and its two models', once in the life of a client


async def test_tasks_share_one_client(adapter, documents, server):
    component = adapter.make(url=server.url)
    await adapter.awaited(component, documents)
    found = await asyncio.gather(*(adapter.awaited(component, documents) for _ in range(40)))
    assert found == [["3", "2", "1"]] * 40
    await aclose(component)
    assert server.config_calls == 3


def test_event_loops_that_are_open_together_have_a_client_each(adapter, documents, server):
    component = adapter.make(url=server.url)

    async def outer():
        found = await adapter.awaited(component, documents)
        inner = await asyncio.to_thread(lambda: asyncio.run(adapter.awaited(component, documents)))
        await aclose(component)
        return found, inner

    assert asyncio.run(outer()) == (["3", "2", "1"], ["3", "2", "1"])
    for _ in range(5):
        asyncio.run(adapter.awaited(component, documents))  # nobody closes; the loop is gone
    assert len(component._clients._async_clients) == 1  # that of the last loop: earlier ones were forgotten
    component.close()
    assert not component._clients._async_clients


async def until(condition):
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("the condition did not become true within 30 s")


async def test_cancelling_cancels_on_the_server(adapter, documents, server):
    component = adapter.make(url=server.url)
    await adapter.awaited(component, documents)
    server.faults.append(hang(30))
    num_requests = len(server.requests)
    call = asyncio.ensure_future(adapter.awaited(component, documents))
    await until(lambda: len(server.requests) == num_requests + 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await aclose(component)
    await until(lambda: server.cancelled == 1)


async def test_errors_are_the_clients(adapter, documents, server):
    component = adapter.make(url=server.url, timeout=0.3, max_retries=0)
    server.faults.extend([hang(30), hang(30)])
    with pytest.raises(RequestTimeoutError):
        adapter.sync(component, documents)
    with pytest.raises(RequestTimeoutError):
        await adapter.awaited(component, documents)
    server.stop()
    with pytest.raises(ServerUnavailableError):
        adapter.sync(component, documents)
    with pytest.raises(ServerUnavailableError):
        await adapter.awaited(component, documents)
    await aclose(component)


async def test_keep_order_returns_the_first_documents_when_the_server_is_gone(adapter, documents, server, caplog):
    top = "top_k" if adapter is Haystack else "top_n"
    component = adapter.make(url=server.url, max_retries=0, timeout=2, on_error="keep_order", **{top: 2})
    assert adapter.sync(component, documents) == ["3", "2"]
    server.stop()
    with caplog.at_level(logging.WARNING, "triton_rerank"):
        assert adapter.sync(component, documents) == TEXTS[:2]
        assert await adapter.awaited(component, documents) == TEXTS[:2]
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 2
    assert all(message.startswith("reranking failed, documents keep their order: Server") for message in told)
    await aclose(component)


def test_keep_order_hides_no_invalid_request(adapter, documents, server):
    component = adapter.make(url=server.url, on_error="keep_order")
    with pytest.raises(InvalidRequestError):
        adapter.sync(component, documents, "half a pair: \ud83d")
    component.close()


def test_on_error_is_checked(adapter):
    with pytest.raises((ValidationError, InvalidRequestError), match="keep_order"):
        adapter.make(on_error="ignore")


async def test_an_empty_query_keeps_the_order_and_asks_nothing(adapter, documents, server):
    component = adapter.make(url=server.url)
    for query in ("", "  \n"):
        assert adapter.sync(component, documents, query) == TEXTS
        assert await adapter.awaited(component, documents, query) == TEXTS
    assert server.requests == []
    await aclose(component)


@pytest.mark.parametrize("adapter", [LangChain, Haystack], indirect=True)
async def test_a_query_that_is_not_text_is_refused_by_name(adapter, documents, server):
    component = adapter.make(url=server.url)
    with pytest.raises(InvalidRequestError, match=r"query is not text \(got None\)"):
        adapter.sync(component, documents, None)
    with pytest.raises(InvalidRequestError, match="query is not text"):
        await adapter.awaited(component, documents, None)
    await aclose(component)


def test_connection_settings_are_fixed_while_connections_are_open(adapter, documents, server):
    component = adapter.make(url="localhost:1")
    component.url = server.url  # before the first call
    adapter.sync(component, documents)
    with pytest.raises(InvalidRequestError, match="url can't change while connections are open"):
        component.url = "localhost:1"
    assert adapter.sync(component, documents) == ["3", "2", "1"]
    component.close()
    with FakeTriton() as other:
        component.url = other.url
        adapter.sync(component, documents)
        assert len(other.requests) == 1
        component.close()


def test_haystack_keeps_the_copy_with_the_higher_score(server):
    ranker = Haystack.make(url=server.url)
    copies = [
        HaystackDocument(id="a", content="1", score=0.2, meta={"by": "bm25"}),
        HaystackDocument(id="b", content="3"),
        HaystackDocument(id="a", content="1", score=0.9, meta={"by": "vectors"}),
    ]
    found = ranker.run("query", copies)["documents"]
    assert [(document.id, document.meta) for document in found] == [("b", {}), ("a", {"by": "vectors"})]
    ranker.close()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda component: pickle.loads(pickle.dumps(component))])
def test_copies_work_with_connections_of_their_own(adapter, documents, server, copied):
    component = adapter.make(url=server.url)
    adapter.sync(component, documents)
    twin = copied(component)
    assert adapter.sync(twin, documents) == ["3", "2", "1"]
    twin.close()
    assert adapter.sync(component, documents) == ["3", "2", "1"]
    component.close()


@pytest.mark.parametrize("adapter", PYDANTIC, indirect=True)
def test_a_copy_may_be_told_of_another_server(adapter, documents, server):
    component = adapter.make(url=server.url)
    adapter.sync(component, documents)
    with FakeTriton() as other:
        moved = component.model_copy(update={"url": other.url})
        adapter.sync(moved, documents)
        moved.close()
        assert len(other.requests) == 1
    component.close()


@pytest.mark.parametrize("adapter", PYDANTIC, indirect=True)
@pytest.mark.parametrize("metadata", [{"authorization": "Bearer token"}, lambda: {"authorization": "Bearer token"}])
def test_metadata_goes_to_the_server_and_nowhere_else(adapter, documents, server, metadata):
    component = adapter.make(url=server.url, metadata=metadata)
    adapter.sync(component, documents)
    asyncio.run(adapter.awaited(component, documents))
    component.close()
    assert [sent["authorization"] for sent in server.metadata] == ["Bearer token"] * 2
    for shown in (repr(component), str(component.model_dump()), json.dumps(component.model_dump(mode="json"))):
        assert "Bearer" not in shown


def test_haystack_secrets_go_to_the_server(server, monkeypatch):
    monkeypatch.setenv("RERANK_AUTHORIZATION", "Bearer token")
    metadata = {
        "authorization": Secret.from_env_var("RERANK_AUTHORIZATION"),
        "x-tenant": Secret.from_env_var("RERANK_TENANT", strict=False),  # not set: not sent
    }
    ranker = Haystack.make(url=server.url, metadata=metadata)
    Haystack.sync(ranker, [HaystackDocument(content="1")])
    ranker.close()
    assert server.metadata[-1]["authorization"] == "Bearer token"
    assert "x-tenant" not in server.metadata[-1]


@pytest.mark.parametrize("adapter", PYDANTIC, indirect=True)
def test_keys_are_never_written(adapter):
    component = adapter.make(tls=TLS("roots.pem", private_key=b"secret-key", certificate_chain="chain.pem"))
    written = component.model_dump_json()
    assert "secret-key" not in written + repr(component) + str(component.model_dump())
    assert json.loads(written)["tls"] == {"root_certificates": "roots.pem", "certificate_chain": "chain.pem"}
    settings = {key: value for key, value in json.loads(written).items() if key != "class_name"}
    assert adapter.make(**settings).tls == TLS("roots.pem", certificate_chain="chain.pem")


@pytest.mark.parametrize("adapter", PYDANTIC, indirect=True)
@pytest.mark.parametrize(
    "unusable",
    [{"top_n": 0}, {"max_length": 0}, {"timeout": 0}, {"min_relevance_score": 2}, {"top_k": 5}],
    ids=lambda unusable: next(iter(unusable)),
)
def test_unusable_settings_are_refused(adapter, unusable):
    (name,) = unusable
    with pytest.raises(ValidationError, match=name):
        adapter.make(**unusable)


@pytest.mark.parametrize(
    ("extra", "package"),
    [("langchain", "langchain_core"), ("llama-index", "llama_index"), ("haystack", "haystack")],
)
def test_a_missing_framework_is_told_with_the_command_that_brings_it(extra, package):
    module = f"triton_rerank.{extra.replace('-', '_')}"
    code = f"import sys; sys.modules[{package!r}] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last_line = done.stderr.strip().splitlines()[-1]
    assert last_line.startswith("ImportError: ")
    assert last_line.endswith(f'; run: pip install "triton-rerank[{extra}]"')


def test_the_old_name_of_pairs_per_request_still_works(adapter, documents, server):
    with pytest.warns(DeprecationWarning, match="request_size is now pairs_per_request"):
        component = adapter.make(url=server.url, request_size=2)
    assert component.pairs_per_request == 2
    assert adapter.sync(component, documents) == ["3", "2", "1"]


async def test_a_cascade_returns_what_the_model_scored(adapter, documents, server):
    server.first_stage = lambda text: -float(text)  # the opposite order
    for cascade in (2, 0.5, Cascade(2)):
        component = adapter.make(url=server.url, cascade=cascade)
        assert adapter.sync(component, documents) == ["2", "1"]  # 3 is the last of the first stage
        assert await adapter.awaited(component, documents) == ["2", "1"]
        await aclose(component)
    component = adapter.make(url=server.url, cascade=Cascade(2, "colbert", fallback=True))
    assert adapter.sync(component, documents) == ["3", "2", "1"]
    component.close()


def test_a_cascade_is_serialized(adapter):
    component = adapter.make(cascade=Cascade(0.25, "colbert", fallback=True))
    if adapter is Haystack:
        loaded = adapter.make.from_dict(json.loads(json.dumps(component.to_dict())))
    elif adapter is LlamaIndex:
        loaded = adapter.make.from_dict(component.to_dict())
    else:
        loaded = adapter.make(**json.loads(component.model_dump_json()))
    assert loaded.cascade == component.cascade == Cascade(0.25, "colbert", fallback=True)


@pytest.mark.parametrize("cascade", [0, -3, 1.5, Cascade(5, first="")])
def test_a_cascade_is_checked(adapter, cascade):
    with pytest.raises((ValidationError, InvalidRequestError), match="cascade"):
        adapter.make(cascade=cascade)
