"""Requests that no library sends: endless, huge, slow. Each ends, memory stays bounded, and the next call works."""

import contextlib
import json
import threading

import httpx
import pytest

from support.fake_triton import FakeTriton
from support.gateway import GatewayProcess, ask, post, read_all, status_of

pytestmark = pytest.mark.integration

GOOD = {"query": "q", "documents": ["1"]}
CHUNKED = b"POST /rerank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def gateway():
    """Limits of one megabyte and two seconds."""
    with FakeTriton() as triton, GatewayProcess(triton.url, "--max-body", "1", "--body-timeout", "2") as running:
        assert httpx.post(f"{running.url}/rerank", json=GOOD).status_code == 200
        yield running


@pytest.fixture(autouse=True)
def unharmed(gateway):
    before = gateway.memory()
    yield
    assert httpx.post(f"{gateway.url}/rerank", json=GOOD).status_code == 200
    assert gateway.memory() - before < 40 * MEGABYTE
    assert not [line for line in gateway.log if "Traceback" in line]


def send_until_closed(connection, part, most):
    """Send a part again and again, until the gateway closes or `most` bytes are sent."""
    sent = 0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while sent < most:
            connection.sendall(part)
            sent += len(part)
    return sent


@pytest.mark.parametrize("path", ["/rerank", "/score"])
def test_a_content_length_of_a_gigabyte_is_refused_before_the_body(gateway, path):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n".encode()
    answer = ask(gateway, head)
    assert status_of(answer) == 413
    assert b"connection: close" in answer.lower()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "request_too_large"


def test_a_caller_that_sends_too_much_still_reads_the_answer(gateway):
    """Without reading on, the connection would be reset and the answer lost."""
    body = {"query": "q", "documents": ["x" * 1000] * 5000}
    answer = httpx.post(f"{gateway.url}/rerank", json=body)
    assert answer.status_code == 413
    assert "larger than 1,000,000 bytes" in answer.json()["message"]


def test_chunks_without_end(gateway):
    with gateway.connect() as connection:
        connection.sendall(CHUNKED)
        sent = send_until_closed(connection, b"10000\r\n" + b"x" * 65_536 + b"\r\n", 500 * MEGABYTE)
        assert sent < 200 * MEGABYTE
        assert status_of(read_all(connection)) in (413, 0)  # 0: the reset has overtaken the answer


def test_chunks_of_one_byte(gateway):
    data = CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in json.dumps(GOOD).encode()) + b"0\r\n\r\n"
    with gateway.connect() as connection:
        connection.sendall(data)
        assert status_of(connection.recv(65_536)) == 200


def test_trailers_without_end(gateway):
    with gateway.connect() as connection:
        connection.sendall(CHUNKED + b"2\r\n{}\r\n0\r\n")
        assert send_until_closed(connection, b"a: " + b"b" * 8000 + b"\r\n", 500 * MEGABYTE) < 10 * MEGABYTE


@pytest.mark.parametrize("part", [b"a: " + b"b" * 8000 + b"\r\n", b"b" * 8000], ids=["many", "one"])
def test_headers_without_end(gateway, part):
    with gateway.connect() as connection:
        connection.sendall(b"POST /rerank HTTP/1.1\r\nHost: x\r\na: ")
        assert send_until_closed(connection, part, 500 * MEGABYTE) < 10 * MEGABYTE


def test_a_path_without_end(gateway):
    with gateway.connect() as connection:
        connection.sendall(b"POST /")
        assert send_until_closed(connection, b"a/" * 4000, 500 * MEGABYTE) < 10 * MEGABYTE


SLOW = {
    "nothing": (b"", 0),
    "headers": (b"POST /rerank HTTP/1.1\r\nHost: x\r\n", 0),
    "body": (b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{", 408),
    "chunk": (CHUNKED + b"1\r\n{\r\n", 408),
    "second request": (b"GET /v1/health/live HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n", 200),
}


@pytest.mark.parametrize("what", SLOW)
def test_slow_loris(gateway, what):
    """A byte now and then keeps no connection open beyond the limit."""
    data, status = SLOW[what]
    with gateway.connect() as connection:
        connection.sendall(data)
        ended = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                while not ended.wait(0.1):
                    connection.sendall(b" " if data.endswith(b"{") else b"a")

        dripping = threading.Thread(target=drip)
        if data and what != "chunk":
            dripping.start()
        answer = read_all(connection)
        ended.set()
        if dripping.ident:
            dripping.join()
    assert status_of(answer) == status


def test_many_slow_callers_keep_nobody_out(gateway):
    """They hold connections, not places among the calls in flight."""
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            connection = stack.enter_context(gateway.connect())
            connection.sendall(b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert httpx.post(f"{gateway.url}/rerank", json=GOOD).status_code == 200


def test_many_large_bodies_at_once_stay_within_the_memory(gateway):
    """Beyond eight times the limit of one body, further bodies are refused with 429."""
    part = b"x" * 900_000
    statuses = []
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(gateway.connect()) for _ in range(40)]
        for connection in connections:
            connection.sendall(b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 950000\r\n\r\n" + part)
        statuses = [status_of(read_all(connection)) for connection in connections]
    assert 429 in statuses
    assert set(statuses) <= {408, 429, 0}  # 0: a reset has overtaken the answer


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /rerank HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /rerank HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST /rerank HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /rerank HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /\xff\xfe/rerank HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /rerank HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n",
    ],
    ids=range(12),
)
def test_what_is_not_http(gateway, data):
    assert 400 <= status_of(ask(gateway, data)) < 500


def test_headers_of_strangers(gateway):
    for header in (
        "Authorization: \xff\xfe",
        "X-Request-Id: " + "x" * 5000,
        "traceparent: nonsense",
        "tracestate: " + "é",
        "Content-Type: application/xml",
        "Accept: image/png",
        "Accept-Encoding: gzip",
        "Content-Encoding: identity",
    ):
        assert status_of(ask(gateway, post("/rerank", GOOD, header))) == 200, header


def test_a_refused_caller_cannot_keep_sending():
    """Without a key: 401, and the connection ends although the body goes on."""
    env = {"TRITON_RERANK_GATEWAY_API_KEYS": "k"}
    with FakeTriton() as triton, GatewayProcess(triton.url, env=env) as gateway, gateway.connect() as connection:
        connection.sendall(CHUNKED)
        sent = send_until_closed(connection, b"10000\r\n" + b"x" * 65_536 + b"\r\n", 20_000 * MEGABYTE)
        assert sent < 20_000 * MEGABYTE
