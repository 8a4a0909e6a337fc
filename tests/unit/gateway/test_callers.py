"""Requests of callers that cannot be installed here, as their source sends them, and what they do with the answer.

Each row is a caller: path, body, and a function that reads the answer as the caller does, and fails where it would
fail. It returns the indices in the order of the answer.
"""

import json

import pytest

from support import ROOT
from support.pages import blocks

DOCUMENTS = ["1", "3", "2"]
ORDER = [1, 2, 0]


def by_results(answer):
    """Most callers: `results`, each with `index` and `relevance_score`, highest first."""
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0  # RAGFlow scales scores outside of 0 to 1; an older Dify fails on an empty list
    assert max(scores) < 1
    return [result["index"] for result in answer["results"]]


def with_document_text(answer):
    """Dify's Cohere: `document.text` of every result."""
    return [DOCUMENTS.index(result["document"]["text"]) for result in answer["results"]]


def with_optional_document(answer):
    """Dify's LocalAI and GPUStack: if there is `document`, it must have `text`."""
    for result in answer["results"]:
        if "document" in result:
            assert result["document"]["text"]
    return by_results(answer)


def with_string_or_object(answer):
    """Dify's Xinference: a string, or an object with `text`."""
    texts = [r["document"] if isinstance(r["document"], str) else r["document"]["text"] for r in answer["results"]]
    return [DOCUMENTS.index(text) for text in texts]


def one_for_each_by_index(answer):
    """Open WebUI: sorts by index and takes the scores in the order of its documents."""
    results = sorted(answer["results"], key=lambda result: result["index"])
    assert len(results) == len(DOCUMENTS)
    scores = [result["relevance_score"] for result in results]
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def with_tokens(answer):
    """FastGPT: also `meta.tokens.input_tokens`."""
    assert answer["meta"]["tokens"]["input_tokens"] == 3
    return by_results(answer)


def by_voyage_data(answer):
    """Dify's Voyage: `data`, with strings as documents."""
    return [DOCUMENTS.index(item["document"]) for item in answer["data"]]


def by_tei_list(answer):
    """Milvus' and RAGFlow's TEI: a list with every index once."""
    assert sorted(item["index"] for item in answer) == [0, 1, 2]
    return [item["index"] for item in sorted(answer, key=lambda item: -item["score"])]


def by_tei_text(answer):
    """Dify's TEI: `text`."""
    return [DOCUMENTS.index(item["text"]) for item in answer]


def by_rankings(answer):
    """RAGFlow's and Weaviate's NVIDIA: `rankings` with `logit`, every index once."""
    assert sorted(item["index"] for item in answer["rankings"]) == [0, 1, 2]
    return [item["index"] for item in sorted(answer["rankings"], key=lambda item: -item["logit"])]


def by_json_path(answer):
    """Elasticsearch: $.results[*].index and $.results[*].relevance_score, lists of one length."""
    indices = [result["index"] for result in answer["results"]]
    assert len(indices) == len([result["relevance_score"] for result in answer["results"]])
    return indices


PASSAGES = [{"text": text} for text in DOCUMENTS]
Q = {"model": "m", "query": "q"}
COHERE = {**Q, "documents": DOCUMENTS}
CALLERS = {
    "Dify Cohere": ("/v1/rerank", {**COHERE, "top_n": 3, "return_documents": True}, with_document_text),
    "Dify OpenAI-API-compatible": ("/v1/rerank", {**COHERE, "top_n": 3}, by_results),
    "Dify OpenAI-API-compatible, older": ("/v1/rerank", {**COHERE, "top_n": 3, "return_documents": True}, by_results),
    "Dify Xinference": (
        "/v1/rerank",
        {**COHERE, "top_n": 3, "return_documents": True, "kwargs": "{}", "max_chunks_per_doc": None},
        with_string_or_object,
    ),
    "Dify LocalAI": ("/rerank", {**COHERE, "top_n": None}, with_optional_document),
    "Dify GPUStack": ("/v1/rerank", {**COHERE, "top_n": 3}, with_optional_document),
    "Dify Jina": ("/rerank", {**COHERE, "top_n": None, "return_documents": False}, by_results),
    "Dify Voyage": ("/v1/rerank", {**COHERE, "top_k": 3, "return_documents": True}, by_voyage_data),
    "Dify TEI": ("/rerank", {"query": "q", "texts": DOCUMENTS, "return_text": True}, by_tei_text),
    "RAGFlow Jina": ("/v1/rerank", {**COHERE, "top_n": 3}, by_results),
    "RAGFlow OpenAI-compatible": ("/v1/rerank", {**COHERE, "top_n": 3}, by_results),
    "RAGFlow Xinference": (
        "/v1/rerank",
        {**COHERE, "return_documents": "true", "return_len": "true"},
        by_results,
    ),
    "RAGFlow TEI": ("/rerank", {"query": "q", "texts": DOCUMENTS, "raw_scores": False, "truncate": True}, by_tei_list),
    "RAGFlow NVIDIA": (
        "/v1/reranking",
        {"model": "m", "query": {"text": "q"}, "passages": PASSAGES, "truncate": "END", "top_n": 3},
        by_rankings,
    ),
    "Open WebUI": ("/v1/rerank", {**COHERE, "top_n": 3}, one_for_each_by_index),
    "FastGPT": ("/v1/rerank", COHERE, with_tokens),
    "LibreChat": (
        "/v1/rerank",
        {**COHERE, "model": "jina-reranker-v2-base-multilingual", "top_n": 3, "return_documents": True},
        with_document_text,
    ),
    "LightRAG": ("/v1/rerank", {**COHERE, "return_documents": False}, by_results),
    "Milvus, tei": ("/rerank", {"query": "q", "texts": DOCUMENTS, "truncate": True}, by_tei_list),
    "Milvus, vllm": ("/rerank", {"query": "q", "documents": DOCUMENTS}, by_results),
    "Weaviate, cohere": ("/v2/rerank", {**COHERE, "return_documents": False}, by_results),
    "Weaviate, nvidia": (
        "/v1/retrieval/nvidia/reranking",
        {"model": "m", "query": {"text": "q"}, "passages": PASSAGES},
        by_rankings,
    ),
    "Elasticsearch, custom": ("/v1/rerank", {"query": "q", "documents": DOCUMENTS}, by_json_path),
    "OpenSearch, connector": ("/v2/rerank", {**COHERE, "top_n": 3}, by_results),
}


@pytest.mark.parametrize("caller", CALLERS)
async def test_the_caller_finds_what_it_reads(web, caller):
    path, body, read = CALLERS[caller]
    answer = await web.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert read(answer.json()) == ORDER


@pytest.mark.parametrize("caller", CALLERS)
async def test_the_caller_can_show_an_error(web, caller):
    """A string to show: `message` or `detail`; for TEI `error` is a string, too."""
    path, body, read = CALLERS[caller]
    answer = await web.post(path, json={**body, "query": ""})
    assert answer.status_code == 400
    said = answer.json()
    assert said["message"] == said["detail"] == "query is empty"
    assert isinstance(said["error"], str) == (read in (by_tei_list, by_tei_text))


async def test_what_dify_asks_when_a_configuration_is_saved(web):
    assert (await web.get("/v1/cluster/auth")).status_code == 404  # Xinference: no authentication
    assert (await web.get("/v1/models/any-uid")).json()["model_type"] == "rerank"
    info = (await web.get("/info")).json()  # TEI
    assert info["model_type"]["reranker"]
    assert info["max_input_length"]
    assert info["max_client_batch_size"]


def json_blocks():
    page = ROOT / "docs" / "gateway-callers.md"
    return {block.section: json.loads(block.text) for block in blocks(page) if block.language == "json"}


async def test_the_page_for_elasticsearch(web):
    settings = json_blocks()["Elasticsearch"]["service_settings"]
    body = settings["request"].replace("${query}", '"q"').replace("${input}", json.dumps(DOCUMENTS))
    answer = await web.post(settings["url"].partition("8080")[2], content=body)
    assert by_json_path(answer.json()) == ORDER
    assert settings["response"]["json_parser"]["reranked_index"] == "$.results[*].index"


async def test_the_page_for_opensearch(web):
    (action,) = json_blocks()["OpenSearch"]["actions"]
    given = {"documents": json.dumps(DOCUMENTS), "query": "q", "model": "m", "top_n": "3"}
    body = action["request_body"]
    for name, value in given.items():
        body = body.replace(f"${{parameters.{name}}}", value)
    answer = await web.post(action["url"].partition("8080")[2], content=body)
    assert by_results(answer.json()) == ORDER
