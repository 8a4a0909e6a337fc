"""Every error in the form that all callers can read."""

import asyncio

import grpc
import pytest

from support.fake_triton import hang, refuse
from triton_rerank import AsyncRerankClient
from triton_rerank.gateway import create_app

GOOD = {"query": "q", "documents": ["1", "2"]}
TEI = {"query": "q", "texts": ["1", "2"]}


def check_form(answer, status, kind, param=None):
    """What each caller reads: strings in `message` and `detail`, an object in `error`, the request's id."""
    assert answer.status_code == status
    body = answer.json()
    assert body["message"] == body["detail"] == body["error"]["message"]
    assert body["error"] == {"message": body["message"], "type": kind, "param": param, "code": status}
    assert body["id"] == answer.headers["x-request-id"]
    return body["message"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"documents": ["a"]}, "query", "query is missing"),
        ({"query": " \n", "documents": ["a"]}, "query", "query is empty"),
        ({"query": {"txt": "q"}, "documents": ["a"]}, "query", 'query has no "text"'),
        ({"query": 3, "documents": ["a"]}, "query", "query: expected `str | object | null`, got `int`"),
        ({"query": "q"}, "documents", "documents are missing"),
        ({"query": "q", "documents": []}, "documents", "documents is empty"),
        ({"query": "q", "documents": "a"}, "documents", "documents: expected `array | null`, got `str`"),
        ({"query": "q", "documents": ["a", None]}, "documents[1]", "documents[1]: expected"),
        ({"query": "q", "documents": [{"text": 3}]}, "documents[0].text", "documents[0].text is not a string"),
        ({"query": "q", "documents": [{"a": "b"}], "rank_fields": ["c"]}, "documents[0]", "none of the rank_fields"),
        ({"query": "q", "documents": ["a"], "top_n": -1}, "top_n", "top_n is -1; send 1 or more"),
        ({"query": "q", "documents": ["a"], "top_k": -1}, "top_k", "top_k is -1"),
        ({"query": "q", "documents": ["a"], "top_n": "many"}, "top_n", "top_n: expected `int | null`, got `str`"),
        ({"query": "q", "documents": ["a"], "max_tokens_per_doc": 0}, "max_tokens_per_doc", "max_tokens_per_doc is 0"),
        ({"query": "q", "documents": ["a"], "return_documents": "yes"}, "return_documents", "expected `bool | null`"),
        ({"query": "q", "documents": ["a"] * 1001}, "documents", "holds 1,001 documents, the limit is 1,000"),
        ({"query": "q", "passages": []}, "passages", "passages is empty"),
    ],
)
async def test_unusable_values_are_named(web, body, param, message):
    assert message in check_form(await web.post("/v1/rerank", json=body), 400, "invalid_request_error", param)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"nonsense", "the body is not JSON: invalid character (byte 4)"),
        (b"[1]", "the body: expected `object`, got `array`"),
        (b'"q"', "the body: expected `object`, got `str`"),
        (b'{"query": "\xff", "documents": ["a"]}', "the body is not UTF-8: byte 0xff"),
        (b'{"query": "q", "documents": ["\\ud800"]}', "the body is not JSON"),
        (b'{"query": "q", "documents": [NaN]}', "the body is not JSON"),
        (b'{"query": "q", "top_n": 1e999, "documents": ["a"]}', "top_n: number out of range"),
        (b'{"x": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"documents": [{"a": ' + b'{"a":' * 100_000, "nested too deeply"),
    ],
)
async def test_bodies_that_are_not_json(web, data, message):
    answer = await web.post("/rerank", content=data)
    assert message in check_form(answer, 400, "invalid_request_error", answer.json()["error"]["param"])


async def test_the_last_of_two_equal_keys_counts(web):
    body = b'{"query": "a", "query": "q", "documents": ["1", "2"], "top_n": 9, "top_n": 1}'
    assert len((await web.post("/rerank", content=body)).json()["results"]) == 1


async def test_a_document_nested_to_the_limit_comes_back_or_is_refused(web):
    for depth in range(880, 1000, 10):
        document = b'{"text": "1", "x": ' + b"[" * depth + b"]" * depth + b"}"
        body = b'{"query": "q", "return_documents": true, "documents": [' + document + b"]}"
        answer = await web.post("/rerank", content=body)
        assert answer.status_code in (200, 400)
        as_text = await web.post("/rerank", content=body.replace(b'"text"', b'"title"'))
        assert as_text.status_code in (200, 400)


async def test_a_compressed_body(web):
    answer = await web.post("/rerank", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert "send it without Content-Encoding" in check_form(answer, 400, "invalid_request_error")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "the pairs are missing"),
        ({"text_1": "q"}, "the pairs are missing"),
        ({"text_1": ["a", "b"], "text_2": ["c"]}, "text_1 holds 2 texts and text_2 1"),
        ({"text_1": ["a", " "], "text_2": ["c", "d"]}, "text_1[1] is empty"),
        ({"queries": "", "documents": ["c"]}, "queries is empty"),
        ({"text_1": "q", "text_2": []}, "text_2 is empty"),
        ({"text_1": 3, "text_2": []}, "text_1: expected"),
    ],
)
async def test_pairs(web, body, message):
    answer = await web.post("/score", json=body)
    assert message in check_form(answer, 400, "invalid_request_error", answer.json()["error"]["param"])


async def test_text_embeddings_inference_has_a_form_of_its_own(web):
    answer = await web.post("/rerank", json={"query": "", "texts": ["a"]})
    message = "query is empty"
    assert answer.json() == {"error": message, "error_type": "empty", "message": message, "detail": message}
    answer = await web.post("/rerank", json={"query": "q", "texts": ["a"] * 2000})
    assert answer.json()["error_type"] == "validation"
    assert isinstance(answer.json()["error"], str)


FAULTS = {
    "queue": (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size", 429, "overloaded_error", "overloaded", "1"),
    "resource": (grpc.StatusCode.RESOURCE_EXHAUSTED, "no room", 429, "overloaded_error", "overloaded", "1"),
    "starting": (grpc.StatusCode.UNAVAILABLE, "starting", 503, "unavailable_error", "unhealthy", "5"),
    "no model": (grpc.StatusCode.NOT_FOUND, "unknown model", 503, "unavailable_error", "unhealthy", "5"),
    "cancelled": (grpc.StatusCode.CANCELLED, "dropped", 503, "unavailable_error", "unhealthy", "5"),
    "late": (grpc.StatusCode.DEADLINE_EXCEEDED, "late", 504, "timeout_error", "backend", None),
    "model failed": (grpc.StatusCode.INTERNAL, "CUDA error", 500, "internal_error", "backend", None),
    "unknown": (grpc.StatusCode.UNKNOWN, "CUDA error", 500, "internal_error", "backend", None),
    "refused": (grpc.StatusCode.INVALID_ARGUMENT, "max_length", 400, "invalid_request_error", "validation", None),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_errors_of_the_reranker(web, triton, fault):
    code, details, status, kind, tei_kind, retry_after = FAULTS[fault]
    await web.post("/rerank", json=GOOD)  # the model is known: what fails is the call itself
    for body in (GOOD, TEI):
        triton.faults.append(refuse(code, details))
        answer = await web.post("/rerank", json=body)
        assert answer.headers.get("retry-after") == retry_after
        if body is GOOD:
            message = check_form(answer, status, kind)
        else:
            assert (answer.status_code, answer.json()["error_type"]) == (status, tei_kind)
            assert answer.json()["error"] == message
        assert triton.url not in answer.text, "addresses inside are not for callers"
    assert (await web.post("/rerank", json=GOOD)).status_code == 200


async def test_an_answer_that_breaks_the_contract(web, triton):
    await web.post("/rerank", json=GOOD)

    def nan(request, context):
        answer = triton.answer(request)
        answer.raw_output_contents[0] = b"\x00\x00\xc0\x7f" * 2
        return answer

    triton.faults.append(nan)
    check_form(await web.post("/rerank", json=GOOD), 500, "internal_error")


async def test_the_deadline(make, triton):
    web = make(timeout=0.3)
    await web.post("/rerank", json=GOOD)
    triton.faults.append(hang(30))
    check_form(await web.post("/rerank", json=GOOD), 504, "timeout_error")


async def test_no_server(make, triton):
    triton.stop()
    web = make()
    check_form(await web.post("/rerank", json=GOOD), 503, "unavailable_error")
    assert (await web.get("/v1/models")).status_code == 503
    assert (await web.get("/health")).status_code == 503
    assert (await web.get("/v1/health/live")).status_code == 200


async def test_a_model_that_is_not_a_reranker_is_the_operators_fault(triton, make):
    triton.outputs = ("embedding",)
    check_form(await make().post("/rerank", json=GOOD), 503, "unavailable_error")


async def test_more_calls_than_may_be_in_flight(make, triton):
    web = make(max_in_flight=2, timeout=20)
    await web.post("/rerank", json=GOOD)
    triton.faults.extend([hang(20), hang(20)])
    calls = [asyncio.create_task(web.post("/rerank", json=GOOD)) for _ in range(2)]
    while web.app.state.served.in_flight < 2 or triton.faults:  # both are at the server
        await asyncio.sleep(0.01)
    refused = await web.post("/rerank", json=GOOD)
    check_form(refused, 429, "overloaded_error")
    assert refused.headers["retry-after"] == "1"
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert web.app.state.served.in_flight == 0
    assert (await web.post("/rerank", json=GOOD)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/v1/cluster", "/rerank/x", "/xrerank", "/v1/embeddings", "/%0a"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_unknown_paths_are_404_without_a_key(make, path, method):
    answer = await make(api_keys=("secret",)).request(method, path)
    check_form(answer, 404, "not_found_error")


@pytest.mark.parametrize(("method", "path", "allow"), [("GET", "/rerank", "POST"), ("POST", "/health", "GET, HEAD")])
async def test_other_methods(web, method, path, allow):
    answer = await web.request(method, path)
    check_form(answer, 405, "not_found_error")
    assert ", ".join(sorted(answer.headers["allow"].split(", "))) == allow


async def test_strict_model(make):
    web = make(strict_model=True, model_aliases=("rerank-v3.5",))
    for name in ("fake", "reranker", "rerank-v3.5", None):
        assert (await web.post("/rerank", json={**GOOD, "model": name})).json()["model"] == "fake"
    check_form(await web.post("/rerank", json={**GOOD, "model": "gpt"}), 404, "model_not_found", "model")
    check_form(await web.get("/v1/models/gpt"), 404, "model_not_found")
    assert (await web.get("/v1/models/rerank-v3.5")).status_code == 200


async def test_a_fault_of_the_gateway_itself_is_answered_and_logged(triton, caplog):
    import httpx

    def metadata():
        raise ZeroDivisionError("a defect")

    client = AsyncRerankClient(triton.url, metadata=metadata)
    transport = httpx.ASGITransport(create_app(client), raise_app_exceptions=False)
    async with client, httpx.AsyncClient(transport=transport, base_url="http://gateway") as web:
        answer = await web.post("/rerank", json=GOOD)
        check_form(answer, 500, "internal_error")
    assert "a defect" in caplog.text
    assert "defect" not in answer.text
