import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import grpc
import pytest

from support.fake_triton import FakeTriton, refuse
from triton_rerank import (
    InferenceError,
    ModelNotFoundError,
    RerankClient,
    ServerOverloadedError,
    ServerUnavailableError,
)
from triton_rerank.transport import messages

DOCUMENTS = [str(number) for number in range(100)]


@pytest.fixture
def servers():
    running = [FakeTriton().__enter__() for _ in range(3)]
    yield running
    for server in running:
        server.stop()


def test_requests_go_to_all_by_turns(client_class, servers):
    with client_class([server.url for server in servers]) as client:
        for _ in range(30):
            client.rerank("q", ["1"])
    assert min(len(server.requests) for server in servers) >= 9


def test_the_parts_of_one_call_are_spread(client_class, servers):
    with client_class([server.url for server in servers]) as client:
        client.rerank("q", DOCUMENTS)
    assert min(len(server.requests) for server in servers) >= 1


def test_a_dead_server_loses_no_call_and_is_used_again_when_back(client_class, servers):
    with client_class([server.url for server in servers], max_retries=0, timeout=20) as client:
        client.rerank("q", DOCUMENTS)
        port = servers[0].port
        servers[0].stop()
        for _ in range(50):
            assert client.rerank("q", DOCUMENTS)[0].document == "99"
        with FakeTriton(port=port) as back:
            for _ in range(2000):
                client.rerank("q", ["1"])
                if back.requests:
                    break
            assert back.requests


def test_when_all_are_dead_each_is_named(client_class):
    dead = ["127.0.0.1:1", "127.0.0.1:2"]
    with client_class(dead, max_retries=0) as client, pytest.raises(ServerUnavailableError, match="none of 2 servers"):
        client.rerank("q", ["1"])


def test_a_version_that_is_gone_lets_the_call_start_over(client_class):
    def redeploy(request, context):
        server.version = "8"  # it answers the call's first request as version 7, and is replaced before the second

    with FakeTriton() as server, client_class(server.url, timeout=20, max_retries=0) as client:
        server.version = "7"
        server.faults.extend([None, redeploy])
        response = client.rerank("q", DOCUMENTS)
    assert [result.document for result in response[:2]] == ["99", "98"]
    assert response.model_version == "8"
    answered = [request.model_version for request in server.requests]
    # All four again: none of version 7 counts. One of those may still arrive after the call has started over.
    assert [version for version in answered if version != "7"] == ["", "", "8", "8", "8"]
    assert "7" in answered


@pytest.mark.parametrize(
    "refusal",
    [
        refuse(grpc.StatusCode.UNAVAILABLE, "'reranker' version 1 is not at ready state"),  # it is being unloaded
        refuse(grpc.StatusCode.NOT_FOUND, "no such version, in the words of another release"),
    ],
)
def test_a_version_that_a_server_lacks_is_asked_of_the_next_at_once(client_class, refusal):
    with FakeTriton() as server, client_class(server.url, timeout=20, max_retries=0) as client:
        server.faults.extend([None, *[refusal] * 3])
        assert client.rerank("q", DOCUMENTS).timing.num_retries == 3


def test_versions_that_never_stay_end_the_call(client_class):
    """Every answer comes from another version, and the caller has set no limit."""

    def answered(request):
        answer = usual(request)
        server.version = str(int(server.version) + 1)
        return answer

    with FakeTriton() as server, client_class(server.url, timeout=None) as client:
        usual, server.answer = server.answer, answered
        with pytest.raises(ServerUnavailableError, match="no version of the model answered all requests"):
            client.rerank("q", DOCUMENTS)
        assert server.version == "11"


def test_a_model_that_is_being_loaded_is_waited_for_with_backoff(client_class):
    """A step of the ensemble, which no request can choose a version of."""
    loading = refuse(
        grpc.StatusCode.UNAVAILABLE, "in ensemble 'reranker', 'cross_encoder' version 1 is not at ready state"
    )
    with FakeTriton() as server, client_class(server.url, timeout=30) as client:
        server.faults.extend([loading] * 3)
        timing = client.rerank("q", DOCUMENTS).timing
        assert (timing.num_retries, timing.backoff_s > 0) == (3, True)
        server.faults.extend([loading] * 1000)
        with pytest.raises(ServerUnavailableError, match="not at ready state"):
            client.rerank("q", DOCUMENTS, timeout=1)
        assert len(server.faults) > 990


def test_a_model_that_is_gone_altogether_is_not_found(client_class):
    gone = refuse(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'reranker' is not found")
    with FakeTriton() as server, client_class(server.url, timeout=20) as client:
        server.faults.extend([None, *[gone] * 100])
        with pytest.raises(ModelNotFoundError, match="unknown model"):
            client.rerank("q", DOCUMENTS)


SHM_FULL = refuse(grpc.StatusCode.INTERNAL, "Failed to increase the shared memory pool size for key 'x': No space")
NO_MEMORY = refuse(grpc.StatusCode.INTERNAL, "onnx runtime error 6: Failed to allocate memory for requested buffer")
FULL = refuse(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")


@pytest.mark.parametrize("short", [SHM_FULL, NO_MEMORY, FULL], ids=["shm", "memory", "queue"])
def test_a_server_that_is_short_of_something_loses_no_call(client_class, servers, short):
    servers[0].faults.extend([short] * 1000)
    with client_class([server.url for server in servers], max_retries=0, timeout=20) as client:
        for _ in range(9):
            assert client.rerank("q", DOCUMENTS)[0].document == "99"
    assert servers[0].requests


@pytest.mark.parametrize(
    ("short", "error"), [(SHM_FULL, InferenceError), (FULL, ServerOverloadedError)], ids=["shm", "queue"]
)
def test_when_all_are_short_of_something_each_is_asked_once(client_class, servers, short, error):
    for server in servers:
        server.faults.append(short)
    with client_class([server.url for server in servers], max_retries=0) as client:
        with pytest.raises(error) as caught:
            client.rerank("q", ["1"])
        assert getattr(caught.value, "out_of_memory", False) == (short is SHM_FULL)
        assert [len(server.requests) for server in servers] == [1, 1, 1]
        assert len(client.rerank("q", ["1"])) == 1  # none of them rests


def test_names_are_resolved_and_used_by_turns(client_class, servers):
    with client_class(f"dns:///localhost:{servers[0].port}") as client:
        assert client.rerank("q", DOCUMENTS)[0].document == "99"


def test_32_threads_share_a_client(servers):
    wrong = []

    def work(client, number):
        for turn in range(20):
            expected = str(1000 + number * 100 + turn)
            response = client.rerank("q", [*DOCUMENTS[:40], expected])
            if response[0].document != expected or len(response) != 41:
                wrong.append(response)

    with RerankClient([server.url for server in servers]) as client:
        threads = [threading.Thread(target=work, args=(client, number)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    # Each thread asks for the configurations of three models at most, at its first call.
    assert sum(server.config_calls for server in servers) <= 3 * 32


def test_a_thread_that_comes_while_another_opens_the_client_waits(servers, monkeypatch):
    opening, go_on = threading.Event(), threading.Event()

    def slow_stub(*arguments):
        opening.set()
        assert go_on.wait(10)
        return stub(*arguments)

    stub = messages.stub
    monkeypatch.setattr(messages, "stub", slow_stub)
    with RerankClient(servers[0].url) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.rerank, "q", ["1"])
        assert opening.wait(10)
        monkeypatch.undo()
        second = pool.submit(client.rerank, "q", ["2"])
        wait([second], timeout=0.5)
        go_on.set()
        assert [call.result()[0].document for call in (first, second)] == ["1", "2"]


def run_alone(code):
    # In a process of its own: this one has used gRPC with many threads.
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr


def test_a_client_that_was_used_before_a_fork_works_in_the_child_and_in_the_parent(servers):
    run_alone(f"""
import os
from triton_rerank import RerankClient
client = RerankClient({servers[0].url!r})
def first(documents):
    return client.rerank("q", documents, timeout=20)[0].document
for _ in range(3):
    assert first(["1"]) == "1"
    if os.fork() == 0:
        os._exit(0 if first(["1", "2"]) == "2" and first(["3"]) == "3" else 1)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    assert first(["1", "2"]) == "2"
""")


def test_the_asyncio_client_says_that_grpc_does_not_survive_a_fork(servers):
    # New clients too: grpc.aio has one poller thread in a process, and a child does not have it.
    run_alone(f"""
import asyncio, os
from triton_rerank import AsyncRerankClient, ClientStateError
client = AsyncRerankClient({servers[0].url!r})
asyncio.run(client.rerank("q", ["1"]))
if os.fork() == 0:
    for used in (client, AsyncRerankClient({servers[0].url!r})):
        try:
            asyncio.run(used.rerank("q", ["1"]))
        except ClientStateError as error:
            assert "fork" in str(error)
        else:
            os._exit(1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
assert asyncio.run(client.rerank("q", ["1", "2"]))[0].document == "2"
""")
