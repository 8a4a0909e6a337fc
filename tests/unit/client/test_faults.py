"""Faults that a healthy Triton does not show on demand, on both clients."""

import copy
import logging
import pickle
import struct
import threading
import time
from contextvars import ContextVar
from http.server import HTTPServer, SimpleHTTPRequestHandler

import grpc
import numpy as np
import pytest
import trustme

import triton_rerank as tr
from support.fake_triton import FakeTriton, hang, refuse
from triton_rerank.integrations.clients import tls_to_dict
from triton_rerank.transport import messages

SECRET_KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSj\n-----END PRIVATE KEY-----\n"
FULL = refuse(grpc.StatusCode.UNAVAILABLE, "[request id: <id_unknown>] Exceeds maximum queue size")
STOPPING = refuse(grpc.StatusCode.UNAVAILABLE, "Socket closed")
DOCUMENTS = [str(number) for number in range(100)]
IN_ORDER = list(reversed(range(100)))


@pytest.fixture
def server():
    with FakeTriton() as running:
        yield running


def indices(response):
    return [result.index for result in response]


def test_a_call_is_cut_joined_and_ordered(client, server):
    response = client.rerank("q", DOCUMENTS)
    assert indices(response) == IN_ORDER
    assert [result.rank for result in response] == list(range(1, 101))
    assert len(server.requests) == 4
    assert response.timing.num_requests == 4  # questions about the model's configuration do not count
    assert response.usage.num_documents == 100
    assert 0 < response.timing.server_s < response.timing.total_s


def test_limits_are_asked_once(client, server):
    for _ in range(3):
        client.rerank("q", ["1"])
    assert server.config_calls == 3  # the ensemble's, and those of its two models


@pytest.mark.parametrize(
    ("num_documents", "drops_padding", "sizes"),
    [(100, True, [100]), (128, True, [128]), (1000, True, [125] * 8), (100, False, [25] * 4), (32, False, [32])],
)
def test_a_call_is_one_request_where_the_server_drops_padding(client_class, num_documents, drops_padding, sizes):
    with FakeTriton(max_batch_size=128) as server:
        server.drops_padding = drops_padding
        documents = [str(number) for number in range(num_documents)]
        with client_class(server.url) as client:
            assert indices(client.rerank("q", documents)) == list(reversed(range(num_documents)))
        assert sorted(request.inputs[0].shape[0] for request in server.requests) == sizes
        with client_class(server.url, pairs_per_request=10) as client:
            server.requests.clear()
            client.rerank("q", documents)
            assert len(server.requests) == -(-num_documents // 10)


def test_a_reconnect_asks_again_whether_the_server_drops_padding(client_class):
    with FakeTriton(max_batch_size=128) as server:
        server.drops_padding = True
        with client_class(server.url) as client:
            client.rerank("q", DOCUMENTS)
            server.stop()
            assert not client.is_ready()
            with FakeTriton(max_batch_size=128, port=server.port) as back:
                assert indices(client.rerank("q", DOCUMENTS)) == IN_ORDER
                assert len(back.requests) == 4


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
    server.faults.extend([fault] * 50)
    with pytest.raises(tr.RerankError) as caught:
        client.rerank("q", ["1"], timeout=2)
    assert type(caught.value) is kind
    assert server.url in str(caught.value)
    if kind is tr.ServerUnavailableError:  # retried until the backoff would pass the timeout
        assert len(server.requests) >= 3
    else:
        assert len(server.requests) == (3 if kind is tr.ServerOverloadedError else 1)
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
    server.timeouts.clear()
    server.faults.extend([None, hang(60)])
    with pytest.raises(tr.RequestTimeoutError, match="3 of 4 requests were answered"):
        client.rerank("q", DOCUMENTS, timeout=0.4)
    assert len(server.timeouts) == 4
    assert max(server.timeouts) < 1


def test_the_time_left_is_told_to_grpc_and_triton(client, server):
    client.is_ready()
    server.requests.clear()
    server.timeouts.clear()
    arrived = []

    def note(request, context):
        arrived.append(time.monotonic())

    server.faults.extend([lambda *call: note(*call) or FULL(*call), note])
    before = time.monotonic()
    client.rerank("q", ["1"], timeout=50)
    told = [request.parameters["timeout"].int64_param / 1e6 for request in server.requests]
    for left, deadline, at in zip(told, server.timeouts, arrived, strict=True):
        # The message was sent after `before` and ahead of its arrival. gRPC waits a little longer.
        assert 50 - (at - before) - 1e-3 <= left <= 50
        assert left - (at - before) <= deadline <= 51
    assert told[1] < told[0]


def test_without_a_timeout_one_request_still_has_a_limit(client_class, server):
    with client_class(server.url, timeout=None) as client:
        client.rerank("q", ["1"])
    assert server.requests[0].parameters["timeout"].int64_param == 300_000_000


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
    # The same for models that order requests themselves, which do not see Triton's parameter.
    assert levels == [request.parameters["priority_level"].int64_param for request in scored]
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
        with pytest.raises(tr.ClientStateError, match="the client is closed") as caught:
            client.rerank("q", ["1"])
        assert isinstance(caught.value, RuntimeError)
        with pytest.raises(tr.ClientStateError):
            client.is_ready()


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
        ({"url": "https://localhost:8001"}, "url has no scheme; .* and tls=True"),
        ({"url": "a:8001,b:8001"}, r'pass several as a list: \["a:8001", "b:8001"\]'),
        ({"url": "host:99999"}, "port 99999; ports are 1 to 65535"),
        ({"url": "host:0"}, "port 0"),
        ({"url": "host/path"}, "url must be host:port"),
        ({"url": ""}, "url must be host:port"),
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
        (
            {"tls": tr.TLS("/nowhere/ca.pem")},
            "tls.root_certificates is neither PEM text nor a file that can be read: No such file",
        ),
        ({"tls": tr.TLS(b"not PEM")}, "tls.root_certificates holds no PEM block"),
        ({"tls": tr.TLS(3)}, "tls.root_certificates is int"),
        ({"tls": tr.TLS(private_key=b"key")}, "private_key and certificate_chain together"),
        ({"metadata": {"two words": "x"}}, "metadata key 'two words'"),
        ({"metadata": {"trace-bin": "x"}}, r"metadata\['trace-bin'\] must be bytes"),
        ({"metadata": [("a", "b")]}, "metadata is not a mapping"),
        ({"timeout": 9e9}, "timeout is 9000000000.0; pass seconds above 0, up to a year"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": 10**400}, "timeout is 1000"),
    ],
)
def test_wrong_configuration_is_told_at_once(client_class, options, message):
    with pytest.raises(tr.InvalidRequestError, match=message) as caught:
        client_class(**options)
    assert "pa55" not in str(caught.value)


def test_tls_shows_no_keys():
    shown = repr(tr.TLS(b"roots", b"private", b"chain"))
    assert shown == "TLS(root_certificates=..., private_key=..., certificate_chain=...)"


def test_an_unknown_model_is_answered_with_those_that_are_there(client_class, server):
    message = "'rerankr' is not found; the server has: cross_encoder, reranker, tokenizer"
    with client_class(server.url, "rerankr") as client, pytest.raises(tr.ModelNotFoundError, match=message):
        client.rerank("q", ["1"])


DEAD_MODEL = refuse(grpc.StatusCode.INTERNAL, "Stub process 'tokenizer_0_0' is not healthy.")


def test_a_server_with_a_dead_model_process_counts_as_down(client_class, server):
    with FakeTriton() as broken:
        broken.faults.extend([DEAD_MODEL] * 1000)
        with client_class([broken.url, server.url], timeout=10) as client:
            for _ in range(40):
                assert indices(client.rerank("q", ["1", "2"])) == [1, 0]
        assert len(broken.requests) < 20  # it rests


def test_a_frozen_server_delays_a_call_once(client_class, server):
    with FakeTriton() as frozen, client_class([frozen.url, server.url], timeout=4) as client:
        for _ in range(4):
            client.rerank("q", ["1"])
        frozen.requests.clear()
        frozen.faults.extend([hang(60)] * 1000)
        retries = [client.rerank("q", ["1", "2"]).timing.num_retries for _ in range(40)]
        # A retry means that a call waited for the frozen server: the first one, and a probe after each rest.
        assert 1 <= sum(retries) <= 6
        wait_until(lambda: frozen.cancelled == len(frozen.requests))


def test_100_threads_on_one_client_lose_no_call_to_a_short_queue(server):
    room = threading.Semaphore(10)

    def short_queue(request, context):
        if not room.acquire(blocking=False):
            return FULL(request, context)
        time.sleep(0.005)
        room.release()
        return None

    lost = []

    def work(client):
        for _ in range(5):
            try:
                assert indices(client.rerank("q", ["1", "2"])) == [1, 0]
            except tr.RerankError as error:
                lost.append(error)

    server.faults.extend([short_queue] * 100_000)
    with FakeTriton(workers=64) as wide:
        wide.faults = server.faults
        with tr.RerankClient(wide.url, timeout=60) as client:
            threads = [threading.Thread(target=work, args=(client,)) for _ in range(100)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert lost == []


@pytest.mark.slow
def test_a_server_that_is_back_within_10_s_costs_no_call(client_class, server):
    port = server.port
    with client_class(server.url) as client:
        client.rerank("q", ["1"])
        server.stop()
        back = []
        starter = threading.Timer(3.0, lambda: back.append(FakeTriton(port=port).__enter__()))
        starter.start()
        response = client.rerank("q", ["1", "2"])
        starter.join()
        back[0].stop()
    assert indices(response) == [1, 0]
    assert response.timing.num_retries >= 3
    # The pauses between the attempts are not the server's time.
    assert response.timing.backoff_s > 2
    assert response.timing.server_s < 1
    assert response.timing.client_s < 1


def test_a_redeploy_with_a_smaller_batch_is_noticed(client, server):
    client.rerank("q", DOCUMENTS)
    server.max_batch_size = 8

    def too_large(request, context):
        if request.inputs[0].shape[0] > 8:
            text = "[request id: <id_unknown>] inference request batch-size must be <= 8 for 'reranker'"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)

    server.faults.extend([too_large] * 100)
    assert indices(client.rerank("q", DOCUMENTS)) == IN_ORDER
    assert client.score([("q", text) for text in DOCUMENTS], normalize=False) == [float(text) for text in DOCUMENTS]


def test_a_reconnect_asks_for_the_configuration_again(client_class, server):
    with client_class(server.url) as client:
        assert client.rerank("q", ["8"])[0].relevance_score == pytest.approx(0.99966, abs=1e-4)
        server.stop()
        assert not client.is_ready()
        with FakeTriton(port=server.port) as back:
            back.logit_scale = "32"  # late interaction took over the name
            assert client.rerank("q", ["8"])[0].relevance_score == 0.25
            assert client.model_info().logit_scale == 32


def test_a_configuration_is_not_used_for_longer_than_a_restart_takes(client, server):
    client.rerank("q", ["8"])
    server.logit_scale = "32"
    time.sleep(2.1)
    assert client.rerank("q", ["8"])[0].relevance_score == 0.25


def test_rerank_many_keeps_the_other_responses_if_asked(client, server):
    searches = [("q", ["1", "2"]), ("", ["1"]), ("q", [3]), ("q", ["4"])]
    outcomes = client.rerank_many(searches, return_exceptions=True)
    assert indices(outcomes[0]) == [1, 0]
    assert type(outcomes[1]) is tr.InvalidRequestError
    assert "searches[1]: query is empty" in str(outcomes[1])
    assert r"searches[2]: documents[0] is not text" in str(outcomes[2])
    assert outcomes[3][0].logit == 4.0


@pytest.mark.parametrize("search", [{"query": "q", "documents": []}, "ab", ("q",), 7])
def test_a_search_that_is_none_is_named(client, search):
    with pytest.raises(tr.InvalidRequestError, match=r"searches\[1\] is a .*; pass \(query, documents\)"):
        client.rerank_many([("q", []), search])


def test_rerank_many_runs_in_the_callers_context(client_class, server):
    tenant = ContextVar("tenant", default="nobody")
    with client_class(server.url, metadata=lambda: {"tenant": tenant.get()}) as client:
        token = tenant.set("acme")
        client.rerank_many([("q", ["1"])] * 5)
        tenant.reset(token)
    assert {metadata["tenant"] for metadata in server.metadata} == {"acme"}


def test_closing_during_backoff_ends_the_call():
    client = tr.RerankClient("127.0.0.1:1")
    closer = threading.Timer(0.5, client.close)
    closer.start()
    with pytest.raises(tr.RequestCancelledError, match="closed during the call"):
        client.rerank("q", ["1"])
    closer.join()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda client: pickle.loads(pickle.dumps(client))])
@pytest.mark.parametrize("kind", [tr.RerankClient, tr.AsyncRerankClient])
def test_a_copy_has_the_settings_and_connections_of_its_own(server, kind, copied):
    settings = {"model": "m", "timeout": None, "max_retries": 7, "pairs_per_request": 9, "compression": "gzip"}
    client = kind([server.url], metadata={"token": "x"}, tls=tr.TLS(server_name="n"), **settings)
    twin = copied(client)
    assert twin is not client
    assert type(twin) is kind
    assert twin.__reduce__()[1][1] == client.__reduce__()[1][1]
    assert twin.__reduce__()[1][1] == {
        **settings,
        "url": [server.url],
        "tls": tr.TLS(server_name="n"),
        "metadata": {"token": "x"},
    }


def test_a_copy_of_a_used_client_works_and_outlives_it(server):
    with tr.RerankClient(server.url) as client:
        client.rerank("q", ["1"])
        twin = copy.copy(client)
    with twin:
        assert indices(twin.rerank("q", ["1", "2"])) == [1, 0]


@pytest.mark.parametrize("form", ["http://{}", " {} ", "grpc://{}/", "{}"])
def test_addresses_as_people_write_them(client_class, server, form):
    with client_class([form.format(server.url)]) as client:
        assert client.is_ready()


def test_the_port_may_be_left_out():
    assert "localhost:8001" in repr(tr.RerankClient("localhost"))
    assert "localhost:8001" in repr(tr.AsyncRerankClient())


def test_the_address_may_come_from_the_environment(client_class, server, monkeypatch):
    monkeypatch.setenv("TRITON_RERANK_URL", f" {server.url}, {server.url}")
    with client_class() as client:
        assert client.is_ready()


def test_a_proxy_of_the_environment_does_not_stand_before_this_machine(client_class, server, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with client_class(server.url, max_retries=0) as client:
        client.rerank("q", ["1"])


def test_the_http_port_is_named():
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        message = "not a gRPC port; Triton's gRPC port is 8001"
        client = tr.RerankClient(f"127.0.0.1:{web.server_port}", max_retries=0)
        with client, pytest.raises(tr.ServerUnavailableError, match=message):
            client.rerank("q", ["1"], timeout=10)
        web.shutdown()
        thread.join()


def test_metadata_keys_are_lowered_and_bin_keys_hold_bytes(client_class, server):
    with client_class(server.url, metadata={"X-Tenant": "acme", "trace-bin": b"\x00\xff"}) as client:
        client.rerank("q", ["1"])
    assert server.metadata[0]["x-tenant"] == "acme"
    assert server.metadata[0]["trace-bin"] == b"\x00\xff"


@pytest.mark.parametrize(
    "value", [SECRET_KEY, SECRET_KEY[:60], "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSj", SECRET_KEY.encode()]
)
@pytest.mark.parametrize("name", ["root_certificates", "private_key", "certificate_chain"])
def test_tls_never_echoes_a_value(name, value):
    given = {"private_key": SECRET_KEY, "certificate_chain": SECRET_KEY, name: value}
    tls = tr.TLS(**given)
    assert "MIIE" not in repr(tls)
    if "PRIVATE" in str(value):  # PEM text as str and as bytes
        assert SECRET_KEY.encode()[:20] in tls.read()[0 if name == "root_certificates" else 1]
        return
    with pytest.raises(tr.InvalidRequestError, match=f"tls.{name} is neither PEM text nor a file") as caught:
        tr.RerankClient(tls=tls)
    assert "MIIE" not in str(caught.value)


def test_a_token_in_plain_text_is_warned_of_unless_it_stays_here():
    token = {"Authorization": "Bearer x"}
    with pytest.warns(UserWarning, match="not encrypted; pass tls"):
        tr.RerankClient("rerank.example.org:8001", metadata=token)
    with (
        pytest.warns(UserWarning, match="not encrypted"),
        tr.RerankClient("192.0.2.1:8001", metadata=lambda: token) as client,
    ):
        assert not client.is_ready(timeout=0.2)
    for url in ("localhost", "127.0.0.1:8001", "[::1]:8001"):
        tr.RerankClient(url, metadata=token)
    tr.RerankClient("rerank.example.org:8001", metadata=token, tls=True)


def test_bounds_are_refused_by_name(client):
    for options in ({"max_length": 2**63}, {"query_max_length": 2**31}, {"timeout": 0}, {"timeout": 9e9}):
        with pytest.raises(tr.InvalidRequestError, match=next(iter(options))):
            client.rerank("q", ["1"], **options)
    for timeout in (0, -1, 9e9, "1"):
        with pytest.raises(tr.InvalidRequestError, match="timeout is"):
            client.is_ready(timeout=timeout)


def test_numpys_numbers_and_arrays_are_arguments(client):
    pairs = np.array([["q", "1"], ["q", "2"]])
    assert client.score(pairs, normalize=False, timeout=np.float64(5)) == [1.0, 2.0]
    response = client.rerank(
        "q", ["1", "-9"], min_relevance_score=np.float32(0.5), top_n=np.int64(2), timeout=np.int32(9)
    )
    assert indices(response) == [0]


def test_readiness_is_not_retried(client_class, server):
    server.faults.extend([STOPPING] * 9)
    with client_class(server.url) as client:
        assert not client.is_ready()
    assert len(server.requests) == 1


def test_an_unknown_argument_names_the_client(client_class):
    with pytest.raises(TypeError, match=r"^RerankClient.__init__\(\) got an unexpected keyword argument 'api_key'"):
        client_class(api_key="x")


def test_a_model_that_is_no_reranker_is_told(client_class, server):
    server.outputs = ("logits",)
    message = "model 'reranker' is not a reranker: its outputs are logits; pass the name of an ensemble"
    with client_class(server.url) as client, pytest.raises(tr.InvalidRequestError, match=message):
        client.rerank("q", ["1"])


def test_messages_are_built_when_they_are_sent(client, server, monkeypatch):
    built, behind = [], []

    def build(*arguments):
        built.append(None)
        return original(*arguments)

    original = messages.infer_request
    monkeypatch.setattr(messages, "infer_request", build)
    server.faults.extend([lambda request, context: behind.append(len(built) - len(behind))] * 1000)
    assert len(client.score([("q", "1")] * 3200)) == 3200
    assert len(built) == 100
    assert max(behind) <= 2 * 16  # those in flight, and answers that the client has not read yet


def test_the_time_of_a_call_is_the_servers_the_backoffs_or_the_clients(client, server):
    server.faults.append(FULL)
    timing = client.rerank("q", ["1"]).timing
    assert timing.backoff_s > 0
    assert timing.server_s + timing.backoff_s + timing.client_s == pytest.approx(timing.total_s)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tls_server(authority):
    own = authority.issue_cert("rerank.example.org")
    pair = (own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())
    with FakeTriton(credentials=grpc.ssl_server_credentials([pair])) as running:
        yield running


def test_the_name_in_a_certificate_may_differ_from_the_address(client_class, tls_server, authority):
    roots = authority.cert_pem.bytes().decode()  # PEM text as str
    with client_class(tls_server.url, tls=tr.TLS(roots, server_name="rerank.example.org")) as client:
        assert len(client.rerank("q", ["1"])) == 1


@pytest.mark.parametrize(
    ("tls", "message"),
    [
        (False, "not plain-text gRPC; pass tls if the server has TLS on"),
        (True, "certificate is not trusted; pass its authority as TLS"),
        ("roots", r"certificate is for another name; pass that name as TLS\(server_name"),
    ],
)
def test_a_mismatch_of_tls_is_told(client_class, tls_server, authority, tls, message):
    tls = tr.TLS(authority.cert_pem.bytes()) if tls == "roots" else tls
    client = client_class(tls_server.url, tls=tls, max_retries=0)
    with client, pytest.raises(tr.ServerUnavailableError, match=message):
        client.rerank("q", ["1"], timeout=10)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_tls_to_a_server_without_it_is_told(client_class, server, host):
    client = client_class(f"{host}:{server.port}", tls=True, max_retries=0)
    with client, pytest.raises(tr.ServerUnavailableError, match="answers, but not with TLS"):
        client.rerank("q", ["1"], timeout=10)


def test_localhost_is_the_name_in_a_certificate(client_class, authority):
    own = authority.issue_cert("localhost")
    pair = (own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())
    with FakeTriton(credentials=grpc.ssl_server_credentials([pair])) as server:
        roots = tr.TLS(authority.cert_pem.bytes())
        with client_class(f"localhost:{server.port}", tls=roots) as client:
            assert len(client.rerank("q", ["1"])) == 1
        other = client_class(server.url, tls=roots, max_retries=0)
        with other, pytest.raises(tr.ServerUnavailableError, match="certificate is for another name"):
            other.rerank("q", ["1"], timeout=10)


def test_a_serialized_component_holds_paths_and_no_keys():
    tls = tr.TLS("roots.pem", private_key=SECRET_KEY, certificate_chain=SECRET_KEY.encode(), server_name="n")
    assert tls_to_dict(tls) == {"root_certificates": "roots.pem", "server_name": "n"}
