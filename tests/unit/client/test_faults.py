"""Faults that a healthy Triton does not show when wanted, on both clients."""

import logging
import struct
import threading
import time

import grpc
import pytest

import triton_rerank as tr
from support.fake_triton import FakeTriton, hang, refuse
from support.twins import TWINS

FULL = refuse(grpc.StatusCode.UNAVAILABLE, "[request id: <id_unknown>] Exceeds maximum queue size")
STOPPING = refuse(grpc.StatusCode.UNAVAILABLE, "Socket closed")
DOCUMENTS = [str(number) for number in range(100)]
IN_ORDER = list(reversed(range(100)))


@pytest.fixture
def server():
    with FakeTriton() as running:
        yield running


@pytest.fixture(params=sorted(TWINS))
def client_class(request):
    return TWINS[request.param]


@pytest.fixture
def client(client_class, server):
    with client_class(server.url, timeout=10) as made:
        yield made


def indices(response):
    return [result.index for result in response]


def test_a_call_is_cut_joined_and_ordered(client, server):
    response = client.rerank("q", DOCUMENTS)
    assert indices(response) == IN_ORDER
    assert [result.rank for result in response] == list(range(1, 101))
    assert len(server.requests) == 4
    assert response.timing.num_requests == 5  # the first call asks for the model's configuration as well
    assert response.usage.num_documents == 100
    assert 0 < response.timing.server_s < response.timing.total_s


def test_limits_are_asked_once(client, server):
    for _ in range(3):
        client.rerank("q", ["1"])
    assert server.config_calls == 1


def test_requests_are_no_larger_than_the_server_takes(client_class):
    with FakeTriton(max_batch_size=8) as server, client_class(server.url) as client:
        client.rerank("q", DOCUMENTS)
        assert max(request.inputs[0].shape[0] for request in server.requests) <= 8


def test_no_documents_ask_nothing(client, server):
    response = client.rerank("q", [])
    assert response.results == ()
    assert response.usage == tr.Usage(0, 0, 0, 0)
    assert client.score([]) == []
    assert (server.requests, server.config_calls) == ([], 0)


def test_only_the_part_that_failed_is_sent_again(client, server):
    client.is_ready()
    server.requests.clear()
    server.faults.extend([FULL, STOPPING])
    response = client.rerank("q", DOCUMENTS)
    assert indices(response) == IN_ORDER
    assert response.timing.num_retries == 2
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (FULL, tr.ServerOverloadedError),
        (STOPPING, tr.ServerUnavailableError),
        (refuse(grpc.StatusCode.INTERNAL, "out of memory"), tr.InferenceError),
        (refuse(grpc.StatusCode.INVALID_ARGUMENT, "max_length is 9000"), tr.InvalidRequestError),
        (refuse(grpc.StatusCode.CANCELLED, "shutting down"), tr.RequestCancelledError),
    ],
)
def test_a_fault_that_lasts_is_raised_as_its_kind(client, server, fault, kind):
    server.faults.extend([fault] * 3)
    with pytest.raises(tr.RerankError) as caught:
        client.rerank("q", ["1"])
    assert type(caught.value) is kind
    assert server.url in str(caught.value)
    retried = issubclass(kind, tr.ServerUnavailableError)
    assert len(server.requests) == (3 if retried else 1)
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    server.faults.clear()
    assert indices(client.rerank("q", ["1", "2"])) == [1, 0]


def test_max_retries_0_sends_once(client_class, server):
    server.faults.append(FULL)
    with client_class(server.url, max_retries=0) as client, pytest.raises(tr.ServerOverloadedError):
        client.rerank("q", ["1"])
    assert len(server.requests) == 1


def test_the_timeout_is_the_whole_calls(client, server):
    client.is_ready()
    server.faults.extend([None, hang(5)])
    started = time.monotonic()
    with pytest.raises(tr.RequestTimeoutError, match="3 of 4 requests were answered"):
        client.rerank("q", DOCUMENTS, timeout=0.4)
    assert 0.35 < time.monotonic() - started < 1.0


def test_the_time_left_is_told_to_grpc_and_triton(client, server):
    client.is_ready()
    server.requests.clear()
    server.timeouts.clear()
    server.faults.append(lambda request, context: time.sleep(0.3) or FULL(request, context))
    client.rerank("q", ["1"], timeout=5)
    told = [request.parameters["timeout"].int64_param / 1e6 for request in server.requests]
    assert 4.8 < told[0] <= 5
    assert told[1] < told[0] - 0.29
    assert server.timeouts[0] == pytest.approx(told[0], abs=0.2)


def test_no_timeout_means_none(client_class, server):
    with client_class(server.url, timeout=None) as client:
        client.rerank("q", ["1"])
    assert "timeout" not in server.requests[0].parameters


@pytest.mark.parametrize("kind", ["timeout", "failure"])
def test_a_call_that_ends_early_cancels_its_other_requests(client, server, kind):
    client.is_ready()
    failure = refuse(grpc.StatusCode.INTERNAL, "broken")
    server.faults.extend([None, hang(20), hang(20), hang(20) if kind == "timeout" else failure])
    with pytest.raises(tr.RerankError):
        client.rerank("q", DOCUMENTS, timeout=1.0)
    wait_until(lambda: server.cancelled >= 2)


def wait_until(condition, seconds=5):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize("spoil", ["nan", "missing", "shape"])
def test_an_answer_that_breaks_the_contract_is_told_with_its_server(client, server, spoil):
    def fault(request, context):
        response = server.answer(request)
        if spoil == "nan":
            response.raw_output_contents[0] = struct.pack("<f", float("nan"))
        elif spoil == "missing":
            del response.outputs[0], response.raw_output_contents[0]
        else:
            response.outputs[0].shape[:] = [1]
        return response

    server.faults.append(fault)
    with pytest.raises(tr.UnexpectedResponseError, match=f"{server.url}: .*logits"):
        client.rerank("q", ["1"])


def test_an_unknown_model(client_class, server):
    with client_class(server.url, "nothing") as client:
        with pytest.raises(tr.ModelNotFoundError, match="nothing"):
            client.rerank("q", ["1"])
        assert not client.is_ready()


def test_no_server(client_class):
    with client_class("127.0.0.1:1") as client:
        with pytest.raises(tr.ServerUnavailableError, match="is Triton running there"):
            client.rerank("q", ["1"], timeout=2)
        assert not client.is_ready(timeout=1)


def test_score_keeps_the_order_of_pairs(client):
    pairs = [(f"query {number}", str(number)) for number in range(70)]
    assert client.score(pairs, normalize=False) == [float(number) for number in range(70)]
    assert client.score([("a", "0")]) == [0.5]


def test_rerank_many_keeps_the_order_of_searches(client):
    seen = []
    searches = [("q", ["1", str(number)]) for number in range(20)]
    responses = client.rerank_many(searches, top_n=1, progress=lambda done, total: seen.append((done, total)))
    assert [response[0].document for response in responses] == [str(max(1, number)) for number in range(20)]
    assert seen == [(number, 20) for number in range(1, 21)]


def test_rerank_many_ends_with_the_first_failure(client, server):
    with pytest.raises(tr.InvalidRequestError, match="query is empty"):
        client.rerank_many([("q", ["1"]), ("", ["1"]), *[("q", ["1"])] * 200], concurrency=1)
    assert len(server.requests) < 10


def test_model_info(client, server):
    info = client.model_info()
    assert (info.checkpoint, info.precision, info.max_length, info.default_max_length) == ("fake", "fp32", 8192, 512)
    assert (info.max_batch_size, info.max_queue_size, info.runtime) == (64, 100, "openvino")
    assert client.model_info() is info


def test_priority_is_sent_and_held_to_the_servers(client, server):
    client.rerank("q", ["1"], priority=3)
    client.score([("q", "1")], priority=1)
    client.rerank("q", ["1"])
    client.rerank("q", DOCUMENTS)
    client.rerank("q", DOCUMENTS, priority=1)
    scored = [request for request in server.requests if request.outputs[0].name != "model_info"]
    levels = [request.parameters["priority"].int64_param for request in scored]
    # Two levels each, the first for calls that have begun. 0: not sent.
    assert levels == [6, 2, 0, *[0, 3, 3, 3], *[2, 1, 1, 1]]
    with pytest.raises(tr.InvalidRequestError, match=r"priority is 4; pass 1 \(first\) to 3, or None"):
        client.rerank("q", ["1"], priority=4)


def test_a_server_without_priorities_refuses_them(client, server):
    server.priority_levels = 0
    with pytest.raises(tr.InvalidRequestError, match="priority is 1, but model 'reranker' has no priorities"):
        client.score([("q", "1")], priority=1)


def test_chunks_use_the_servers_own_length(client):
    (result,) = client.rerank("q", ["words " * 400], long_documents="chunk")
    assert result.chunk.count > 4
    assert not result.truncated


def test_a_closed_client_says_so(client_class, server):
    with client_class(server.url) as client:
        client.rerank("q", ["1"])
        client.close()
        with pytest.raises(RuntimeError, match="the client is closed"):
            client.rerank("q", ["1"])


def test_closing_ends_calls_under_way(server):
    server.faults.append(hang(20))
    client = tr.RerankClient(server.url)
    caught = []

    def call():
        try:
            client.rerank("q", ["1"])
        except tr.RerankError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    wait_until(lambda: server.requests)
    client.close()
    thread.join(5)
    assert type(caught[0]) is tr.RequestCancelledError


def test_metadata_travels_and_is_never_shown(client_class, server, caplog):
    secret = "Bearer s3cr3t"
    caplog.set_level(logging.DEBUG, "triton_rerank")
    with client_class(server.url, metadata={"authorization": secret}) as client:
        client.rerank("q", ["1"])
        server.faults.extend([FULL] * 3)
        with pytest.raises(tr.ServerOverloadedError) as caught:
            client.rerank("q", ["1"])
        assert secret not in repr(client)
    assert server.metadata[0]["authorization"] == secret
    assert secret not in caplog.text + str(caught.value)


def test_metadata_may_change_from_call_to_call(client_class, server):
    tokens = iter(["one", "two"])
    with client_class(server.url, metadata=lambda: {"token": next(tokens)}) as client:
        client.rerank("q", ["1"])
        client.rerank("q", ["1"])
    assert [metadata["token"] for metadata in server.metadata] == ["one", "two"]


@pytest.mark.parametrize("value", ["line\nbreak", "schlüssel", b"bytes"])
def test_metadata_that_grpc_would_quote_is_refused_unquoted(value):
    with pytest.raises(tr.InvalidRequestError) as caught:
        tr.RerankClient(metadata={"token": value})
    assert str(value) not in str(caught.value)


def test_debug_log_shows_numbers_and_no_texts(client, server, caplog):
    server.faults.append(FULL)
    with caplog.at_level(logging.DEBUG, "triton_rerank"):
        client.rerank("private query", ["private document", "5"])
    assert "cut into 1 requests: 2 rows" in caplog.text
    assert "goes again: overloaded" in caplog.text
    assert "1 retries" in caplog.text
    assert "private" not in caplog.text


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compression(client_class, server, compression):
    with client_class(server.url, compression=compression) as client:
        assert indices(client.rerank("q", DOCUMENTS)) == IN_ORDER


def test_large_messages_pass_both_ways(client):
    assert client.rerank("q", ["x" * 10_000_000, "1"])[0].document == "1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "http://localhost:8001"}, "url must be host:port"),
        ({"url": "localhost"}, "url must be host:port"),
        ({"url": []}, "url is an empty list"),
        ({"url": [8001]}, "url is not text"),
        ({"url": "user:pa55@host:1"}, "it is not"),
        ({"model": ""}, "model is not a name"),
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": "1"}, "timeout is not a number"),
        ({"max_retries": -1}, "max_retries is -1"),
        ({"pairs_per_request": 0}, "pairs_per_request is 0"),
        ({"compression": "zstd"}, "compression is 'zstd'"),
        ({"tls": "yes"}, "tls is str"),
        ({"tls": tr.TLS("/nowhere/ca.pem")}, "tls.root_certificates: No such file"),
        ({"tls": tr.TLS(private_key=b"key")}, "private_key and certificate_chain together"),
        ({"metadata": {"UPPER": "x"}}, "metadata key 'UPPER'"),
    ],
)
def test_wrong_configuration_is_told_at_once(client_class, options, message):
    with pytest.raises(tr.InvalidRequestError, match=message) as caught:
        client_class(**options)
    assert "pa55" not in str(caught.value)


def test_tls_shows_no_keys():
    shown = repr(tr.TLS(b"roots", b"private", b"chain"))
    assert shown == "TLS(root_certificates=..., private_key=..., certificate_chain=...)"
