"""Real servers that die, come back, are full, or require TLS."""

import asyncio
import socket
import ssl
import threading
import time
from contextlib import ExitStack

import psutil
import pytest
import trustme

import triton_rerank as tr
from conftest import lay_out
from support import quick_server, raw
from support.monitors import free_port, triton_process, wait_until
from triton_rerank_build import EmbeddedServer

pytestmark = pytest.mark.integration

DOCUMENTS = ["Wash your hands.", "Buy stocks.", "Get a flu shot.", "x"]
SLOW = ["word " * 400] * 64


def call_until_done(client, turns, lock, lost, events):
    """Run one caller until the shared turns are used up; some turns stop or start a server first."""
    while True:
        with lock:
            number = next(turns, None)
        if number is None:
            return
        if number in events:
            events[number]()
        try:
            assert len(client.rerank("influenza", DOCUMENTS, timeout=60)) == 4
        except tr.RerankError as error:
            lost.append(error)


def test_one_of_three_servers_is_killed_and_restarted_in_the_middle_of_500_calls(tiny_repository):
    servers = [quick_server(tiny_repository, grpc_port=free_port()) for _ in range(3)]
    lost, turns, lock = [], iter(range(500)), threading.Lock()
    stopped = threading.Event()

    def stop():
        servers[0].stop()
        stopped.set()

    def start():
        stopped.wait()  # 150 calls may take less time
        servers[0].start()

    events = {100: stop, 250: start}
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
            server.start()
        client = stack.enter_context(tr.RerankClient([server.grpc_url for server in servers], max_retries=0))
        arguments = (client, turns, lock, lost, events)
        callers = [threading.Thread(target=call_until_done, args=arguments) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert lost == []
        before = num_requests(servers[0])

        def used_again():
            for _ in range(9):
                client.rerank("influenza", DOCUMENTS)
            return num_requests(servers[0]) >= before + 2

        wait_until(used_again)


@pytest.fixture(scope="module")
def pair_of_servers(tiny_repository):
    with (
        quick_server(tiny_repository, grpc_port=free_port()) as first,
        quick_server(tiny_repository, grpc_port=free_port()) as second,
    ):
        yield first, second


def processes(server):
    return psutil.Process(server._supervisor.pid).children(recursive=True)


def tritonserver_of(server):
    everyone = [psutil.Process(server._supervisor.pid), *processes(server)]
    return next(process for process in everyone if "tritonserver" in process.name())


def test_one_of_two_servers_is_frozen(pair_of_servers, client_class):
    frozen, _ = pair_of_servers
    process = tritonserver_of(frozen)
    with client_class([server.grpc_url for server in pair_of_servers], timeout=20) as client:
        for _ in range(4):
            client.rerank("influenza", DOCUMENTS)
        process.suspend()
        try:
            timings = [client.rerank("influenza", DOCUMENTS).timing for _ in range(60)]
        finally:
            process.resume()
        # One call waited until it moved on; after that, only a probe after each rest did.
        delayed = [timing for timing in timings if timing.num_retries]
        assert 1 <= len(delayed) <= 8
        before = num_requests(frozen)
        for _ in range(600):  # the frozen server is used again when it answers
            client.rerank("influenza", DOCUMENTS)
            if num_requests(frozen) >= before + 5:
                break
            time.sleep(0.02)
        assert num_requests(frozen) >= before + 5


def test_a_server_whose_tokenizer_process_died_counts_as_down(pair_of_servers, client_class):
    broken, _ = pair_of_servers
    for process in processes(broken):
        # The second run of this test finds it dead.
        if process.status() != psutil.STATUS_ZOMBIE and "tokenizer" in " ".join(process.cmdline()):
            process.kill()
    with client_class([server.grpc_url for server in pair_of_servers], timeout=20) as client:
        for _ in range(40):
            assert len(client.rerank("influenza", DOCUMENTS)) == 4


def test_the_whole_query_is_read_if_asked(server, client_class):
    query = "word " * 450  # beyond three quarters of 512 tokens, and with the document below 512
    with client_class(server.grpc_url) as client:
        cut = client.rerank(query, ["influenza"])[0]
        whole = client.rerank(query, ["influenza"], query_max_length=500)[0]
    assert (cut.truncated, whole.truncated) == (True, False)
    assert 450 < whole.num_tokens <= 512
    assert whole.num_tokens > cut.num_tokens


def num_requests(server, model="reranker"):
    return raw.statistics(server.grpc_url, model)[0]


def test_a_server_that_is_stopped_in_mid_request_fails_by_name(tiny_repository, client_class):
    with quick_server(tiny_repository) as server, client_class(server.grpc_url, max_retries=0) as client:
        client.is_ready()
        before = num_requests(server, "tokenizer")
        triton_process(server, "cross_encoder_0_0").suspend()

        def stop_when_one_request_is_tokenized():
            wait_until(lambda: num_requests(server, "tokenizer") > before)
            server.stop()

        stopper = threading.Thread(target=stop_when_one_request_is_tokenized)
        stopper.start()
        with pytest.raises(tr.RerankError) as caught:
            client.rerank("q", DOCUMENTS, timeout=20)
        stopper.join()
        assert type(caught.value) in (tr.ServerUnavailableError, tr.RequestCancelledError)
        with pytest.raises(tr.ServerUnavailableError, match="is Triton running there"):
            client.rerank("q", ["a"], timeout=5)


@pytest.fixture(scope="module")
def small_queue_server(tiny_repository, tmp_path_factory):
    limit = "dynamic_batching { default_queue_policy { max_queue_size: 2 } }"
    edit = ("tokenizer/config.pbtxt", "dynamic_batching { }", limit)
    repository = lay_out(tmp_path_factory.mktemp("queue") / "repository", tiny_repository, edit)
    with quick_server(repository) as running:
        yield running


async def test_a_full_queue_is_told_apart_from_a_dead_server(small_queue_server):
    texts = ["word " * 3000] * 64  # tokenizing these takes the tokenizer long enough for a queue to build up
    async with tr.AsyncRerankClient(small_queue_server.grpc_url, max_retries=0, pairs_per_request=64) as client:
        await client.rerank("q", ["a"])
        calls = (client.rerank("q", texts, max_length=16) for _ in range(24))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        assert refused
        assert {type(error) for error in refused} == {tr.ServerOverloadedError}
        assert "Exceeds maximum queue size" in str(refused[0])
        assert await client.is_ready()


async def test_back_off_gets_every_call_through_a_full_queue(small_queue_server):
    texts = ["word " * 300] * 32
    async with tr.AsyncRerankClient(small_queue_server.grpc_url, max_retries=12, timeout=120) as client:
        responses = await asyncio.gather(*(client.rerank("q", texts, max_length=16) for _ in range(6)))
    assert {len(response) for response in responses} == {32}


async def test_the_callers_of_one_client_wait_for_their_turn_in_a_short_queue(small_queue_server):
    texts = ["word " * 300] * 16
    async with tr.AsyncRerankClient(small_queue_server.grpc_url, timeout=120) as client:
        responses = await asyncio.gather(*(client.rerank("q", texts, max_length=16) for _ in range(50)))
    assert [len(response) for response in responses] == [16] * 50


async def test_a_cancelled_call_leaves_the_server_well(server):
    async with tr.AsyncRerankClient(server.grpc_url, timeout=120) as client:
        before = num_requests(server, "tokenizer")
        call = asyncio.ensure_future(client.rerank("q", SLOW))
        await asyncio.to_thread(wait_until, lambda: num_requests(server, "tokenizer") > before)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while not await client.is_ready():  # refused for as long as what was cancelled waits
            await asyncio.sleep(0.2)


class SecureServer(EmbeddedServer):
    """The embedded server with TLS; its own readiness check speaks plain text only."""

    tls: tr.TLS

    def _wait_until_ready(self, supervisor):
        end = time.monotonic() + 120
        with tr.RerankClient(self.grpc_url, tls=self.tls) as client:
            while not client.is_ready(timeout=60):
                assert self.running, self.log_tail()
                assert time.monotonic() < end, self.log_tail()
                time.sleep(0.1)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def certificates(authority):
    """Roots, and a client's key and chain, as PEM bytes."""
    own = authority.issue_cert("client@example.org")
    chain = b"".join(blob.bytes() for blob in own.cert_chain_pems)
    return authority.cert_pem.bytes(), own.private_key_pem.bytes(), chain


@pytest.fixture(scope="module", params=["tls", "mutual"])
def secure_server(request, authority, certificates, tiny_repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    own = authority.issue_cert("127.0.0.1", "localhost")
    own.private_key_pem.write_to_path(folder / "key.pem")
    own.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    authority.cert_pem.write_to_path(folder / "roots.pem")
    mutual = ["--grpc-use-ssl-mutual=true"] if request.param == "mutual" else ["--grpc-use-ssl=true"]
    arguments = (
        *mutual,
        f"--grpc-server-cert={folder / 'cert.pem'}",
        f"--grpc-server-key={folder / 'key.pem'}",
        f"--grpc-root-cert={folder / 'roots.pem'}",
    )
    running = SecureServer(tiny_repository, arguments=arguments)
    running.tls = tr.TLS(*certificates)
    running.mutual = request.param == "mutual"
    with running:
        yield running


def test_tls_by_bytes_and_by_files(client_class, secure_server, certificates, tmp_path):
    files = []
    for name, pem in zip(("roots", "key", "chain"), certificates, strict=True):
        files.append(tmp_path / f"{name}.pem")
        files[-1].write_bytes(pem)
    for tls in (tr.TLS(*certificates), tr.TLS(*files), tr.TLS(*map(str, files))):
        with client_class(secure_server.grpc_url, tls=tls, metadata={"authorization": "Bearer x"}) as client:
            assert len(client.rerank("q", DOCUMENTS)) == 4
            assert "PRIVATE" not in repr(client) + repr(tls)


def test_strangers_are_refused(client_class, secure_server, certificates):
    strangers = {"plain text": False, "unknown roots": tr.TLS(trustme.CA().cert_pem.bytes())}
    if secure_server.mutual:
        strangers["no certificate"] = tr.TLS(certificates[0])
    for who, tls in strangers.items():
        with client_class(secure_server.grpc_url, tls=tls, max_retries=0) as client:
            with pytest.raises(tr.ServerUnavailableError) as caught:
                client.rerank("q", ["a"], timeout=10)
            assert "PRIVATE" not in str(caught.value), who


def test_the_certificates_are_real(secure_server, certificates, tmp_path):
    (tmp_path / "chain.pem").write_bytes(certificates[2])
    (tmp_path / "key.pem").write_bytes(certificates[1])
    context = ssl.create_default_context(cadata=certificates[0].decode())
    context.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    host, port = secure_server.grpc_url.split(":")
    with (
        socket.create_connection((host, int(port))) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        assert secure.version() in ("TLSv1.2", "TLSv1.3")
