"""Requests as real callers send them, and the fields that they need in the answer.

The rows are read in the callers' source. The logit of the fake's document is its number.
"""

import math

import pytest

DOCUMENTS = ["1", "3", "2"]
ORDER = [1, 2, 0]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


COHERE_PATHS = {
    "cohere SDK, v2": ("/v2/rerank", {"max_tokens_per_doc": 4096, "priority": 0}),
    "cohere SDK, v1": ("/v1/rerank", {"rank_fields": None, "return_documents": None, "max_chunks_per_doc": None}),
    "cohere SDK 5.5": ("/rerank", {}),
    "cohere SDK, base_url ends in /v1": ("/v1/v2/rerank", {}),
    "base_url ends in a slash": ("//rerank", {}),
    "a slash too many": ("/v1/rerank/", {}),
    "behind a prefix": ("/apps/search/v1/rerank", {}),
    "LiteLLM jina_ai": ("/v1/rerank", {"return_documents": True}),
    "LiteLLM hosted_vllm": (
        "/rerank",
        {"instruction": None, "truncate_prompt_tokens": None, "truncation_side": None, "return_documents": True},
    ),
    "LiteLLM together_ai": ("/v1/rerank", {"return_documents": True}),
    "Dify OpenAI-API-compatible": ("/v1/rerank", {"return_documents": True}),
    "Dify Xinference": ("/v1/rerank", {"return_documents": True, "kwargs": "{}"}),
    "Dify LocalAI": ("/rerank", {"top_n": None}),
    "Dify Jina": ("/v1/rerank", {"top_n": None, "return_documents": False}),
    "RAGFlow Xinference": ("/v1/rerank", {"return_documents": "true", "return_len": "true", "top_n": 3}),
    "Open WebUI": ("/v1/rerank", {"top_n": 3}),
    "FastGPT": ("/v1/rerank", {"user": "x"}),
    "LightRAG": ("/v1/rerank", {"return_documents": False, "top_n": 3}),
    "infinity-client": ("/rerank", {"return_documents": False, "raw_scores": False}),
    "xinference-client": ("/v1/rerank", {"max_chunks_per_doc": None, "return_len": None, "kwargs": "{}"}),
    "top_n of 0 is all, as in vLLM": ("/rerank", {"top_n": 0}),
    "top_n larger than the list": ("/rerank", {"top_n": 10**12}),
    "numbers as strings": ("/rerank", {"top_n": "3"}),
    "Milvus sends no model": ("/rerank", {"model": None}),
    "an id that the dialects do not know": ("/rerank", {"nonsense": {"deep": [1]}}),
}


@pytest.mark.parametrize("caller", COHERE_PATHS)
async def test_callers_of_cohere_jina_vllm_and_others(web, caller):
    path, more = COHERE_PATHS[caller]
    answer = await web.post(f"http://gateway{path}", json={"model": "m", "query": "q", "documents": DOCUMENTS, **more})
    assert answer.status_code == 200
    body = answer.json()
    assert [r["index"] for r in body["results"]] == ORDER
    assert [r["relevance_score"] for r in body["results"]] == pytest.approx([sigmoid(x) for x in (3, 2, 1)])
    assert body["id"] == answer.headers["x-request-id"]  # cohere, LiteLLM
    assert body["object"] == "rerank"  # infinity-client's enum
    assert body["model"] == "fake"  # Haystack's JinaRanker, infinity-client
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert body["meta"]["billed_units"] == {"search_units": 1}
    assert body["meta"]["tokens"] == {"input_tokens": 3, "output_tokens": 0}  # FastGPT
    wanted = more.get("return_documents") in (True, "true")
    for result in body["results"]:  # null breaks LiteLLM and Dify's LocalAI
        assert result.get("document", "absent") == ({"text": DOCUMENTS[result["index"]]} if wanted else "absent")


@pytest.mark.parametrize("top_n", [1, 2])
@pytest.mark.parametrize(("path", "key"), [("/rerank", "results"), ("/voyage/v1/rerank", "data")])
async def test_top_n(web, path, key, top_n):
    answer = await web.post(path, json={"query": "q", "documents": DOCUMENTS, "top_n": top_n})
    assert [r["index"] for r in answer.json()[key]] == ORDER[:top_n]


async def test_litellm_infinity_reads_documents_as_strings(web):
    body = {"query": "q", "documents": [{"text": "1", "id": 7}, "3", "2"], "return_documents": True}
    answer = await web.post("/infinity/rerank", json=body)
    assert [r["document"] for r in answer.json()["results"]] == ["3", "2", "1"]


async def test_returned_objects_keep_their_fields(web):
    documents = [{"text": "1", "id": 7, "huge": 10**30}, {"title": "3", "body": None}, "2"]
    body = {"query": "q", "documents": documents, "rank_fields": ["title", "text"], "return_documents": True}
    answer = await web.post("/v1/rerank", json=body)
    assert [r["document"] for r in answer.json()["results"]] == [documents[1], {"text": "2"}, documents[0]]


async def test_text_of_documents(web, triton):
    documents = ["a", {"text": "b"}, {"title": "c", "n": 3, "no": None}, {"title": "d", "text": "e"}]
    await web.post("/rerank", json={"query": "q", "documents": documents})
    await web.post("/rerank", json={"query": "q", "documents": documents[2:], "rank_fields": ["title", "n", "no"]})
    sent = [request.raw_input_contents[1] for request in triton.requests if request.model_name == "reranker"]
    assert {b'{"title":"c","n":3,"no":null}'[i : i + 9] in sent[0] for i in range(10)} == {True}
    assert b"c\n3" in sent[1]
    assert b"e" not in sent[1]


@pytest.mark.parametrize(
    "more",
    [
        {"truncate": True},
        {"raw_scores": False, "truncation_direction": "Right"},
        {"return_text": True},
        {"model": "m", "truncate_text": True},
        {"top_n": 2, "return_text": True},
    ],
)
@pytest.mark.parametrize("path", ["/rerank", "/invocations"])
async def test_callers_of_text_embeddings_inference(web, path, more):
    body = (await web.post(path, json={"query": "q", "texts": DOCUMENTS, **more})).json()
    assert [r["index"] for r in body] == ORDER[: more.get("top_n")]
    assert [r["score"] for r in body] == pytest.approx([sigmoid(x) for x in (3, 2, 1)][: more.get("top_n")])
    assert [r.get("text") for r in body] == [DOCUMENTS[r["index"]] if more.get("return_text") else None for r in body]


async def test_raw_scores_are_logits(web):
    tei = await web.post("/rerank", json={"query": "q", "texts": DOCUMENTS, "raw_scores": True})
    assert [r["score"] for r in tei.json()] == [3, 2, 1]
    infinity = await web.post("/rerank", json={"query": "q", "documents": DOCUMENTS, "raw_scores": True})
    assert [r["relevance_score"] for r in infinity.json()["results"]] == [3, 2, 1]


@pytest.mark.parametrize("path", ["/v1/ranking", "/v1/reranking", "/v1/retrieval/nvidia/m/reranking", "/rerank"])
@pytest.mark.parametrize("more", [{}, {"truncate": "END", "top_n": 3}, {"truncate": "START"}, {"model": None}])
async def test_callers_of_nim(web, path, more):
    passages = [{"text": text} for text in DOCUMENTS]
    body = (await web.post(path, json={"model": "m", "query": {"text": "q"}, "passages": passages, **more})).json()
    # LangChain builds Ranking(**item), which has these two fields.
    assert body["rankings"] == [{"index": i, "logit": float(DOCUMENTS[i])} for i in ORDER]
    assert body["usage"]["total_tokens"] == 3


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/rerank", {"top_k": None, "truncation": True}),
        ("/v1/rerank", {"top_k": 3}),
        ("/v1/rerank", {"top_k": 0, "return_documents": True}),
        ("/voyage/v1/rerank", {"return_documents": True}),
    ],
)
async def test_callers_of_voyage(web, path, more):
    answer = await web.post(path, json={"query": "q", "documents": [*DOCUMENTS, ""], "model": "m", **more})
    body = answer.json()
    assert '""' not in answer.text  # voyageai.Client raises an error for any empty string
    assert [r["index"] for r in body["data"]] == [*ORDER, 3][: more.get("top_k") or 4]
    assert body["usage"] == {"total_tokens": 3}
    texts = ["3", "2", "1", None] if more.get("return_documents") else [None] * 4
    assert [r.get("document") for r in body["data"]] == texts[: len(body["data"])]


@pytest.mark.parametrize(
    ("body", "scores"),
    [
        ({"text_1": "q", "text_2": ["1", "3"]}, [1, 3]),
        ({"text_1": "q", "text_2": "3"}, [3]),
        ({"text_1": ["q", "r"], "text_2": ["1", "3"]}, [1, 3]),
        ({"queries": "q", "documents": ["1", "3"]}, [1, 3]),
        ({"queries": ["q"], "items": ["3", {"text": "1"}]}, [3, 1]),
        ({"data_1": "q", "data_2": ["3"]}, [3]),
    ],
)
@pytest.mark.parametrize("path", ["/score", "/v1/score"])
async def test_score(web, path, body, scores):
    answer = (await web.post(path, json={"model": "m", **body})).json()
    assert [item["index"] for item in answer["data"]] == list(range(len(scores)))
    assert [item["score"] for item in answer["data"]] == pytest.approx([sigmoid(x) for x in scores])
    assert answer["id"].startswith("score-")
    raw = (await web.post(path, json={**body, "use_activation": False})).json()
    assert [item["score"] for item in raw["data"]] == scores
    pairs_of_one = not isinstance(body.get("text_1"), list)
    assert answer["usage"]["total_tokens"] == (len(scores) if pairs_of_one else 0)


@pytest.mark.parametrize(
    "body",
    [
        {"texts": ["x" * 600], "truncate": False},
        {"passages": [{"text": "x" * 600}], "truncate": "NONE"},
        {"documents": ["x" * 600], "top_k": None, "truncation": False},
    ],
)
async def test_a_request_that_forbids_truncation(web, body):
    refused = await web.post("/rerank", json={"query": "q", **body})
    assert refused.status_code == 400
    assert "1 documents are longer than the model's 512 tokens" in refused.json()["message"]
    without = {key: value for key, value in body.items() if key not in ("truncate", "truncation")}
    assert (await web.post("/rerank", json={"query": "q", **without})).status_code == 200


@pytest.mark.parametrize(("given", "sent"), [(None, 0), (0, 1), (1, 2), (2, 3), (9, 3), (-4, 1), ("1", 2)])
async def test_priorities_count_from_0_for_callers(web, triton, given, sent):
    answer = await web.post("/rerank", json={"query": "q", "documents": ["1"], "priority": given})
    assert answer.status_code == 200
    (request,) = [r for r in triton.requests if r.model_name == "reranker"]
    # Triton has two levels for each priority; a call begins at the second.
    assert request.parameters["priority"].int64_param == 2 * sent


async def test_a_priority_for_a_model_without_priorities_is_ignored(web, triton):
    triton.priority_levels = 0
    answer = await web.post("/rerank", json={"query": "q", "documents": ["1"], "priority": 0})
    assert answer.status_code == 200


async def test_caller_limits_count_only_if_the_operator_says_so(make, triton):
    body = {"query": "q", "documents": ["word " * 400], "max_tokens_per_doc": 99, "max_chunks_per_doc": 10}
    for settings, limits, rows in (({}, {0}, 1), ({"caller_limits": True}, {99}, 2)):
        triton.requests.clear()
        assert (await make(**settings).post("/rerank", json=body)).status_code == 200
        sent = [r for r in triton.requests if r.model_name == "reranker"]
        assert {r.parameters["max_length"].int64_param for r in sent} == limits
        assert sum(r.inputs[0].shape[0] for r in sent) >= rows
