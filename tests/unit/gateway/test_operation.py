"""Keys, ids, traces, metrics, readiness, and what the log says."""

import asyncio
import hmac
import logging
import re

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.deployment import queries, rules
from support.fake_triton import hang, refuse
from support.promql import selectors
from triton_rerank import InvalidRequestError
from triton_rerank.gateway import Settings
from triton_rerank.transport import tracing

GOOD = {"query": "a secret question", "documents": ["a secret document", "2"]}
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/score", "/invocations", "/v1/retrieval/m/reranking"])
async def test_every_post_needs_a_key(make, path):
    web = make(api_keys=("first", "second"))
    for headers in ({}, {"authorization": "Bearer third"}, {"authorization": "Bearer"}, {"authorization": "first"}):
        answer = await web.post(path, json=GOOD, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["type"] == "authentication_error"
    body = {**GOOD, "text_1": "q", "text_2": ["a"]}
    for key in ("first", "second"):
        for scheme in ("Bearer", "bearer"):
            answer = await web.post(path, json=body, headers={"authorization": f"{scheme} {key}"})
            assert answer.status_code == 200, answer.text


async def test_xinferences_callers_learn_whether_to_send_their_key(make):
    assert (await make().get("/v1/cluster/auth")).status_code == 404
    assert (await make(api_keys=("k",)).get("/v1/cluster/auth")).json() == {"auth": True}


async def test_pages_are_open(make):
    web = make(api_keys=("first",))
    for path in ("/v1/models", "/models", "/health", "/ping", "/info", "/metrics", "/docs", "/openapi.json"):
        assert (await web.get(path)).status_code == 200


async def test_without_keys_any_header_is_fine(web):
    answer = await web.post("/rerank", json=GOOD, headers={"authorization": "Bearer None"})  # Dify's LocalAI
    assert answer.status_code == 200


async def test_all_keys_are_compared_in_constant_time(make, monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b))
    web = make(api_keys=("first", "second", "third"))
    for key in ("first", "x" * 500):
        compared.clear()
        await web.post("/rerank", json=GOOD, headers={"authorization": f"Bearer {key}"})
        assert compared == [(32, 32)] * 3


@pytest.mark.parametrize("key", ["", " ", "ключ", "a\nb", " a"])
def test_keys_that_no_header_can_hold_are_refused(key):
    with pytest.raises(InvalidRequestError, match="API key"):
        Settings(api_keys=(key,))


@pytest.mark.parametrize(
    ("name", "value"), [("max_body", 0), ("max_documents", 10_001), ("timeout", 0), ("long_documents", "both")]
)
def test_unusable_settings(name, value):
    with pytest.raises(InvalidRequestError, match=name):
        Settings(**{name: value})


async def test_the_request_id_goes_everywhere(web, triton, caplog):
    caplog.set_level(logging.INFO)
    answer = await web.post("/rerank", json=GOOD, headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == answer.json()["id"] == "abc-1"
    assert {metadata["x-request-id"] for metadata in triton.metadata} == {"abc-1"}
    assert "id=abc-1 method=POST path=/rerank status=200 dialect=cohere documents=2 tokens=18 ms=" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("given", [None, "", "with space", "x" * 129])
async def test_an_unusable_request_id_is_replaced(web, given):
    headers = {} if given is None else {"x-request-id": given}
    made = (await web.get("/v1/health/live", headers=headers)).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)


async def test_a_path_cannot_forge_log_lines(web, caplog):
    caplog.set_level(logging.INFO)
    await web.post("/x%0aid=forged%20status=200/rerank", json=GOOD)
    (line,) = [record.getMessage() for record in caplog.records if "method=POST" in record.getMessage()]
    assert "path=/x\\nid=forged%20status=200/rerank status=200" in line


async def test_the_trace_goes_on_to_the_server(web, triton):
    await web.post("/rerank", json=GOOD, headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
    assert {metadata["traceparent"].split("-")[1] for metadata in triton.metadata} == {TRACE}


async def test_the_trace_goes_on_without_opentelemetry(triton, make, monkeypatch):
    import builtins

    real = builtins.__import__

    def no_opentelemetry(name, *rest, **more):
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", no_opentelemetry)
    parent = f"00-{TRACE}-b7ad6b7169203331-01"
    await make().post("/rerank", json=GOOD, headers={"traceparent": parent, "tracestate": "a=1"})
    assert {(m["traceparent"], m["tracestate"]) for m in triton.metadata} == {(parent, "a=1")}
    with tracing.Tracer().continued({"traceparent": "é"}) as left:
        assert left == {}


async def test_server_timing(web):
    value = (await web.post("/rerank", json=GOOD)).headers["server-timing"]
    times = dict(re.findall(r"(\w+);dur=([\d.]+)", value))
    assert float(times["total"]) >= float(times["reranker"]) > 0
    assert set(times) == {"total", "reranker", "client", "backoff"}


async def test_metrics(web, triton):
    await web.post("/rerank", json=GOOD)
    await web.post("/v1/rerank", json={"query": "q", "texts": ["1"]})
    await web.post("/v1/rerank", json={"query": "", "texts": ["1"]})
    triton.faults.append(refuse(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"))
    await web.post("/v1/rerank", json=GOOD)
    await web.get("/a/secret/path")
    text = (await web.get("/metrics")).text
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["rerank_gateway_requests_total", "200", "cohere", "rerank"] == 1
    assert samples["rerank_gateway_requests_total", "200", "rerank", "tei"] == 1
    assert samples["rerank_gateway_requests_total", "400", "rerank", "tei"] == 1
    assert samples["rerank_gateway_requests_total", "429", "cohere", "rerank"] == 1
    assert samples["rerank_gateway_requests_total", "404", "none", "other"] == 1
    assert samples["rerank_gateway_documents_total", "cohere"] == 2, "documents of refused calls do not count"
    assert samples["rerank_gateway_tokens_total", "cohere"] == 18
    assert samples["rerank_gateway_request_seconds_count", "rerank"] == 4
    assert samples["rerank_gateway_in_flight",] == 0
    assert "secret" not in text


async def test_every_series_that_rules_and_panels_read_is_there(web):
    await web.post("/rerank", json=GOOD)
    text = (await web.get("/metrics")).text
    there = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    expressions = [rule["expr"] for rule in rules()] + [expression for _, expression in queries()]
    read = {name for expression in expressions for name, _ in selectors(expression)}
    own = {name for name in read if name.startswith("rerank_gateway_")}
    assert len(own) >= 4
    assert own <= there


async def test_readiness_is_asked_for_once_a_second(web, triton):
    await asyncio.gather(*(web.get("/health") for _ in range(50)))
    assert len(triton.requests) == 1


async def test_the_log_tells_when_readiness_changes(make, triton, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("triton_rerank.gateway.served._READY_AGE_S", 0.0)
    web = make()
    for fails in (False, False, True, True, False):
        if fails:
            triton.faults.append(refuse(grpc.StatusCode.INTERNAL, "CUDA error"))
        await web.get("/health")
    told = [record.getMessage().partition(":")[0] for record in caplog.records if "gateway" in record.name]
    assert told == ["ready", "not ready", "ready"]


async def test_an_overloaded_reranker_is_ready_and_a_dead_one_is_not(make, triton):
    triton.faults.append(refuse(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"))
    assert (await make().get("/v1/health/ready")).json()["status"] == "ready"
    triton.faults.append(refuse(grpc.StatusCode.INTERNAL, "CUDA error"))
    web = make()
    assert (await web.get("/v1/health/ready")).status_code == 503
    await web.post("/rerank", json=GOOD)
    assert (await web.get("/v1/health/ready")).status_code == 200, "an answered call is as good as a probe"


async def test_a_gateway_that_is_stopping_serves_but_is_not_ready(web):
    web.app.state.served.draining = True
    assert (await web.get("/health")).status_code == 503
    assert (await web.post("/rerank", json=GOOD)).status_code == 200


async def test_models(make):
    web = make(model_aliases=("rerank-english-v3.0",))
    listed = (await web.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["fake", "reranker", "rerank-english-v3.0"]
    assert {(m["object"], m["model_type"], m["max_model_len"]) for m in listed["data"]} == {("model", "rerank", 512)}
    one = (await web.get("/v1/models/BAAI/any-name")).json()  # Dify's Xinference asks for any name
    assert (one["id"], one["model_type"], one["root"]) == ("BAAI/any-name", "rerank", "fake")


async def test_info_is_that_of_text_embeddings_inference(web):
    info = (await web.get("/info")).json()
    assert info["model_id"] == "fake"
    assert info["model_type"] == {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    assert (info["max_input_length"], info["max_client_batch_size"], info["model_dtype"]) == (512, 1000, "float32")


async def test_the_description_outlives_the_reranker(web, triton, monkeypatch):
    assert (await web.get("/v1/models")).status_code == 200
    triton.stop()
    monkeypatch.setattr("triton_rerank.gateway.served._INFO_AGE_S", 0.0)
    assert (await web.get("/v1/models")).status_code == 200


async def test_cors_is_off_unless_asked_for(make):
    ask = {"origin": "https://app.example", "access-control-request-method": "POST"}
    plain = await make().options("/rerank", headers=ask)
    assert plain.status_code == 405
    assert "access-control-allow-origin" not in plain.headers
    web = make(cors_origins=("https://app.example",), api_keys=("k",))
    preflight = await web.options("/rerank", headers=ask)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    refused = await web.post("/rerank", json=GOOD, headers={"origin": "https://app.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example", "the page must see the error"
    headers = {"origin": "https://evil.example", "authorization": "Bearer k"}
    other = await web.post("/rerank", json=GOOD, headers=headers)
    assert "access-control-allow-origin" not in other.headers


async def test_a_caller_that_hangs_up_cancels_its_call(make, triton):
    web = make()
    await web.post("/rerank", json=GOOD)
    triton.faults.append(hang(30))
    messages = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": b'{"query": "q", "documents": ["1"]}', "more_body": False})
    scope = {"type": "http", "method": "POST", "path": "/rerank", "headers": [], "query_string": b""}
    sent = []

    async def send(message):
        sent.append(message)

    call = asyncio.create_task(web.app(scope, messages.get, send))
    while web.app.state.served.in_flight == 0 or triton.faults:  # the call is at the server
        await asyncio.sleep(0.01)
    messages.put_nowait({"type": "http.disconnect"})
    await call
    assert sent[0]["status"] == 499
    for _ in range(500):
        if triton.cancelled:
            break
        await asyncio.sleep(0.01)
    assert triton.cancelled == 1
